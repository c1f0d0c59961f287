"""Requests that are odd, ambiguous or not HTTP at all, as bytes on a socket of the real platform.

Each gets one refusal and the end of its connection, or exactly one right reply, however its bytes
are cut on the way; and nothing of a body ever runs as a request.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.raw_http import (
    ECHO,
    HOST,
    Reply,
    Wire,
    Witness,
    get,
    make,
    post,
    post_chunked,
)
from tests.platform import Platform

# Leaves a mark where it ran: it is called by requests that no server may see as such.
CANARY = """
import os

def handle(event, context):
    with open(os.environ["MARK"], "a") as file:
        file.write("x")
    return "ran"
"""

ITEMS = """
def handle(event, context):
    for number in range(event):
        yield {"item": number}
"""

SMUGGLED = post("canary", b"smuggled")
FIRST = post("echo", b"first")
LAST = post("echo", b"last", b"Connection: close")

_LINE = b"POST /invoke/echo HTTP/1.1\r\n"
_START = _LINE + HOST
_TWO = b"Content-Length: 2\r\n\r\nhi"
_CHUNKED = _START + b"Transfer-Encoding: chunked\r\n\r\n"
_ONE_CHUNK = b"\r\n\r\n2\r\nhi\r\n0\r\n\r\n"

# Statuses that refuse a request for what it is as HTTP.
_REFUSALS = {400, 413, 414, 431, 501, 505}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("hostile-http")
    with Platform(folder) as platform:
        few = {"max_instances": 2}
        platform.must_deploy("echo", ECHO, limits=few)
        platform.must_deploy("items", ITEMS, limits=few)
        platform.must_deploy("canary", CANARY, limits=few, env={"MARK": str(mark(platform))})
        platform.must_deploy("small", ECHO, limits={**few, "max_body_mb": 1})
        yield platform


@pytest.fixture(scope="module")
def witness(platform: Platform) -> Iterator[Witness]:
    with Witness(platform.url) as witness:
        yield witness


@pytest.fixture(autouse=True)
def _service_is_unharmed(platform: Platform, request: pytest.FixtureRequest) -> Iterator[None]:
    before = len(platform.log)
    yield
    assert platform.process is not None
    assert platform.process.poll() is None
    assert platform.post("/invoke/echo", {"n": 1}).json()["event"] == {"n": 1}
    assert not mark(platform).exists(), "a part of another request ran"
    errors = [entry for entry in platform.log[before:] if entry.get("level") == "error"]
    assert not errors or request.node.get_closest_marker("xfail"), errors


def mark(platform: Platform) -> Path:
    return platform.folder / "canary-ran"


def answers(platform: Platform, witness: Witness, *pieces: bytes) -> list[Reply]:
    """What comes back until the server ends the connection, each piece having been read alone."""
    with Wire.to(platform.url) as wire:
        witness.deliver(wire, pieces)
        return wire.replies_to_the_end()


def ways(raw: bytes) -> dict[str, tuple[list[bytes], int]]:
    """How a request and one after it may arrive: pieces, and how many are answered before."""
    middle = len(raw) // 2
    found = {
        "alone": ([raw, LAST], 0),
        "with the next": ([raw + LAST], 0),
        "after another": ([FIRST, raw, LAST], 1),
        "in halves": ([raw[:middle], raw[middle:], LAST], 0),
    }
    if len(raw) < 400:
        found["byte by byte"] = ([*(raw[at : at + 1] for at in range(len(raw))), LAST], 0)
    return found


def is_refusal(replies: list[Reply]) -> bool:
    """Whether it is the one refusal that ends a connection."""
    assert all(b"Traceback" not in reply.body for reply in replies)
    return len(replies) == 1 and replies[0].status in _REFUSALS and replies[0].interim == 0


REFUSED = {
    # Two lengths, or one that is none.
    "length and coding": _START + b"Content-Length: 6\r\nTransfer-Encoding: chunked" + _ONE_CHUNK,
    "coding and length": _START + b"Transfer-Encoding: chunked\r\nContent-Length: 6" + _ONE_CHUNK,
    "a length short of the chunks": _START
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "a length past the chunks": _START
    + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(SMUGGLED))
    + SMUGGLED,
    "two equal lengths": _START + b"Content-Length: 2\r\n" + _TWO,
    "two lengths": _START + b"Content-Length: 3\r\n" + _TWO + b"!",
    "two lengths, the first short": _START + b"Content-Length: 0\r\n" + _TWO,
    "two lengths in other cases": _START + b"CONTENT-LENGTH: 2\r\ncontent-length: 0\r\n\r\nhi",
    "length with a plus": _START + b"Content-Length: +2\r\n\r\nhi",
    "length as a list": _START + b"Content-Length: 2, 2\r\n\r\nhi",
    "length in hexadecimal": _START + b"Content-Length: 0x2\r\n\r\nhi",
    "negative length": _START + b"Content-Length: -2\r\n\r\nhi",
    "negative zero length": _START + b"Content-Length: -0\r\n\r\nhi",
    "empty length": _START + b"Content-Length: \r\n\r\n",
    "length with an underscore": _START + b"Content-Length: 0_2\r\n\r\nhi",
    "length with a point": _START + b"Content-Length: 2.0\r\n\r\nhi",
    "length with an exponent": _START + b"Content-Length: 2e0\r\n\r\nhi",
    "length in words": _START + b"Content-Length: two\r\n\r\nhi",
    "length in wide digits": _START + "Content-Length: \uff12\r\n\r\nhi".encode(),
    "length in Latin-1 digits": _START + b"Content-Length: \xb2\r\n\r\nhi",
    "length of two words": _START + b"Content-Length: 2 2\r\n\r\nhi",
    "length after a vertical tab": _START + b"Content-Length: \x0b2\r\n\r\nhi",
    "length of forty digits": _START + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nhi",
    "length past 64 bits": _START + b"Content-Length: 18446744073709551618\r\n\r\nhi",
    "xchunked": _START + b"Transfer-Encoding: xchunked" + _ONE_CHUNK,
    "chunked, identity": _START + b"Transfer-Encoding: chunked, identity" + _ONE_CHUNK,
    "chunked, chunked": _START + b"Transfer-Encoding: chunked, chunked" + _ONE_CHUNK,
    "chunked and a comma": _START + b"Transfer-Encoding: chunked," + _ONE_CHUNK,
    "chunked with a parameter": _START + b"Transfer-Encoding: chunked;q=1" + _ONE_CHUNK,
    "chunked in quotes": _START + b'Transfer-Encoding: "chunked"' + _ONE_CHUNK,
    "chunked after a vertical tab": _START + b"Transfer-Encoding: \x0bchunked" + _ONE_CHUNK,
    "an empty coding": _START + b"Transfer-Encoding: \r\n\r\n",
    "a coding beside chunked": _START + b"Transfer-Encoding: gzip, chunked" + _ONE_CHUNK,
    "a coding behind chunked": _START + b"Transfer-Encoding: chunked, gzip" + _ONE_CHUNK,
    "a coding on a line before": _START
    + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"
    + _ONE_CHUNK,
    "identity": _START + b"Transfer-Encoding: identity\r\n\r\n" + SMUGGLED,
    "identity and length": _START + b"Transfer-Encoding: identity\r\n" + _TWO,
    "chunked twice": _START + b"Transfer-Encoding: chunked\r\n" * 2 + _ONE_CHUNK[2:],
    "identity, then chunked": _START
    + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"
    + _ONE_CHUNK,
    # Header lines that parsers disagree about.
    "blank before the colon of the length": _START + b"Content-Length : 2\r\n\r\nhi",
    "blank before the colon of the coding": _START + b"Transfer-Encoding : chunked\r\n" + _TWO,
    "tab before a colon": _START + b"X-A\t: b\r\n" + _TWO,
    "a line continued by a blank": _START + b"X-A: a\r\n b\r\n" + _TWO,
    "a line continued by a tab": _START + b"X-A: a\r\n\tb\r\n" + _TWO,
    "a coding on the next line": _START + b"Transfer-Encoding:\r\n chunked" + _ONE_CHUNK,
    "a length in a continued line": _START + b"X-A: a\r\n Content-Length: 50\r\n" + _TWO,
    "a blank before the first header": _LINE + b" X-A: a\r\n" + HOST + _TWO,
    "line feeds alone": (_START + b"Content-Length: 2\r\n\r\n").replace(b"\r\n", b"\n") + b"hi",
    "a line feed after the request line": _LINE.replace(b"\r\n", b"\n") + HOST + _TWO,
    "a line feed after a header": _START + b"X-A: a\n" + _TWO,
    "a line feed hides a header": _START + b"X-A: a\nTransfer-Encoding: chunked\r\n" + _TWO,
    "a line feed at the end of the head": _START + b"Content-Length: 2\r\n\nhi",
    "carriage returns at the end": _START + b"Content-Length: 2\r\rhi\r\n\r\n",
    "a carriage return in a value": _START + b"X-A: a\rb\r\n" + _TWO,
    "a carriage return hides a header": _START + b"X-A: a\rContent-Length: 9\r\n\r\n" + SMUGGLED,
    "two carriage returns": _START + b"X-A: a\r\r\n" + _TWO,
    "NUL in a value": _START + b"X-A: a\0b\r\n" + _TWO,
    "NUL in a name": _START + b"X\0A: a\r\n" + _TWO,
    "NUL in the length": _START + b"Content-Length: 2\0\r\n\r\nhi",
    "a control character in a value": _START + b"X-A: a\x01b\r\n" + _TWO,
    "an escape in a value": _START + b"X-A: a\x1b[2Jb\r\n" + _TWO,
    "delete in a value": _START + b"X-A: a\x7fb\r\n" + _TWO,
    "brackets in a name": _START + b"X(A): a\r\n" + _TWO,
    "a blank in a name": _START + b"X A: a\r\n" + _TWO,
    "Latin-1 in a name": _START + b"X-\xe9: a\r\n" + _TWO,
    "UTF-8 in a name": _START + "X-\u00e9: a\r\n".encode() + _TWO,
    "no name": _START + b": a\r\n" + _TWO,
    "no colon": _START + b"X-A\r\n" + _TWO,
    "no host": _LINE + _TWO,
    "two equal hosts": _START + HOST + _TWO,
    "two hosts": _START + b"Host: localhost\r\n" + _TWO,
    "two content types": _START + b"Content-Type: a/b\r\nContent-Type: c/d\r\n" + _TWO,
    # Request lines.
    "lower-case method": b"post /invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
    "mixed-case method": b"Post /invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
    "unknown method": b"FROB /invoke/echo HTTP/1.1\r\n" + HOST + b"\r\n",
    "empty method": b" /invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
    "blank before the method": b" POST /invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
    "blank after the version": b"POST /invoke/echo HTTP/1.1 \r\n" + HOST + _TWO,
    "tabs in the request line": b"POST\t/invoke/echo\tHTTP/1.1\r\n" + HOST + _TWO,
    "a blank in the query": b"POST /invoke/echo?a b HTTP/1.1\r\n" + HOST + _TWO,
    "no target": b"POST HTTP/1.1\r\n" + HOST + _TWO,
    "a relative target": b"POST invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
    "an authority as target": b"POST 127.0.0.1:80 HTTP/1.1\r\n" + HOST + _TWO,
    "an asterisk as target": b"POST * HTTP/1.1\r\n" + HOST + _TWO,
    "backslashes in the target": b"POST \\invoke\\echo HTTP/1.1\r\n" + HOST + _TWO,
    "NUL in the target": b"POST /invoke/ec\0ho HTTP/1.1\r\n" + HOST + _TWO,
    "delete in the target": b"POST /invoke/ec\x7fho HTTP/1.1\r\n" + HOST + _TWO,
    "Latin-1 in the target": b"POST /invoke/\xe9cho HTTP/1.1\r\n" + HOST + _TWO,
    "lower-case protocol": b"POST /invoke/echo http/1.1\r\n" + HOST + _TWO,
    "HTTP/1": b"POST /invoke/echo HTTP/1\r\n" + HOST + _TWO,
    "HTTP/1.2": b"POST /invoke/echo HTTP/1.2\r\n" + HOST + _TWO,
    "HTTP/1.10": b"POST /invoke/echo HTTP/1.10\r\n" + HOST + _TWO,
    "HTTP/01.1": b"POST /invoke/echo HTTP/01.1\r\n" + HOST + _TWO,
    "HTTP/3.0": b"POST /invoke/echo HTTP/3.0\r\n" + HOST + _TWO,
    "no version, one line": b"GET /healthz\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + bytes.fromhex("000000040000000000"),
    "a greeting of TLS": bytes.fromhex("16030100c8010000c4030300") + b"\r\n\r\n",
    "a word": b"hello\r\n\r\n",
    "zeros": bytes(64) + b"\r\n\r\n",
    # Too much of a head.
    "a value of 64 KB": _START + b"X-A: " + b"a" * 65_536 + b"\r\n" + _TWO,
    "a name of 64 KB": _START + b"X-" + b"a" * 65_536 + b": a\r\n" + _TWO,
    "10,000 headers": _START + b"".join(b"X-%d: a\r\n" % n for n in range(10_000)) + _TWO,
    "10,000 equal headers": _START + b"X-A: a\r\n" * 10_000 + _TWO,
    "a target of 100 KB": b"POST /invoke/" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + _TWO,
    "a query of 100 KB": b"POST /invoke/echo?" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + _TWO,
    "a version of 8 KB": b"POST /invoke/echo HTTP/1." + b"1" * 8000 + b"\r\n" + HOST + _TWO,
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_what_is_not_quite_http_is_refused_once_and_ends_its_connection(
    platform: Platform, witness: Witness, raw: bytes
) -> None:
    for way, (pieces, before) in ways(raw).items():
        replies = answers(platform, witness, *pieces)

        assert [reply.event for reply in replies[:before]] == ["first"] * before, way
        assert is_refusal(replies[before:]), (way, replies)


def test_a_request_before_a_broken_one_in_one_segment_is_answered(
    platform: Platform, witness: Witness
) -> None:
    for name, raw in REFUSED.items():
        replies = answers(platform, witness, FIRST + raw, LAST)

        assert replies[0].status == 200, (name, replies)
        assert replies[0].event == "first"
        assert is_refusal(replies[1:]), (name, replies)


# What comes in the chunks of a body whose head was right.
BROKEN_CHUNKS = {
    "a negative size": b"-2\r\nhi\r\n0\r\n\r\n",
    "a size with a plus": b"+2\r\nhi\r\n0\r\n\r\n",
    "a size with 0x": b"0x2\r\nhi\r\n0\r\n\r\n",
    "a size with an underscore": b"0_2\r\nhi\r\n0\r\n\r\n",
    "a size that is none": b"zz\r\nhi\r\n0\r\n\r\n",
    "no size": b"\r\nhi\r\n0\r\n\r\n",
    "a size past 64 bits": b"10000000000000002\r\nhi\r\n0\r\n\r\n",
    "a size of many digits": b"f" * 40 + b"\r\nhi\r\n0\r\n\r\n",
    "a blank before the size": b" 2\r\nhi\r\n0\r\n\r\n",
    "a blank after the size": b"2 \r\nhi\r\n0\r\n\r\n",
    "a line feed after the size": b"2\nhi\r\n0\r\n\r\n",
    "a line feed after the data": b"2\r\nhi\n0\r\n\r\n",
    "a line feed in an extension": b"2;a\nhi\r\n0\r\n\r\n",
    "a carriage return in an extension": b"2;a\rb\r\nhi\r\n0\r\n\r\n",
    "a new line in a quoted extension": b'2;a="x\r\n"\r\nhi\r\n0\r\n\r\n',
    "line feeds at the end": b"2\r\nhi\r\n0\n\n",
    "a line feed at the end": b"2\r\nhi\r\n0\r\n\n",
    "too small a size": b"1\r\nhi\r\n0\r\n\r\n",
    "no end of the data": b"2\r\nhi0\r\n\r\n",
    "a trailer without colon": b"2\r\nhi\r\n0\r\ntrailer\r\n\r\n",
    "a length as a trailer": b"2\r\nhi\r\n0\r\nContent-Length: 9\r\n\r\n",
    "a trailer of 64 KB": b"2\r\nhi\r\n0\r\nX-A: " + b"a" * 65_536 + b"\r\n\r\n",
    "1,000 trailers": b"2\r\nhi\r\n0\r\n" + b"X-A: a\r\n" * 1000 + b"\r\n",
    "a size of sixteen digits": b"f" * 16 + b"\r\nhi\r\n0\r\n\r\n",
    "a negative zero": b"2\r\nhi\r\n-0\r\n\r\n",
    "a size in wide digits": "\uff12\r\nhi\r\n0\r\n\r\n".encode(),
    "a size with a point": b"2.0\r\nhi\r\n0\r\n\r\n",
    "a size in quotes": b'"2"\r\nhi\r\n0\r\n\r\n',
    "a tab before the size": b"\t2\r\nhi\r\n0\r\n\r\n",
    "a vertical tab after the size": b"2\x0b\r\nhi\r\n0\r\n\r\n",
    "NUL after the size": b"2\0\r\nhi\r\n0\r\n\r\n",
    "two sizes": b"2 2\r\nhi\r\n0\r\n\r\n",
    "two carriage returns after the size": b"2\r\r\nhi\r\n0\r\n\r\n",
    "a carriage return after the size": b"2\rhi\r\n0\r\n\r\n",
    "a carriage return after the data": b"2\r\nhi\r0\r\n\r\n",
    "line feed and carriage return after the data": b"2\r\nhi\n\r0\r\n\r\n",
    "NUL in an extension": b"2;a\0\r\nhi\r\n0\r\n\r\n",
    "an extension of 64 KB": b"2;" + b"a" * 65_536 + b"\r\nhi\r\n0\r\n\r\n",
    "300 KB of extensions": (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 300 + b"0\r\n\r\n",
    "a coding as a trailer": b"2\r\nhi\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a continued trailer": b"2\r\nhi\r\n0\r\nX-A: a\r\n b\r\n\r\n",
    "a blank before a trailer's colon": b"2\r\nhi\r\n0\r\nX-A : a\r\n\r\n",
    "a trailer without name": b"2\r\nhi\r\n0\r\n: a\r\n\r\n",
    "a line feed after a trailer": b"2\r\nhi\r\n0\r\nX-A: a\n\r\n",
    "a line feed behind trailers": b"2\r\nhi\r\n0\r\nX-A: a\r\n\n",
    "a carriage return in a trailer": b"2\r\nhi\r\n0\r\nX-A: a\rb\r\n\r\n",
    "NUL in a trailer": b"2\r\nhi\r\n0\r\nX-A: a\0b\r\n\r\n",
    "a request as a trailer": b"2\r\nhi\r\n0\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("chunks", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_chunks_that_are_none_are_refused_once(
    platform: Platform, witness: Witness, chunks: bytes
) -> None:
    for pieces in ([_CHUNKED + chunks], [_CHUNKED + chunks + LAST], [_CHUNKED + chunks + SMUGGLED]):
        assert is_refusal(answers(platform, witness, *pieces)), pieces
    first, *others = answers(platform, witness, FIRST, _CHUNKED + chunks)
    assert first.event == "first"
    assert is_refusal(others)


@pytest.mark.parametrize("chunks", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_chunks_that_break_after_the_head_was_read_are_refused_once(
    platform: Platform, witness: Witness, chunks: bytes
) -> None:
    cuts = [[chunks], [chunks + SMUGGLED], [chunks, SMUGGLED], [chunks[:5], chunks[5:]]]
    if len(chunks) < 100:
        cuts.append([chunks[at : at + 1] for at in range(len(chunks))])
    for pieces in cuts:
        assert is_refusal(answers(platform, witness, _CHUNKED, *pieces)), pieces


def test_a_request_with_broken_chunks_is_told_what_is_wrong(
    platform: Platform, witness: Witness
) -> None:
    raw = _CHUNKED.replace(HOST, HOST + b"Faasd-Request-Id: order-66\r\n") + b"2;\nhi"

    (reply,) = answers(platform, witness, FIRST, raw)[1:]

    assert (reply.status, reply.json()["code"]) == (400, "bad_request")
    assert reply.headers["connection"] == "close"
    assert reply.headers["faasd-request-id"] == reply.json()["request_id"] == "order-66"
    assert "RFC 9112" in reply.json()["remedy"]


_LONG = "v" * 8000

# The bytes, the event, and the headers as the function sees them.
SERVED: dict[str, tuple[bytes, Any, dict[str, str]]] = {
    "plain": (_START + _TWO, "hi", {}),
    "no body": (_START + b"\r\n", None, {}),
    "length zero": (_START + b"Content-Length: 0\r\n\r\n", None, {}),
    "length without a blank": (_START + b"Content-Length:2\r\n\r\nhi", "hi", {}),
    "length among blanks": (_START + b"Content-Length:  \t2 \t\r\n\r\nhi", "hi", {}),
    "length with zeros in front": (_START + b"Content-Length: 0002\r\n\r\nhi", "hi", {}),
    "chunked": (post_chunked("echo", b"h", b"i"), "hi", {}),
    "no chunks": (post_chunked("echo"), None, {}),
    "chunked in capitals": (_START + b"Transfer-Encoding: CHUNKED" + _ONE_CHUNK, "hi", {}),
    "chunked after a tab": (_START + b"Transfer-Encoding:\tchunked" + _ONE_CHUNK, "hi", {}),
    "zeros before a chunk's size": (_CHUNKED + b"0" * 50 + b"2\r\nhi\r\n000\r\n\r\n", "hi", {}),
    "capitals in a chunk's size": (_CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n", "0123456789", {}),
    "chunk extensions": (_CHUNKED + b'1;a\r\nh\r\n1;a=b;c="d;e"\r\ni\r\n0;f\r\n\r\n', "hi", {}),
    "names in any case": (
        _LINE + b"hOST: 127.0.0.1\r\nx-cAsE: Value\r\ncONTENT-lENGTH: 2\r\n\r\nhi",
        "hi",
        {"x-case": "Value"},
    ),
    "every character of a name": (
        _START + b"!#$%&'*+-.^_`|~09AZaz: a\r\n" + _TWO,
        "hi",
        {"!#$%&'*+-.^_`|~09azaz": "a"},
    ),
    "a name with an underscore is another": (
        _START + b"Transfer_Encoding: chunked\r\nContent_Length: 9\r\n" + _TWO,
        "hi",
        {"transfer_encoding": "chunked", "content_length": "9"},
    ),
    "an empty value": (_START + b"X-A:\r\nX-B: \t \r\n" + _TWO, "hi", {"x-a": "", "x-b": ""}),
    "blanks around a value": (_START + b"X-A: \t a b \t\r\n" + _TWO, "hi", {"x-a": "a b"}),
    "a tab in a value": (_START + b"X-A: a\tb\r\n" + _TWO, "hi", {"x-a": "a\tb"}),
    "colons in a value": (_START + b"X-A: a:b: c\r\n" + _TWO, "hi", {"x-a": "a:b: c"}),
    "Latin-1 in a value": (_START + b"X-A: caf\xe9\r\n" + _TWO, "hi", {"x-a": "caf\u00e9"}),
    "UTF-8 in a value": (
        _START + "X-A: caf\u00e9 \U0001f980\r\n".encode() + _TWO,
        "hi",
        {"x-a": "caf\u00e9 \U0001f980"},
    ),
    "bytes that are neither": (
        _START + b"X-A: \xff\xfe\x80\r\n" + _TWO,
        "hi",
        {"x-a": "\xff\xfe\x80"},
    ),
    "a long value": (_START + b"X-A: " + _LONG.encode() + b"\r\n" + _TWO, "hi", {"x-a": _LONG}),
    "120 headers": (
        _START + b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(118)) + _TWO,
        "hi",
        {f"x-{n}": str(n) for n in range(118)},
    ),
    "a long query": (
        b"POST /invoke/echo?" + b"q" * 8000 + b" HTTP/1.1\r\n" + HOST + _TWO,
        "hi",
        {},
    ),
    "credentials and the connection's own are kept back": (
        _START
        + b"Cookie: a=b\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nTrailer: X-B\r\n"
        + b"Connection: keep-alive\r\nX-A: a\r\n"
        + _TWO,
        "hi",
        {"x-a": "a"},
    ),
    "a compressed body stays so": (
        _START + b"Content-Encoding: gzip\r\nAccept-Encoding: gzip\r\n" + _TWO,
        "hi",
        {"content-encoding": "gzip", "accept-encoding": "gzip"},
    ),
    "a mode in the query": (
        b"POST /invoke/echo?x=%20&mode=sync&y HTTP/1.1\r\n" + HOST + _TWO,
        "hi",
        {},
    ),
    "an empty query": (b"POST /invoke/echo? HTTP/1.1\r\n" + HOST + _TWO, "hi", {}),
    "a query in a query": (b"POST /invoke/echo??mode=x HTTP/1.1\r\n" + HOST + _TWO, "hi", {}),
    "a name percent-encoded": (b"POST /invoke/%65cho HTTP/1.1\r\n" + HOST + _TWO, "hi", {}),
    "a path percent-encoded": (b"POST /%69nvoke/ech%6F HTTP/1.1\r\n" + HOST + _TWO, "hi", {}),
    "an absolute target": (
        b"POST http://127.0.0.1/invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
        "hi",
        {},
    ),
    "a host with a port": (_LINE + b"Host: localhost:80\r\n" + _TWO, "hi", {}),
    "a host of IPv6": (_LINE + b"Host: [::1]:80\r\n" + _TWO, "hi", {}),
    "an empty line before": (b"\r\n" + _START + _TWO, "hi", {}),
    "an empty line after": (_START + _TWO + b"\r\n", "hi", {}),
    "an upgrade to websockets": (
        _START
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        None,
        {
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        },
    ),
    "an upgrade without Connection": (_START + b"Upgrade: websocket\r\n" + _TWO, "hi", {}),
    "HTTP/1.0 that stays": (
        post("echo", b"hi", b"Connection: keep-alive", version=b"1.0"),
        "hi",
        {},
    ),
    "a body like a request": (post("echo", SMUGGLED), SMUGGLED.decode(), {}),
    "a body like two requests": (post("echo", SMUGGLED * 2), SMUGGLED.decode() * 2, {}),
    "a chunked body like a request": (post_chunked("echo", SMUGGLED), SMUGGLED.decode(), {}),
    "a body like a reply": (
        post("echo", b"HTTP/1.1 200 OK\r\n\r\n"),
        "HTTP/1.1 200 OK\r\n\r\n",
        {},
    ),
    "a body like chunks": (post("echo", b"0\r\n\r\n"), "0\r\n\r\n", {}),
    "a body of ends of lines": (post("echo", b"\r\n\r\n\r\n"), "\r\n\r\n\r\n", {}),
    "a body of every byte": (
        post("echo", bytes(range(256))),
        bytes(range(256)).decode("latin-1"),
        {},
    ),
}


@pytest.mark.parametrize("case", SERVED.values(), ids=SERVED)
def test_what_is_http_is_served_once_whichever_way_it_comes(
    platform: Platform, witness: Witness, case: tuple[bytes, Any, dict[str, str]]
) -> None:
    raw, event, headers = case
    for way, reply in _each_way(platform, witness, raw):
        seen = reply.json()
        assert (seen["event"], seen["headers"]) == (event, headers), way


def _each_way(platform: Platform, witness: Witness, raw: bytes) -> Iterator[tuple[str, Reply]]:
    """The reply to a request for every way it may come, once what is before and after it has been
    seen to be answered, and every reply to look the same."""
    looks = set()
    all_ways = {**ways(raw), "after another at once": ([FIRST + raw, LAST], 1)}
    for way, (pieces, before) in all_ways.items():
        replies = answers(platform, witness, *pieces)
        assert len(replies) == before + 2, (way, replies)
        assert [seen(reply) for reply in replies[:before]] == [("first", {})] * before, way
        assert seen(replies[-1]) == ("last", {}), way
        reply = replies[before]
        looks.add((reply.version, reply.status, reply.reason, frozenset(reply.headers)))
        yield way, reply
    assert len(looks) == 1, looks


def seen(reply: Reply) -> tuple[Any, dict[str, str]]:
    """Event and headers as ECHO saw them."""
    return reply.event, reply.json()["headers"]


_pieces = st.tuples(
    st.sampled_from([b"", b"0", b"00"]),
    st.binary(min_size=1, max_size=30) | st.sampled_from([SMUGGLED, b"0\r\n\r\n"]),
    st.sampled_from([b"", b"", b";a", b';a="b c"']),
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    pieces=st.lists(_pieces, max_size=5),
    last=st.sampled_from([b"0\r\n", b"000;a=b\r\n"]),
    trailers=st.lists(st.sampled_from([b"X-A: a\r\n", b"Faasd-Namespace: b\r\n"]), max_size=2),
    cuts=st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=6),
)
def test_chunks_cut_anywhere_are_the_body_that_was_sent(
    platform: Platform,
    witness: Witness,
    pieces: list[tuple[bytes, bytes, bytes]],
    last: bytes,
    trailers: list[bytes],
    cuts: list[float],
) -> None:
    raw = _CHUNKED.replace(HOST, HOST + b"X-Sent: yes\r\n")
    for zeros, data, extension in pieces:
        raw += b"%b%x%b\r\n%b\r\n" % (zeros, len(data), extension, data)
    raw += last + b"".join(trailers) + b"\r\n" + FIRST
    places = sorted({0, len(raw), *(int(cut * len(raw)) for cut in cuts)})
    sent = b"".join(data for _, data, _ in pieces).decode("latin-1")

    found = answers(platform, witness, *(raw[a:b] for a, b in itertools.pairwise(places)), LAST)

    assert [seen(reply) for reply in found] == [
        (sent or None, {"x-sent": "yes"}),
        ("first", {}),
        ("last", {}),
    ]


def test_a_deadline_that_passes_while_chunks_come_runs_nothing(
    platform: Platform, witness: Witness
) -> None:
    head = post("canary", b"", b"Faasd-Deadline-Ms: 1", b"Transfer-Encoding: chunked")

    refused, last = answers(platform, witness, head, *[b"1\r\nx\r\n"] * 20, b"0\r\n\r\n" + LAST)

    assert (refused.status, refused.json()["code"]) == (504, "deadline_exceeded")
    assert last.event == "last"


TRAILERS = {
    "of any name": b"X-A: a\r\n",
    "two": b"X-A: a\r\nX-B: b\r\n",
    "many": b"".join(b"X-%d: a\r\n" % n for n in range(64)),
    "long": b"X-A: " + b"a" * 4000 + b"\r\n",
    "naming a namespace": b"X-A: a\r\nFaasd-Namespace: other\r\n",
    "naming a key": b"Authorization: Bearer x\r\n",
    "naming a host": b"Host: evil.example\r\n",
    "ending the connection": b"Connection: close\r\n",
    "asking for more": b"Expect: 100-continue\r\nIdempotency-Key: k\r\n",
    "empty": b"X-A:\r\n",
    "in Latin-1": b"X-A: caf\xe9\r\n",
}


@pytest.mark.parametrize("trailers", TRAILERS.values(), ids=TRAILERS)
def test_trailers_are_no_headers_of_any_request(
    platform: Platform, witness: Witness, trailers: bytes
) -> None:
    raw = _CHUNKED + b"2\r\nhi\r\n0\r\n" + trailers + b"\r\n"

    for way, reply in _each_way(platform, witness, raw):
        assert seen(reply) == ("hi", {}), way


_OTHER_PROTOCOL = (b"Connection: Upgrade", b"Upgrade: smoke-signals")


def make_chunked(line: str, *lines: bytes, body: bytes = b"hi") -> bytes:
    head = make(line, b"", *lines, b"Transfer-Encoding: chunked")
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


# What the front passes on, and the status of what is said to it.
PASSED_ON = {
    "announced trailers": (make_chunked("POST /invoke/echo", b"Trailer: X-A"), 200),
    "a query": (make_chunked("POST /invoke/echo?mode=sync"), 200),
    "asynchronous": (make_chunked("POST /invoke/echo?mode=async"), 202),
    "a key to repeat it by": (make_chunked("POST /invoke/echo", b"Idempotency-Key: t"), 200),
    "an expectation": (make_chunked("POST /invoke/echo", b"Expect: 100-continue"), 200),
    "an unknown expectation": (make_chunked("POST /invoke/echo", b"Expect: tea"), 417),
    "an upgrade": (make_chunked("POST /invoke/echo", *_OTHER_PROTOCOL), 200),
    "a stream": (
        make_chunked("POST /invoke/items?", b"Content-Type: application/json", body=b"3"),
        200,
    ),
    "events": (
        make_chunked(
            "POST /invoke/items?",
            b"Content-Type: application/json",
            b"Accept: text/event-stream",
            body=b"3",
        ),
        200,
    ),
    "an unknown function": (make_chunked("POST /invoke/nobody?"), 404),
    "an unknown address": (make_chunked("POST /nothing"), 404),
    "another method": (make_chunked("PUT /invoke/echo"), 405),
    "GET": (make_chunked("GET /healthz"), 200),
    "an upload": (make_chunked("PUT /v1/artifacts/" + "0" * 64), 422),
    "a call of the API": (make_chunked("POST /v1/keys"), 400),
}


@pytest.mark.parametrize("trailers", [b"", *TRAILERS.values()], ids=["none", *TRAILERS])
@pytest.mark.parametrize("case", PASSED_ON.values(), ids=PASSED_ON)
def test_nothing_is_behind_trailers_that_the_front_does_not_see(
    platform: Platform, witness: Witness, case: tuple[bytes, int], trailers: bytes
) -> None:
    raw, status = case
    raw = raw.removesuffix(b"\r\n") + trailers + b"\r\n"
    middle = raw.index(b"\r\n\r\n") + 7

    for before in ([], [FIRST], [get("/healthz")]):
        for pieces in ([raw, LAST], [raw + LAST], [raw[:middle], raw[middle:] + LAST]):
            *_, reply = replies = answers(platform, witness, *before, *pieces)
            assert len(replies) == len(before) + 1, replies
            # What else is in the piece may be refused, and the request with it.
            refused = LAST in pieces[0] and is_refusal([reply])
            assert refused or (reply.status, reply.headers["connection"]) == (status, "close")


@pytest.mark.parametrize("body", [b"", b"hi"], ids=["without a body", "with a body"])
def test_an_upgrade_that_we_do_not_speak_is_a_plain_request(
    platform: Platform, witness: Witness, body: bytes
) -> None:
    raw = post("echo", body, *_OTHER_PROTOCOL)

    for pieces in ([raw], [raw[:60], raw[60:]], [raw[:-1], raw[-1:]]):
        with Wire.to(platform.url) as wire:
            for _ in range(2):
                witness.deliver(wire, pieces)
                assert wire.reply().event == (body.decode() or None)
            wire.send(LAST)
            assert [reply.event for reply in wire.replies_to_the_end()] == ["last"]


@pytest.mark.xfail(
    strict=True,
    raises=TimeoutError,
    reason="what comes in one segment with an upgrade that is not to websockets is never "
    "answered: aiohttp keeps it as the other protocol's",
)
def test_a_request_right_behind_an_upgrade_that_we_do_not_speak_is_answered(
    platform: Platform,
) -> None:
    with Wire.to(platform.url, patience_s=2) as wire:
        wire.send(post("echo", b"hi", *_OTHER_PROTOCOL) + LAST)
        assert [reply.event for reply in wire.replies_to_the_end()] == ["hi", "last"]


# Well-formed, and answered with a problem; the connection goes on.
ANSWERED: dict[str, tuple[bytes, int, str]] = {
    "an unknown function": (post("nobody", b"hi"), 404, "function_not_found"),
    "an impossible name": (post("A_b", b"hi"), 400, "bad_request"),
    "a name with a parameter": (post("echo;x=1", b"hi"), 400, "bad_request"),
    "a name with a broken escape": (post("%zzecho", b"hi"), 400, "bad_request"),
    "a name with an unfinished escape": (post("echo%6", b"hi"), 400, "bad_request"),
    "a name escaped twice": (post("%2565cho", b"hi"), 400, "bad_request"),
    "a name with NUL": (post("echo%00", b"hi"), 400, "bad_request"),
    "a name with a new line": (post("echo%0d%0aX-A:%20b", b"hi"), 400, "bad_request"),
    "a name with a question mark": (post("echo%3Fmode=async", b"hi"), 400, "bad_request"),
    "a name with a full stop": (post("%2e", b"hi"), 400, "bad_request"),
    "no name": (post("", b"hi"), 404, "not_found"),
    "a folder of the name": (post("echo/", b"hi"), 404, "not_found"),
    "a path below the name": (post("echo/x", b"hi"), 404, "not_found"),
    "an escaped slash": (make("POST /invoke%2Fecho", b"hi"), 404, "not_found"),
    "two slashes in front": (make("POST //invoke/echo", b"hi"), 404, "not_found"),
    "two slashes within": (make("POST /invoke//echo", b"hi"), 404, "not_found"),
    "a dot segment": (make("POST /invoke/./echo", b"hi"), 404, "not_found"),
    "dot segments out": (make("POST /invoke/../v1/functions", b"hi"), 404, "not_found"),
    "dot segments back": (make("POST /x/../invoke/echo", b"hi"), 404, "not_found"),
    "dot segments escaped": (make("POST /invoke/%2e%2e/v1/keys", b"hi"), 404, "not_found"),
    "another case": (make("POST /Invoke/echo", b"hi"), 404, "not_found"),
    "a backslash": (make("POST /invoke\\echo", b"hi"), 404, "not_found"),
    "a mode that is none": (post("echo?mode=later", b"hi"), 400, "bad_request"),
    "a mode in escapes": (post("echo?m%6fde=later", b"hi"), 400, "bad_request"),
    "a deadline that is none": (
        post("echo", b"hi", b"Faasd-Deadline-Ms: soon"),
        400,
        "bad_request",
    ),
    "a deadline in the past": (
        post("echo", b"hi", b"Faasd-Deadline-Ms: 0"),
        504,
        "deadline_exceeded",
    ),
    "an empty idempotency key": (post("echo", b"hi", b"Idempotency-Key:"), 400, "bad_request"),
    "a key of nobody": (post("echo", b"hi", b"Authorization: Bearer x"), 401, "unauthorized"),
    "another namespace": (post("echo", b"hi", b"Faasd-Namespace: b"), 404, "function_not_found"),
    "no namespace": (post("echo", b"hi", b"Faasd-Namespace: B_b"), 400, "bad_request"),
    "the page of another": (post("echo", b"hi", b"Origin: http://evil.example"), 403, "forbidden"),
    "another host": (_LINE + b"Host: evil.example\r\n" + _TWO, 403, "forbidden"),
    "an empty host": (_LINE + b"Host:\r\n" + _TWO, 403, "forbidden"),
    "two hosts in one": (_LINE + b"Host: 127.0.0.1, evil.example\r\n" + _TWO, 403, "forbidden"),
    "broken JSON": (
        post("echo", b"{hi", b"Content-Type: application/json"),
        400,
        "bad_request",
    ),
    "a body over the limit": (post("small", bytes(1_048_577)), 413, "body_too_large"),
    "a chunked body over the limit": (
        post_chunked("small", *[bytes(65_536)] * 17),
        413,
        "body_too_large",
    ),
    "GET": (make("GET /invoke/echo", b"hi"), 405, "bad_request"),
    "PUT": (make("PUT /invoke/echo", b"hi"), 405, "bad_request"),
    "DELETE": (make("DELETE /invoke/echo", b""), 405, "bad_request"),
    "PATCH": (make("PATCH /invoke/echo", b"hi"), 405, "bad_request"),
    "OPTIONS": (make("OPTIONS /invoke/echo", b""), 405, "bad_request"),
    "TRACE": (make("TRACE /invoke/echo", b""), 405, "bad_request"),
    "POST to another address": (make("POST /healthz", b"hi"), 405, "bad_request"),
    "an unknown address": (make("POST /v2", SMUGGLED), 404, "not_found"),
}


@pytest.mark.parametrize("case", ANSWERED.values(), ids=ANSWERED)
def test_what_cannot_be_served_is_told_once_and_the_next_request_is_served(
    platform: Platform, witness: Witness, case: tuple[bytes, int, str]
) -> None:
    raw, status, code = case
    for way, reply in _each_way(platform, witness, raw):
        assert (reply.status, reply.json()["code"]) == (status, code), way
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["request_id"] == reply.headers["faasd-request-id"]
        assert status != 405 or reply.headers["allow"] in {"POST", "GET"}


# Where HTTP lets a server choose, it must choose once.
EITHER = {
    "two blanks before the target": b"POST  /invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
    "two blanks after the target": b"POST /invoke/echo  HTTP/1.1\r\n" + HOST + _TWO,
    "a line feed before": b"\n" + _START + _TWO,
    "empty lines before": b"\r\n\r\n\r\n" + _START + _TWO,
    "a fragment": b"POST /invoke/echo#part HTTP/1.1\r\n" + HOST + _TWO,
    "a fragment after a query": b"POST /invoke/echo?mode=sync#mode=later HTTP/1.1\r\n"
    + HOST
    + _TWO,
    "what addresses may not hold": b'POST /invoke/echo?"<>{}|^` HTTP/1.1\r\n' + HOST + _TWO,
    "the mode twice": b"POST /invoke/echo?mode=sync&mode=later HTTP/1.1\r\n" + HOST + _TWO,
    "an extension of 20 KB": _CHUNKED + b"2;" + b"a" * 20_000 + b"\r\nhi\r\n0\r\n\r\n",
    "two user agents": _START + b"User-Agent: a\r\nUser-Agent: b\r\n" + _TWO,
    "two ids": _START + b"Faasd-Request-Id: a\r\nFaasd-Request-Id: b\r\n" + _TWO,
    "an old key of websockets": _START + b"Sec-WebSocket-Key1: x\r\n" + _TWO,
    **{
        f"a header of {size} bytes": _START + b"X-A: " + b"a" * (size - 5) + b"\r\n" + _TWO
        for size in range(8189, 8199)
    },
    **{
        f"{count} headers": _START + b"X-A: a\r\n" * (count - 2) + _TWO for count in range(127, 131)
    },
    **{
        f"a target of {size} bytes": b"POST /invoke/echo?"
        + b"q" * (size - 13)
        + b" HTTP/1.1\r\n"
        + HOST
        + _TWO
        for size in range(8188, 8193)
    },
}


@pytest.mark.parametrize("raw", EITHER.values(), ids=EITHER)
def test_what_may_be_refused_or_served_gets_the_same_whichever_way_it_comes(
    platform: Platform, witness: Witness, raw: bytes
) -> None:
    found = {}
    for way, (pieces, before) in ways(raw).items():
        replies = answers(platform, witness, *pieces)
        refusal = is_refusal(replies[before:])
        assert refusal or [reply.event for reply in replies[before:]] == ["hi", "last"], way
        found[way] = refusal

    assert len(set(found.values())) == 1, found


def by_id(cases: dict[str, tuple[bytes, str]]) -> list[Any]:
    """Requests that the server gets wrong, each with how it does."""
    return [
        pytest.param(raw, id=name, marks=pytest.mark.xfail(strict=True, reason=reason))
        for name, (raw, reason) in cases.items()
    ]


_VERSION = "aiohttp serves any protocol that its parser knows, and says its version back"
WRONGLY_SERVED = {
    "HTTP/2.0 in HTTP/1's words": (b"POST /invoke/echo HTTP/2.0\r\n" + HOST + _TWO, _VERSION),
    "HTTP/0.9 by name": (b"GET /healthz HTTP/0.9\r\n\r\n", _VERSION),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", _VERSION),
    "RTSP": (b"POST /invoke/echo RTSP/1.0\r\n" + HOST + _TWO, _VERSION),
    "a target on another host": (
        b"POST http://evil.example/invoke/echo HTTP/1.1\r\n" + HOST + _TWO,
        "the authority of an absolute target is not looked at, although it replaces Host",
    ),
    "a length of 8,000 digits": (
        _START + b"Content-Length: " + b"0" * 8000 + b"2\r\n\r\nhi",
        "aiohttp's parser takes it, int() does not: 500 and a traceback in the log",
    ),
}

NO_HOSTS = {
    "a user before the host": _LINE + b"Host: evil.example@127.0.0.1\r\n" + _TWO,
    "a path behind the host": _LINE + b"Host: 127.0.0.1/evil.example\r\n" + _TWO,
    "a port that is none": _LINE + b"Host: 127.0.0.1:evil\r\n" + _TWO,
}


@pytest.mark.parametrize(
    "raw",
    [*by_id(WRONGLY_SERVED), *(pytest.param(raw, id=name) for name, raw in NO_HOSTS.items())],
)
def test_what_is_not_for_us_is_refused(platform: Platform, witness: Witness, raw: bytes) -> None:
    for pieces, before in (([raw, LAST], 0), ([raw[:9], raw[9:], LAST], 0), ([FIRST, raw], 1)):
        with Wire.to(platform.url, patience_s=2) as wire:
            witness.deliver(wire, pieces)
            replies = wire.replies(before + 1)
        assert replies[before].status in _REFUSALS | {403}, replies
        assert replies[before].version in {"1.0", "1.1"}


def test_chunks_of_http_1_0_end_the_connection(platform: Platform, witness: Witness) -> None:
    """HTTP/1.0 has no chunks: whoever forwarded this may have seen another end of the body."""
    raw = post_chunked("echo", b"hi", lines=(b"Connection: keep-alive",)).replace(
        b"HTTP/1.1", b"HTTP/1.0"
    )

    replies = answers(platform, witness, raw, LAST)

    assert is_refusal(replies) or [reply.event for reply in replies] == ["hi"]


@pytest.mark.xfail(strict=True, reason="aiohttp logs each with its traceback, as plain text")
def test_a_log_is_not_filled_by_what_is_not_http(platform: Platform, witness: Witness) -> None:
    before = len(platform.log)

    for _ in range(20):
        assert is_refusal(answers(platform, witness, REFUSED["no colon"]))

    assert len(platform.log) - before <= 20
    assert all("level" in entry for entry in platform.log[before:])


def test_a_head_request_gets_a_head_alone(platform: Platform) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(make("HEAD /invoke/echo", b"") + make("HEAD /v1/functions", b"") + LAST)
        refused, found = wire.reply(to_head=True), wire.reply(to_head=True)

        assert (refused.status, refused.headers["allow"]) == (405, "POST")
        assert found.status in {200, 405}
        assert wire.reply().event == "last"


@pytest.mark.parametrize("expect", [b"100-continue", b"100-Continue"])
def test_who_expects_to_be_told_to_go_on_is_told(
    platform: Platform, witness: Witness, expect: bytes
) -> None:
    raw = post("echo", b"hi", b"Expect: " + expect)

    with Wire.to(platform.url) as wire:
        wire.send(raw[:-2])
        told = wire.response()
        wire.send(raw[-2:])
        reply = wire.reply()
        wire.send(LAST)
        last = wire.reply()

    assert (told.status, told.headers, reply.event, last.event) == (100, {}, "hi", "last")


def test_who_expects_to_be_told_to_send_chunks_is_told(platform: Platform) -> None:
    raw = post_chunked("echo", b"h", b"i", lines=(b"Expect: 100-continue",))
    end = raw.index(b"\r\n\r\n") + 4

    for before in (b"", FIRST):
        with Wire.to(platform.url) as wire:
            wire.send(before + raw[:end])
            if before:
                assert wire.reply().event == "first"
            assert wire.response().status == 100
            wire.send(raw[end:] + LAST)
            (reply,) = wire.replies_to_the_end()

        assert (reply.event, reply.headers["connection"]) == ("hi", "close")


@pytest.mark.parametrize("body", [b"hi", b""], ids=["with a body", "without"])
def test_who_expects_to_be_told_but_does_not_wait_is_served(
    platform: Platform, witness: Witness, body: bytes
) -> None:
    raw = post("echo", body, b"Expect: 100-continue")

    for pieces in ([raw, LAST], [raw + LAST], [raw[:60], raw[60:], LAST]):
        reply, last = answers(platform, witness, *pieces)

        assert (reply.event, last.event) == (body.decode() or None, "last")
        assert reply.interim <= 1


def test_http_1_0_is_not_told_to_go_on(platform: Platform) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(post("echo", b"hi", b"Expect: 100-continue", version=b"1.0"))
        (reply,) = wire.replies_to_the_end()

    assert (reply.event, reply.interim) == ("hi", 0)


@pytest.mark.xfail(
    strict=True, reason="aiohttp tells all to go on before a handler sees the request"
)
def test_a_body_that_will_be_refused_is_not_asked_for(platform: Platform) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(_START + b"Expect: 100-continue\r\nContent-Length: 1073741824\r\n\r\n")
        reply = wire.reply()

    assert (reply.status, reply.interim) == (413, 0)


@pytest.mark.xfail(strict=True, reason="aiohttp answers it in plain text, before any middleware")
def test_an_unknown_expectation_is_told_as_a_problem(platform: Platform, witness: Witness) -> None:
    reply, last = answers(platform, witness, post("echo", b"hi", b"Expect: tea"), LAST)

    assert (reply.status, last.event) == (417, "last")
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["faasd-request-id"] == reply.json()["request_id"]


@pytest.mark.parametrize(
    "lines",
    [
        [b"Connection: close"],
        [b"Connection: Close"],
        [b"connection:close"],
        [b"Connection: keep-alive, close"],
        [b"Connection: X-A , \tCLOSE,"],
        [b"Connection: keep-alive", b"Connection: close"],
    ],
    ids=["plain", "capital", "tight", "behind keep-alive", "in a list", "in a second line"],
)
def test_a_connection_ends_when_it_is_told_to(
    platform: Platform, witness: Witness, lines: list[bytes]
) -> None:
    raw = post("echo", b"hi", *lines)

    for before in ([], [FIRST], [make("GET /healthz", b"")]):
        for pieces in ([raw], [raw[:70], raw[70:]], [raw, SMUGGLED]):
            with Wire.to(platform.url) as wire:
                wire.send(b"".join(before))
                wire.replies(len(before))
                witness.deliver(wire, pieces)
                (reply,) = wire.replies_to_the_end()
            assert (reply.event, reply.headers["connection"]) == ("hi", "close")


@pytest.mark.parametrize("host", [HOST, b""], ids=["with a host", "without"])
def test_http_1_0_gets_one_reply_and_the_end(
    platform: Platform, witness: Witness, host: bytes
) -> None:
    raw = b"POST /invoke/echo HTTP/1.0\r\n" + host + _TWO

    for pieces in ([raw], [raw[:20], raw[20:]], [raw, SMUGGLED]):
        (reply,) = answers(platform, witness, *pieces)
        assert reply.event == "hi"
        assert reply.headers.get("connection", "close") == "close"


@pytest.mark.parametrize("asked", [b"keep-alive", b"Keep-Alive"])
def test_http_1_0_that_asks_to_stay_is_told_that_it_may(
    platform: Platform, witness: Witness, asked: bytes
) -> None:
    raw = post("echo", b"hi", b"Connection: " + asked, version=b"1.0")

    for pieces in ([raw, raw, LAST], [raw + raw + LAST]):
        *replies, last = answers(platform, witness, *pieces)
        assert [reply.event for reply in [*replies, last]] == ["hi", "hi", "last"]
        assert all(reply.headers["connection"].lower() == "keep-alive" for reply in replies)


def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_the_connection(
    platform: Platform,
) -> None:
    raw = post("items", b"3", b"Content-Type: application/json", version=b"1.0")
    with Wire.to(platform.url) as wire:
        wire.send(raw)
        reply = wire.reply()

    assert "transfer-encoding" not in reply.headers
    assert reply.body == b'{"item":0}\n{"item":1}\n{"item":2}\n'


@pytest.mark.xfail(
    strict=True,
    reason="it is told keep-alive and no length, and the connection stays open: nothing ends the body",
)
def test_a_stream_to_http_1_0_that_asks_to_stay_has_an_end(platform: Platform) -> None:
    lines = (b"Content-Type: application/json", b"Connection: keep-alive")
    with Wire.to(platform.url, patience_s=2) as wire:
        wire.send(post("items", b"3", *lines, version=b"1.0"))
        reply = wire.reply()

    assert reply.body == b'{"item":0}\n{"item":1}\n{"item":2}\n'


def test_a_compressed_body_reaches_the_function_as_it_was_sent(
    platform: Platform, witness: Witness
) -> None:
    body = gzip.compress(b"text " * 1000, mtime=0)
    raw = post("echo", body, b"Content-Encoding: gzip", b"Accept-Encoding: gzip, br")

    for pieces in ([raw, LAST], [raw[:-9], raw[-9:], LAST]):
        reply, _ = answers(platform, witness, *pieces)
        assert reply.event.encode("latin-1") == body
        assert reply.json()["headers"]["content-encoding"] == "gzip"
        assert "content-encoding" not in reply.headers


def test_an_id_given_by_the_caller_comes_back(platform: Platform, witness: Witness) -> None:
    raw = post("echo", b"hi", b"Faasd-Request-Id: order-66~!")

    for pieces in ([raw, LAST], [raw[:70], raw[70:], LAST], [FIRST + raw, LAST]):
        *_, reply, last = answers(platform, witness, *pieces)
        assert reply.headers["faasd-request-id"] == reply.json()["id"] == "order-66~!"
        assert reply.json()["headers"] == {}
        assert last.headers["faasd-request-id"] == last.json()["id"] != "order-66~!"


def test_no_two_requests_without_an_id_get_the_same(platform: Platform) -> None:
    with Wire.to(platform.url) as wire:
        wire.send(FIRST * 100)
        ids = {reply.headers["faasd-request-id"] for reply in wire.replies(100)}

    assert len(ids) == 100


@pytest.mark.xfail(strict=True, reason="only the last line does")
def test_both_lines_of_a_header_reach_the_function(platform: Platform, witness: Witness) -> None:
    raw = post("echo", b"hi", b"X-Forwarded-For: 10.0.0.1", b"x-forwarded-for: 10.0.0.2")

    for pieces in ([raw, LAST], [raw[:70], raw[70:], LAST]):
        reply, _ = answers(platform, witness, *pieces)
        assert reply.json()["headers"] == {"x-forwarded-for": "10.0.0.1, 10.0.0.2"}


def test_a_body_too_large_is_refused_before_it_comes_and_never_runs(
    platform: Platform, witness: Witness
) -> None:
    head = _START + b"Content-Length: 1073741824\r\n\r\n"

    for pieces in ([head], [head[:50], head[50:]], [head + SMUGGLED], [FIRST, head, SMUGGLED]):
        with Wire.to(platform.url) as wire:
            witness.deliver(wire, pieces)
            *_, refused = wire.replies(2 if pieces[0] == FIRST else 1)
            witness.deliver(wire, [SMUGGLED, LAST])
            wire.half_close()

            assert (refused.status, refused.json()["code"]) == (413, "body_too_large")
            assert wire.rest() == b""


@pytest.mark.parametrize("size", [b"40000000", b"7fffffffffffffff", b"ffffffffffffffff"])
@pytest.mark.parametrize("before", [b"", b"100000\r\n" + bytes(1 << 20) + b"\r\n"])
def test_a_giant_chunk_is_refused_by_its_size_and_nothing_of_it_runs(
    platform: Platform, witness: Witness, size: bytes, before: bytes
) -> None:
    head = post("small", b"", b"Transfer-Encoding: chunked")
    for pieces in ([head, before + size, b"\r\n"], [head + before + size + b"\r\n" + SMUGGLED]):
        with Wire.to(platform.url) as wire:
            witness.deliver(wire, [FIRST, *pieces])
            first, refused = wire.replies(2)
            wire.send(bytes(1 << 20) + SMUGGLED)

            assert first.event == "first"
            assert (refused.status, refused.json()["code"]) == (413, "body_too_large")
            assert refused.headers["connection"] == "close"
            assert wire.rest() == b""


def test_a_key_counts_for_its_own_request_alone(tmp_path: Path) -> None:
    with Platform(tmp_path) as guarded:
        admin = guarded.post("/v1/keys", {"name": "first", "role": "admin"}).json()["key"]
        guarded.key = admin
        guarded.must_deploy("echo", ECHO, limits={"max_instances": 1})
        there = {"name": "there", "role": "invoke", "namespace": "there"}
        keys = {
            name: guarded.post("/v1/keys", wanted).json()
            for name, wanted in {
                "here": {"name": "here"},
                "there": there,
                "removed": {"name": "gone"},
            }.items()
        }
        here, away, gone = (b"Bearer " + one["key"].encode() for one in keys.values())
        with Wire.to(guarded.url) as wire:
            wire.send(post("echo", b"hi", b"Authorization: " + gone))
            assert wire.reply().status == 200
        assert guarded.request("DELETE", f"/v1/keys/{keys['removed']['id']}").status == 204

        cases: list[tuple[tuple[bytes, ...], int]] = [
            ((b"Authorization: " + here,), 200),
            ((), 401),
            ((b"Authorization: " + away,), 404),
            ((b"Authorization: " + gone,), 401),
            ((b"authorization:" + here.replace(b"Bearer", b"bEARER") + b" ",), 200),
            ((b"Authorization: " + here[:-1],), 401),
            ((b"Authorization: " + here.replace(b"Bearer", b"Basic"),), 401),
            ((b"Authorization: Bearer",), 401),
            ((b"Authorization:",), 401),
            ((b"X-Authorization: " + here,), 401),
            ((b"Authorization: " + here, b"Faasd-Namespace: there"), 403),
            ((b"Authorization: " + away, b"Faasd-Namespace: default"), 403),
            ((b"Authorization: Bearer " + admin.encode(), b"Faasd-Namespace: there"), 404),
            ((b"Authorization: " + here, b"Faasd-Namespace: default"), 200),
            ((), 401),
        ]
        raws = [post("echo", b"hi", *lines) for lines, _ in cases]
        wanted = [status for _, status in cases]
        with Witness(guarded.url) as witness:
            halves = [half for raw in raws for half in (raw[:60], raw[60:])]
            for pieces in ([b"".join(raws)], raws, halves, [b"".join(reversed(raws))]):
                with Wire.to(guarded.url) as wire:
                    witness.deliver(wire, pieces)
                    found = [reply.status for reply in wire.replies(len(cases))]
                assert found in (wanted, wanted[::-1])
