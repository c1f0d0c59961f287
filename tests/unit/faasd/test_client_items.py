"""Decoding of bodies and streams: pure functions of bytes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd.client import bodies
from faasd.client.items import Event, Events, Lines, decoder_for
from faasd.errors import BadRequest, HandlerError, UnserialisableResult


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(borders)]


def items(content_type: str, chunks: list[bytes]) -> list[Any]:
    decoder = decoder_for(content_type)
    return [item for chunk in chunks for item in decoder.feed(chunk)] + [*decoder.finish()]


@given(st.lists(st.binary().filter(lambda line: b"\n" not in line)), st.lists(st.integers(0)))
def test_lines_are_the_same_whatever_the_chunk_borders(lines: list[bytes], cuts: list[int]) -> None:
    body = b"".join(line + b"\n" for line in lines)
    splitter = Lines()

    found = [line for chunk in pieces(body, cuts) for line in splitter.feed(chunk)]

    assert found == [line.removesuffix(b"\r") for line in lines]
    assert splitter.finish() == b""


@given(st.lists(st.text().filter(lambda text: "\r" not in text)), st.lists(st.integers(0)))
def test_events_are_the_same_whatever_the_chunk_borders(texts: list[str], cuts: list[int]) -> None:
    lines = ["".join(f"data: {part}\n" for part in text.split("\n")) + "\n" for text in texts]
    body = "".join(lines).encode("utf-8")
    events = Events()

    found = [event for chunk in pieces(body, cuts) for event in events.feed(chunk)]

    assert found == [Event("message", text) for text in texts]


def test_events_take_names_comments_and_both_line_ends() -> None:
    body = b": hello\r\nid: 3\r\nevent: log\r\ndata:a\r\n\r\nretry: 9\n\nevent: lost\n"

    assert Events().feed(body) == [Event("log", "a")]


@given(st.lists(st.integers() | st.text() | st.none()), st.lists(st.integers(0)))
def test_json_lines_are_decoded_whatever_the_chunk_borders(
    values: list[Any], cuts: list[int]
) -> None:
    body = b"\n".join(json.dumps(value).encode() for value in values)

    assert items("application/x-ndjson", pieces(body, cuts)) == values


def test_text_keeps_characters_together() -> None:
    found = items("text/plain; charset=utf-8", [bytes([byte]) for byte in "grüße".encode()])

    assert "".join(found) == "grüße"
    assert "" not in found


def test_an_unknown_charset_is_read_as_utf8() -> None:
    assert items("text/plain; charset=klingon", ["ü".encode()]) == ["ü"]


def test_a_single_json_body_is_one_item() -> None:
    assert items("application/json", [b'{"a"', b": 1}"]) == [{"a": 1}]


def test_everything_else_stays_bytes() -> None:
    assert items("", [b"a", b"b"]) == [b"a", b"b"]


def test_an_error_event_raises_the_error_it_describes() -> None:
    problem = HandlerError("late", traceback="Traceback").to_problem()

    with pytest.raises(HandlerError, match="late") as caught:
        items("text/event-stream", [f"event: error\ndata: {json.dumps(problem)}\n\n".encode()])

    assert caught.value.traceback == "Traceback"


def test_the_items_before_an_error_are_given_though_they_came_with_it() -> None:
    found = iter(decoder_for("text/event-stream").feed(b"data: 1\n\nevent: error\ndata: oh\n\n"))

    assert next(found) == "1"
    with pytest.raises(HandlerError):
        next(found)


def test_an_error_event_of_plain_text_is_the_handlers_error() -> None:
    with pytest.raises(HandlerError, match="oh"):
        items("text/event-stream", [b"event: error\ndata: oh\n\n"])


def test_a_line_that_is_no_json_is_refused() -> None:
    with pytest.raises(UnserialisableResult, match="not JSON"):
        items("application/x-ndjson", [b"{\n"])


@pytest.mark.parametrize(
    ("value", "content_type", "expected"),
    [
        (None, None, (None, b"")),
        (b"\x00", None, ("application/octet-stream", b"\x00")),
        (bytearray(b"a"), "image/png", ("image/png", b"a")),
        ("ü", None, ("text/plain; charset=utf-8", "ü".encode())),
        ("{}", "application/json", ("application/json", b"{}")),
        ({"a": [1]}, None, ("application/json", b'{"a": [1]}')),
        (False, None, ("application/json", b"false")),
    ],
)
def test_values_become_bodies(
    value: Any, content_type: str | None, expected: tuple[str | None, bytes]
) -> None:
    assert bodies.encode(value, content_type) == expected


@pytest.mark.parametrize("value", [object(), float("nan"), {1: {2}}])
def test_a_value_that_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="cannot be sent as JSON"):
        bodies.encode(value, None)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/json", b"[1]", [1]),
        ("application/vnd.x+json; charset=utf-8", b"1", 1),
        ("application/json", b"", None),
        ("text/plain", b"", ""),
        ("text/csv; charset=latin-1", b"\xfc", "ü"),
        ("application/x-ndjson", b"1\n\n2\n", [1, 2]),
        ("image/png", b"\x89", b"\x89"),
        ("", b"x", b"x"),
    ],
)
def test_bodies_become_values(content_type: str, body: bytes, expected: Any) -> None:
    assert bodies.decode(content_type, body) == expected


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/json", b"{"), ("text/plain", b"\xff"), ("text/plain; charset=klingon", b"a")],
)
def test_a_body_that_is_not_what_it_says_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(UnserialisableResult, match="and is not"):
        bodies.decode(content_type, body)


def test_reads_milliseconds_by_phase() -> None:
    header = "queue;dur=0.1, sandbox;dur=0,exec; dur=3.25, cache, odd;desc=x"

    assert bodies.timings(header) == {"queue": 0.1, "sandbox": 0.0, "exec": 3.25}
