"""Bodies to events and results to bodies: the table of what a handler sees and may return."""

from __future__ import annotations

import json
import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.runtime import codec
from functions.runtime.context import Response

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class Tensor:
    """Anything with `tolist`, as arrays and tensors have it."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def tolist(self) -> list[Any]:
        return self._values


@pytest.mark.parametrize(
    ("content_type", "body", "event"),
    [
        ("application/json", b'{"a": [1, null]}', {"a": [1, None]}),
        ("application/json; charset=utf-8", b'"\xc3\xa9"', "é"),
        ("APPLICATION/JSON", b"1", 1),
        ("application/problem+json", b"{}", {}),
        ("application/json", b"", None),
        ("text/plain", b"caf\xc3\xa9", "café"),
        ("text/plain; charset=latin-1", b"caf\xe9", "café"),
        ('text/csv; charset="utf-8"; header=present', b"a,b", "a,b"),
        ("text/plain", b"", ""),
        ("application/octet-stream", b"\x00\xff", b"\x00\xff"),
        ("image/png", b"\x89PNG", b"\x89PNG"),
        ("", b"{}", b"{}"),
        ("", b"", None),
        ("application/octet-stream", b"", None),
        ("application/x-www-form-urlencoded", b' {"a": 1}', {"a": 1}),
        ("application/x-www-form-urlencoded", b"[1]", [1]),
        ("application/x-www-form-urlencoded", b"a=1&b=2", b"a=1&b=2"),
    ],
)
def test_a_body_is_decoded_by_its_content_type(content_type: str, body: bytes, event: Any) -> None:
    assert codec.decode(content_type, body) == event


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/json", b"{", "The body is not JSON: "),
        ("application/json", b"\xff", "The body is not JSON: "),
        ("application/json", b"[" * 200_000, "The body is not JSON: "),
        ("text/plain", b"\xff", "The body is not text in utf-8: "),
        ("text/plain; charset=a\0b", b"x", "The body is not text in "),
        ("text/plain; charset=klingon", b"x", "The body is not text in klingon: "),
        ("application/x-www-form-urlencoded", b"{a", "The body is not JSON: "),
    ],
)
def test_a_body_that_is_not_what_it_says_is_refused(
    content_type: str, body: bytes, said: str
) -> None:
    with pytest.raises(codec.BadEvent) as refused:
        codec.decode(content_type, body)

    assert str(refused.value).startswith(said)


@given(st.text(max_size=60), st.binary(max_size=60))
def test_any_body_is_an_event_or_refused(content_type: str, body: bytes) -> None:
    try:
        codec.decode(content_type, body)
    except codec.BadEvent as error:
        assert str(error)  # noqa: PT017


@given(st.sampled_from(["zlib", "hex", "rot13", "base64", "idna", "utf-16", "undefined"]))
def test_any_charset_gives_text_or_is_refused(charset: str) -> None:
    try:
        event = codec.decode(f"text/plain; charset={charset}", b"abcd")
    except codec.BadEvent:
        return
    assert isinstance(event, str)


@pytest.mark.parametrize(
    ("result", "content_type", "body"),
    [
        (None, codec.JSON, b"null"),
        ({"a": [1, True]}, codec.JSON, b'{"a":[1,true]}'),
        ((1, 2), codec.JSON, b"[1,2]"),
        ("é", codec.TEXT, b"\xc3\xa9"),
        ("", codec.TEXT, b""),
        (b"\x00", codec.BYTES, b"\x00"),
        (bytearray(b"ab"), codec.BYTES, b"ab"),
        (memoryview(b"ab"), codec.BYTES, b"ab"),
        (Tensor([[1.5], [2.0]]), codec.JSON, b"[[1.5],[2.0]]"),
        ({"scores": Tensor([1])}, codec.JSON, b'{"scores":[1]}'),
        (array("d", [0.5]), codec.JSON, b"[0.5]"),
    ],
)
def test_a_result_becomes_a_body_with_its_content_type(
    result: Any, content_type: str, body: bytes
) -> None:
    assert codec.encode(result) == (200, content_type, {}, body)


def test_text_that_no_encoding_holds_is_sent_as_well_as_can_be() -> None:
    assert codec.encode("a\ud800b")[3] == b"a?b"


@pytest.mark.parametrize("result", [math.nan, {1j}, object(), [math.inf], {"a": {1}}, {(1,): 2}])
def test_what_cannot_be_sent_is_refused(result: Any) -> None:
    with pytest.raises(codec.BadResult, match="what cannot be sent as JSON"):
        codec.encode(result)


def test_what_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(codec.BadResult):
        codec.encode(endless)


def test_a_response_says_its_status_type_and_headers() -> None:
    response = Response({"id": 7}, status=201, headers={"location": "/7"})

    assert codec.encode(response) == (201, codec.JSON, {"location": "/7"}, b'{"id":7}')


def test_a_response_with_a_content_type_keeps_it() -> None:
    assert codec.encode(Response(b"PNG", "image/png"))[1:] == ("image/png", {}, b"PNG")


@pytest.mark.parametrize("headers", [{"a": 1}, {"a": "x\ny"}, {"a\nb": "x"}, {1: "x"}])
def test_a_header_that_is_no_line_of_text_is_refused(headers: Any) -> None:
    with pytest.raises(codec.BadResult, match="must be one line of text"):
        codec.encode(Response("x", headers=headers))


@pytest.mark.parametrize("status", [199, 600, 0, -1])
def test_a_status_outside_the_range_is_refused_where_it_is_set(status: int) -> None:
    with pytest.raises(ValueError, match="between 200 and 599"):
        Response("x", status=status)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"n": 1}, (codec.LINES, b'{"n":1}\n')),
        ("word ", (codec.TEXT, b"word ")),
        (b"\x00", (codec.BYTES, b"\x00")),
    ],
)
def test_items_of_a_stream_are_lines_text_or_bytes(item: Any, expected: tuple[str, bytes]) -> None:
    assert codec.encode_item(item) == expected


@pytest.mark.parametrize(
    ("item", "event"),
    [
        ("word", b"data: word\n\n"),
        ("two\nlines", b"data: two\ndata: lines\n\n"),
        ("", b"data: \n\n"),
        ({"n": 1}, b'data: {"n":1}\n\n'),
    ],
)
def test_items_of_a_stream_are_server_sent_events(item: Any, event: bytes) -> None:
    assert codec.encode_event(item) == event


def test_bytes_cannot_be_server_sent_events() -> None:
    with pytest.raises(codec.BadResult, match="server-sent events cannot carry"):
        codec.encode_event(b"\x00")


@given(json_values)
def test_json_values_come_back_as_they_were(value: Any) -> None:
    _, content_type, _, body = codec.encode([value])

    assert codec.decode(content_type, body) == [value]


@given(json_values)
def test_an_event_is_one_line_of_json(value: Any) -> None:
    event = codec.encode_event([value])

    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: ")) == [value]
