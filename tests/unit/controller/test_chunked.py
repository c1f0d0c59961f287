"""Bodies in chunks: one reading of each, however its bytes come, and none that others might differ
about.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import http_parser
from aiohttp.base_protocol import BaseProtocol
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.http.chunked import ChunkedBody
from faasd.errors import BadRequest
from faasd.spool import PIECE, Growing, Spool, whole

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"POST /next HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
MUCH = 1 << 40

PARSERS: dict[str, Any] = {"Python": http_parser.HttpRequestParserPy}
if hasattr(http_parser, "HttpRequestParserC"):
    PARSERS["C"] = http_parser.HttpRequestParserC


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def read(*pieces: bytes, limit: int = MUCH) -> tuple[bytes, bytes] | None:
    """The body and what is behind it, or None if its end has not come. Raises BadRequest."""
    chunked = ChunkedBody(limit)
    for number, piece in enumerate(pieces):
        behind = chunked.feed(piece)
        if behind is not None:
            assert len(chunked.body) == chunked.announced
            return whole(chunked.body.whole()), behind + b"".join(pieces[number + 1 :])
    return None


def outcome(*pieces: bytes) -> Any:
    try:
        return read(*pieces)
    except BadRequest:
        return "refused"


def encode(chunks: list[bytes], last: bytes = LAST_CHUNK) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + last


_sizes = st.tuples(
    st.sampled_from([b"", b"", b"0", b"000"]),
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b;\\" c"', b";a;b=c;d"]),
    st.booleans(),
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body and a valid way to send it."""
    body = raw = b""
    for zeros, chunk, extension, is_upper in draw(st.lists(_sizes, max_size=5)):
        size = (b"%X" if is_upper else b"%x") % len(chunk)
        raw += zeros + size + extension + b"\r\n" + chunk + b"\r\n"
        body += chunk
    trailers = draw(st.lists(st.sampled_from([b"X-A: b\r\n", b"X-C:\r\n", b"E: \xe9\r\n"])))
    last = draw(st.sampled_from([b"0\r\n", b"00\r\n", b"0;a=b\r\n"]))
    return body, raw + last + b"".join(trailers) + b"\r\n"


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in itertools.pairwise(at)]


@given(sent=bodies(), places=st.lists(st.integers(0, 10_000), max_size=6), behind=st.binary())
def test_a_body_is_what_was_sent_however_it_is_cut(
    sent: tuple[bytes, bytes], places: list[int], behind: bytes
) -> None:
    body, raw = sent

    assert read(*cut(raw + behind, places)) == (body, behind)
    assert read(raw[:-1]) is None


@given(sent=bodies())
def test_a_body_is_what_was_sent_byte_by_byte(sent: tuple[bytes, bytes]) -> None:
    body, raw = sent

    assert read(*(raw[at : at + 1] for at in range(len(raw)))) == (body, b"")


ODD = [b"\n", b"\r", b"\r\n", b" ", b"\t", b"0", b"f", b";", b"-", b"+", b"_", b"0x", b"\0", b'"',
       b":", b"\xff", b"a: b\r\n", b"0\r\n\r\n",
       b"POST / HTTP/1.1\r\nX-D: d\r\n\r\n"]  # fmt: skip


@st.composite
def almost_bodies(draw: st.DrawFn) -> bytes:
    _, raw = draw(bodies())
    for _ in range(draw(st.integers(1, 3))):
        at, gone = draw(st.integers(0, len(raw))), draw(st.integers(0, 2))
        raw = raw[:at] + draw(st.sampled_from(ODD) | st.binary(max_size=2)) + raw[at + gone :]
    return raw


@settings(max_examples=1000, deadline=None)
@given(raw=almost_bodies(), places=st.lists(st.integers(0, 10_000), max_size=4))
@example(b"2;a\nhi\r\n0\r\n\r\n", [])
@example(b"1" * 5000, [4095])
@example(b"2;" + b"a" * 4092 + b"\r\nhi\r\n0\r\n\r\n", [4095])
@example(b"2;" + b"a" * 4093 + b"\r\nhi\r\n0\r\n\r\n", [4096])
@example(b"0\r\n" + b"a:" + b"b" * 4093 + b"\r\n\r\n", [4098])
def test_what_is_almost_a_body_is_the_same_however_it_is_cut(raw: bytes, places: list[int]) -> None:
    assert outcome(*cut(raw, places)) == outcome(raw)
    if len(raw) < 300:
        assert outcome(*(raw[at : at + 1] for at in range(len(raw)))) == outcome(raw)


@settings(max_examples=1000, deadline=None)
@given(raw=almost_bodies() | bodies().map(lambda sent: sent[1]))
def test_what_is_taken_for_a_body_is_the_same_to_aiohttp(
    loop: asyncio.AbstractEventLoop, raw: bytes
) -> None:
    found = outcome(raw)
    if not isinstance(found, tuple):
        return
    body, behind = found
    for kind, parser in PARSERS.items():
        protocol = BaseProtocol(loop)
        reader = protocol._parser = parser(protocol, loop, 2**16, auto_decompress=False)
        taken = raw[: len(raw) - len(behind)]
        [(_message, payload)], _, tail = reader.feed_data(HEAD + taken)
        assert payload.is_eof(), kind
        assert (payload.read_nowait(), tail) == (body, b""), kind


# That chunks are refused on a connection is seen in tests/integration/test_hostile_http.py.
@pytest.mark.parametrize(
    "begun",
    [b"2\n", b"\n", b"2;\r2", b"2\0", b"2;\x7f", b"2\r\nhi\n", b"2\r\nhi0", b"2\r\nhi\r0",
     b"0\r\n\n", b"0\r\nX-A: b\n", b"0\r\nX-A\0", b"0\r\n\r\r", b"2" * 4096, b"0\r\nX" + b"a" * 4096],
)  # fmt: skip
def test_what_cannot_become_a_body_is_refused_before_more_comes(begun: bytes) -> None:
    assert outcome(begun) == "refused"
    assert outcome(*(begun[at : at + 1] for at in range(len(begun)))) == "refused"


def test_a_body_stops_where_it_would_grow_past_its_limit_and_goes_on_when_that_is_raised() -> None:
    raw = encode([b"a" * 60, b"b" * 40, b"c"]) + NEXT

    for pieces in ([raw], [raw[:64], raw[64:]], [raw[at : at + 1] for at in range(len(raw))]):
        chunked, came = ChunkedBody(99), b""
        for number, piece in enumerate(pieces):
            assert chunked.feed(piece) is None
            came = b"".join(pieces[number + 1 :])
            if chunked.is_too_large:
                break
        assert (len(chunked.body), chunked.announced) == (60, 100)

        chunked.limit = 100
        assert chunked.feed(came) is None
        assert (len(chunked.body), chunked.announced) == (100, 101)

        chunked.limit = 101
        assert chunked.feed(b"") == NEXT
        assert chunked.body.whole() == b"a" * 60 + b"b" * 40 + b"c"


@pytest.mark.parametrize("size", [b"7f", b"7fffffffffffffff", b"ffffffffffffffff"])
def test_of_a_chunk_that_is_too_large_nothing_is_taken(size: bytes) -> None:
    chunked = ChunkedBody(100)

    assert chunked.feed(size + b"\r\n" + bytes(1000)) is None
    assert chunked.is_too_large
    assert (len(chunked.body), chunked.announced) == (0, int(size, 16))


def test_extensions_may_take_no_more_than_what_they_come_with() -> None:
    signed = b";chunk-signature=" + b"f" * 64

    def sent(data: bytes, extension: bytes, count: int) -> bytes:
        return (b"%x%b\r\n%b\r\n" % (len(data), extension, data)) * count + LAST_CHUNK

    assert outcome(sent(b"x" * 65_536, signed, 100)) == (b"x" * 65_536 * 100, b"")
    assert outcome(sent(b"x", b";a=b", 20_000)) == (b"x" * 20_000, b"")
    assert outcome(sent(b"x", signed, 1000)) == "refused"
    assert outcome(sent(b"x", b";" + b"a" * 4000, 10)) == "refused"


def test_data_makes_up_for_extensions_however_it_is_cut() -> None:
    noisy = (b"1;" + b"a" * 2000 + b"\r\nx\r\n") * 8
    quiet = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    raw = (noisy + quiet * 8) * 3 + LAST_CHUNK

    for size in (1, 7, 1500, len(raw)):
        found = read(*(raw[at : at + size] for at in range(0, len(raw), size)))
        assert found == (b"x" * 3 * (8 + 8000), b"")


def test_trailers_are_bounded() -> None:
    def sent(count: int, size: int) -> bytes:
        return b"0\r\n" + (b"X-A: " + b"a" * (size - 5) + b"\r\n") * count + b"\r\n"

    assert outcome(sent(64, 128)) == (b"", b"")
    assert outcome(sent(65, 6)) == "refused"
    assert outcome(sent(64, 129)) == "refused"


@pytest.mark.parametrize("size", [0, 1, Growing.SMALL, Growing.SMALL + 1, 5_000_000])
@pytest.mark.parametrize("piece", [1000, PIECE + 1, 3_000_000])
def test_what_grows_is_in_memory_while_it_is_small(size: int, piece: int) -> None:
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    growing = Growing()
    for at in range(0, size, piece):
        growing.add(memoryview(body)[at : at + piece])
        assert len(growing) == min(size, at + piece)

    found = growing.whole()

    assert isinstance(found, Spool) == (size > Growing.SMALL)
    assert whole(found) == body
