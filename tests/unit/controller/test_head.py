"""Heads of plain invocations: whatever is taken for one means the same to aiohttp's parsers.

A head that two parsers read differently is how requests are smuggled. Here one parser hands over to
another in the midst of a connection, so that each must see what the other would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import http_parser
from aiohttp.base_protocol import BaseProtocol
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.auth import Caller
from controller.http.head import (
    EVENTS,
    NOT_PASSED_ON,
    UNSAID,
    Head,
    Heads,
    is_of_foreign_page,
    parse,
)
from controller.http.parameters import header_text
from controller.http.wishes import NONE, Wishes, wishes
from faasd.errors import BadRequest, Forbidden

START = b"POST /invoke/echo HTTP/1.1\r\nHost: 127.0.0.1\r\n"
NEXT = b"POST /invoke/next HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
# As the server has them.
_LONGEST_LINE = 8190

PARSERS: dict[str, Any] = {"Python": http_parser.HttpRequestParserPy}
if hasattr(http_parser, "HttpRequestParserC"):
    PARSERS["C"] = http_parser.HttpRequestParserC


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def read_by(
    kind: str, loop: asyncio.AbstractEventLoop, data: bytes
) -> list[tuple[Any, bytes | None]]:
    """The requests that a parser of aiohttp finds, each with its body. Raises what it raises."""
    protocol = BaseProtocol(loop)
    parser = protocol._parser = PARSERS[kind](
        protocol,
        loop,
        2**16,
        max_line_size=_LONGEST_LINE,
        max_field_size=_LONGEST_LINE,
        max_headers=128,
        auto_decompress=False,
    )
    messages, _upgraded, tail = parser.feed_data(data)
    assert not tail
    return [
        (message, payload.read_nowait() if payload.is_eof() else None)
        for message, payload in messages
    ]


def assert_agreed(loop: asyncio.AbstractEventLoop, raw: bytes) -> Head | None:
    """What `parse` says of a head, having found that aiohttp says the same or it says nothing."""
    head = parse(raw)
    if head is None:
        return None
    chunked = head.length == UNSAID
    body = b"x" * (3 if chunked else head.length)
    sent = b"3\r\nxxx\r\n0\r\n\r\n" if chunked else body
    for kind in PARSERS:
        found = read_by(kind, loop, raw + b"\r\n\r\n" + sent + NEXT)
        assert len(found) == 2, (kind, found)
        (message, read), (behind, _) = found
        assert (behind.method, behind.path) == ("POST", "/invoke/next"), kind
        assert read == body, kind
        assert_same(head, message)
    return head


def assert_same(head: Head, message: Any) -> None:
    assert (message.method, message.path) == ("POST", f"/invoke/{head.name}")
    assert message.version == (1, 1)
    assert [message.should_close, message.upgrade] == [False] * 2
    assert bool(message.chunked) == ("Transfer-Encoding" in message.headers)
    if message.chunked:
        assert "Content-Length" not in message.headers
        assert head.length == UNSAID
    else:
        assert int(message.headers.get("Content-Length", "0")) == head.length
    assert head.content_type == header_text(message.headers.get("Content-Type", ""))
    assert head.headers == {
        lowered: header_text(value)
        for name, value in message.headers.items()
        if (lowered := name.lower()) not in NOT_PASSED_ON
    }
    assert head.authorization == message.headers.get("Authorization")
    assert head.namespace == message.headers.get("Faasd-Namespace")
    assert head.events == (EVENTS in message.headers.get("Accept", ""))
    assert head.wishes == wishes(message.headers.get)
    deadline = message.headers.get("Faasd-Deadline-Ms")
    assert head.deadline_ms == (None if deadline is None else float(deadline))
    if head.authorization is None:
        assert is_of_foreign_page(message.headers.get) is None
    assert "Idempotency-Key" not in message.headers
    assert "Expect" not in message.headers


NAMES = [
    b"Content-Length", b"Content-Type", b"Transfer-Encoding", b"Connection", b"Host", b"Accept",
    b"Authorization", b"Expect", b"Upgrade", b"TE", b"Trailer", b"Origin", b"Cookie",
    b"User-Agent", b"Keep-Alive", b"Proxy-Connection", b"Content-Encoding", b"ETag", b"Server",
    b"X-Custom", b"Idempotency-Key", b"Sec-WebSocket-Key1", b"Date", b"Location",
    b"Faasd-Request-Id", b"Faasd-Namespace", b"Faasd-Deadline-Ms", b"Faasd-Priority",
    b"Faasd-Slo-Ms", b"Faasd-Tenant", b"Faasd-Session", b"Content-Range", b"Max-Forwards",
]  # fmt: skip
VALUES = [
    b"", b"0", b"2", b"3", b"02", b"+2", b"-0", b"2, 2", b"0x2", b"1_0", b"1e1", b"12345",
    b"chunked", b"identity", b"close", b"keep-alive", b"Keep-Alive", b"keep-alive, close",
    b"upgrade", b"websocket", b"100-continue", b"application/json", b"text/event-stream", b"*/*",
    b"127.0.0.1", b"localhost:8080", b"evil.example", b"http://localhost", b"null", b"default",
    b"Bearer fsd_x", b"gzip", b"a b\tc", b"nan", b"inf", b"5.5", b"\xc3\xa9", b"\xe9", b"a\x00b",
    b"x" * 200,
]  # fmt: skip
ENDS = [b"\r\n"] * 20 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\n\r\n"]
JOINTS = (
    [b": "] * 12 + [b":"] * 4 + [b" :", b"\t: ", b":  \t", b":\x0b", b": \x0c", b" : ", b"", b"="]
)
LINES = [b"POST /invoke/echo HTTP/1.1"] * 60 + [
    b"POST /invoke/a-b2 HTTP/1.1", b"POST /invoke/ HTTP/1.1", b"POST /invoke/.. HTTP/1.1",
    b"POST /invoke/a/b HTTP/1.1", b"POST /invoke/echo?mode=async HTTP/1.1",
    b"POST /invoke/echo# HTTP/1.1", b"POST /invoke/e%63ho HTTP/1.1", b"POST //invoke/echo HTTP/1.1",
    b"POST http://a/invoke/echo HTTP/1.1", b"GET /invoke/echo HTTP/1.1", b"post /invoke/echo HTTP/1.1",
    b"POST /invoke/echo HTTP/1.0", b"POST /invoke/echo HTTP/2.0", b"POST /invoke/echo",
    b"POST  /invoke/echo HTTP/1.1", b"POST /invoke/echo HTTP/1.1 ", b"\r\nPOST /invoke/echo HTTP/1.1",
]  # fmt: skip

_tokens = st.text("abcXYZ0189-_.!#$%&'*+^`|~", min_size=1, max_size=12).map(str.encode)
_texts = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20).map(
    lambda text: text.encode("latin-1")
)
_fields = st.tuples(
    st.sampled_from(NAMES) | _tokens,
    st.sampled_from(JOINTS),
    st.sampled_from(VALUES) | _texts,
    st.sampled_from([b"", b"", b"", b" ", b"\t", b" \t "]),
    st.sampled_from(ENDS),
).map(b"".join)

_usual = st.sampled_from([
    b"Content-Type: application/json", b"Accept: */*", b"User-Agent: a/1", b"X-A:\tb ", b"Via: c",
    b"Authorization: Bearer fsd_x", b"Connection: keep-alive", b"Faasd-Request-Id: 7",
    b"Faasd-Deadline-Ms: 500", b"Faasd-Namespace: team", b"Cookie: a=b", b"Origin: http://localhost",
    b"Accept: text/event-stream", b"Faasd-Priority: -1", b"Content-Encoding: gzip", b"Keep-Alive: 5",
]).map(lambda line: line + b"\r\n")  # fmt: skip


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads that are almost, or wholly, those of plain invocations."""
    fields = draw(st.lists(_fields, max_size=draw(st.sampled_from([0, 0, 1, 1, 5]))))
    usual = [b"Host: 127.0.0.1\r\n", b"Content-Length: 3\r\n", *draw(st.lists(_usual, max_size=3))]
    fields += usual[draw(st.sampled_from([0, 0, 0, 0, 0, 1])) :]
    raw = draw(st.sampled_from(LINES)) + b"\r\n" + b"".join(draw(st.permutations(fields)))
    raw = draw(st.sampled_from([raw] * 6 + [raw.lower(), raw.upper(), raw.title()]))
    if draw(st.integers(0, 2)) == 0:
        at, cut = draw(st.integers(0, len(raw))), draw(st.integers(0, 3))
        raw = raw[:at] + draw(st.binary(max_size=3)) + raw[at + cut :]
    # As they are cut out of what a connection brings.
    return raw.removesuffix(b"\r\n").split(b"\r\n\r\n")[0]


@settings(max_examples=1500, deadline=None)
@given(raw=heads())
@example(START + b"Accept: text/event-stream\r\nAccept: */*")
@example(START + b"Accept: */*\r\nAccept: text/event-stream")
@example(START + b"Origin: http://evil.example\r\nOrigin: http://localhost")
@example(START + b"Origin: http://localhost\r\nOrigin: http://evil.example")
@example(START + b"X-A: 1\r\nx-a: 2")
@example(START + b"User-Agent: a\r\nUser-Agent: b")
@example(START + b"Content-Encoding: gzip")
@example(START + b"Content-Length: 007")
@example(START + b"Transfer-Encoding: chunked")
@example(START + b"Transfer-Encoding: Chunked\r\nContent-Length: 3")
@example(START + b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip")
@example(START + b"Content-Length: 000000000003")
@example(START + b"Content-Length: 0000000000003")
@example(START + b"X-A: " + b"a" * 8180)
@example(START + b"X-A: " + b"a" * 8190)
@example(START + b"X-A: " + b"a" * 20_000)
@example(START + b"X-" + b"a" * 8190 + b": b")
@example(START + b"\r\n".join(b"X-%d: a" % n for n in range(62)))
@example(START + b"\r\n".join(b"X-%d: a" % n for n in range(200)))
@example(START + b"Sec-WebSocket-Key1: x")
@example(START + b"Proxy-Connection: close")
@example(START + b"Keep-Alive: timeout=5")
@example(START + b"Connection: keep-alive\r\nKeep-Alive: x")
def test_a_head_is_read_as_aiohttp_reads_it_or_left_to_it(
    loop: asyncio.AbstractEventLoop, raw: bytes
) -> None:
    assert_agreed(loop, raw)


_plain_fields = st.tuples(
    st.sampled_from([b"X-Custom", b"Accept", b"Content-Type", b"Cookie", b"Via"]) | _tokens,
    st.sampled_from([b":", b": ", b":\t"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=9).map(str.encode),
    st.sampled_from([b"", b" "]),
).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(
    length=st.integers(0, 70_000),
    fields=st.lists(_plain_fields, max_size=5, unique_by=lambda one: one.split(b":")[0].lower()),
)
def test_what_callers_usually_send_is_plain(
    loop: asyncio.AbstractEventLoop, length: int, fields: list[bytes]
) -> None:
    """Else the test before this one might be true of a parser that refuses everything."""
    asking = (b"te:", b"host:", b"expect:")
    fields = [one for one in fields if not one.lower().startswith(asking)]

    head = assert_agreed(loop, START + b"\r\n".join([*fields, b"Content-Length: %d" % length]))

    assert head is not None
    assert head.length == length


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0",
        b"Transfer-Encoding: chunked\r\nContent-Length: ",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: ",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked,",
        b"Transfer-Encoding: chunked;q=1",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked\r\nTrailer: X-A",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: chunked\r\nConnection: close",
        b"Content-Length: 2\r\nContent-Length: 2",
        b"Content-Length: 2\r\ncontent-length: 3",
        b"Content-Length: 1000000000000",
        b"Content-Length: ",
        b"Expect: 100-continue",
        b"Upgrade: websocket",
        b"Connection: close",
        b"Connection: upgrade",
        b"Connection: keep-alive\r\nConnection: close",
        b"TE: trailers",
        b"Trailer: X-A",
        b"Idempotency-Key: k",
        b"Host: localhost",
        b"Proxy-Connection: close",
        b"X-A: 1\r\nx-a: 2",
        b"Origin: http://evil.example",
        b"X-A: caf\xc3\xa9",
        b"X A: b",
        b" X-A: b",
        b"X-A : b",
        b"X-A",
        b": b",
        b"X-A: a\n b",
        b"Faasd-Priority: high",
        b"Faasd-Priority: 11",
        b"Faasd-Slo-Ms: 0",
        b"Faasd-Tenant: ",
        b"Faasd-Session: two words",
        b"Faasd-Session: a\r\nFaasd-Session: a",
        b"Faasd-Deadline-Ms: soon",
        b"Faasd-Deadline-Ms: 0",
        b"Faasd-Deadline-Ms: -5",
        b"Faasd-Deadline-Ms: nan",
        b"Faasd-Deadline-Ms: inf",
        b"Faasd-Namespace: ../x",
        b"Faasd-Namespace: ",
    ],
)
def test_what_needs_more_than_its_bytes_is_not_plain(lines: bytes) -> None:
    assert parse(START + b"X-Before: 1") is not None
    assert parse(START + lines) is None


@pytest.mark.parametrize(
    "line",
    [
        b"GET /invoke/echo HTTP/1.1",
        b"POST /invoke/echo HTTP/1.0",
        b"POST /invoke/echo?mode=async HTTP/1.1",
        b"POST /invoke/Echo HTTP/1.1",
        b"POST /invoke/-echo HTTP/1.1",
        b"POST /invoke/. HTTP/1.1",
        b"POST /invoke/.. HTTP/1.1",
        b"POST /invoke/echo/ HTTP/1.1",
        b"POST /invoke/" + b"e" * 64 + b" HTTP/1.1",
        b"POST /v1/keys HTTP/1.1",
        b"",
    ],
)
def test_what_is_no_plain_request_line_is_not_plain(line: bytes) -> None:
    assert parse(line + b"\r\nHost: localhost") is None


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        (b"127.0.0.1", True),
        (b"127.0.0.1:8080", True),
        (b"localhost:1", True),
        (b"[::1]:8080", True),
        (b"127.9.9.9", True),
        (b"10.0.0.1", False),
        (b"evil.example", False),
        (b"127.0.0.1.evil.example", False),
        (b"evil.example@127.0.0.1", False),
        (b"127.0.0.1/evil.example", False),
        (b"127.0.0.1:evil", False),
        (b"127.0.0.1?x", False),
        (b"127.0.0.1#x", False),
        (b"[::1", False),
        (b"", False),
    ],
)
def test_without_a_key_only_names_of_this_machine_are_plain(host: bytes, *, plain: bool) -> None:
    line = b"POST /invoke/echo HTTP/1.1\r\nHost: "

    assert (parse(line + host) is not None) == plain
    assert parse(line + host + b"\r\nAuthorization: Bearer fsd_x") is not None


@pytest.mark.parametrize(
    "line",
    [b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED", b"Transfer-Encoding: \tchunked "],
)
def test_a_body_in_chunks_may_be_plain(loop: asyncio.AbstractEventLoop, line: bytes) -> None:
    head = assert_agreed(loop, START + line + b"\r\nX-Own: a")

    assert head is not None
    assert (head.length, head.headers) == (UNSAID, {"x-own": "a"})


def test_what_a_head_says_is_kept_apart_from_what_the_function_sees() -> None:
    head = parse(
        START + b"Content-Length: 5\r\nContent-Type: text/plain\r\nAuthorization: Bearer s\r\n"
        b"Cookie: secret\r\nFaasd-Namespace: team\r\nFaasd-Request-Id: order-7\r\n"
        b"Faasd-Deadline-Ms: 250\r\nFaasd-Priority: -2\r\nFaasd-Slo-Ms: 100\r\n"
        b"Faasd-Session: s1\r\nAccept: text/event-stream\r\nConnection: Keep-Alive\r\nX-Own:  a b "
    )

    assert head == Head(
        name="echo",
        length=5,
        content_type="text/plain",
        headers={"accept": "text/event-stream", "x-own": "a b"},
        authorization="Bearer s",
        namespace="team",
        request_id="order-7",
        deadline_ms=250.0,
        events=True,
        wishes=Wishes(priority=-2, slo_s=0.1, session="s1"),
    )


@pytest.mark.parametrize("given_id", [b"", b"a b", b"...", b"x" * 129, b"a{b}"])
def test_an_id_that_is_none_is_not_taken_over(given_id: bytes) -> None:
    head = parse(START + b"Faasd-Request-Id: " + given_id)

    assert head is not None
    assert head.request_id is None


def test_heads_that_are_known_are_not_read_again() -> None:
    heads = Heads()

    assert heads.read(START + b"X-A: 1") is heads.read(START + b"X-A: 1")
    assert heads.read(START + b"X-A: 2") is not heads.read(START + b"X-A: 1")


def test_heads_that_are_not_plain_are_not_plain_the_second_time_either() -> None:
    heads = Heads()

    assert [heads.read(START + b"Expect: 100-continue") for _ in range(2)] == [None, None]


def test_what_is_remembered_of_heads_is_bounded() -> None:
    heads = Heads()
    long = START + b"X-A: " + b"a" * Heads.LONGEST

    for number in range(5 * Heads.MOST):
        assert heads.read(START + b"X-Number: %d" % number) is not None
        heads.read(b"garbage %d" % number)

    assert heads.read(long) is not heads.read(long)
    assert len(heads) <= Heads.MOST
    assert heads.read(START + b"X-Number: 7") is not None


@pytest.mark.parametrize(
    ("header", "text", "wish"),
    [
        ("faasd-priority", "0", Wishes(priority=0)),
        ("faasd-priority", "+10", Wishes(priority=10)),
        ("faasd-priority", "-10", Wishes(priority=-10)),
        ("faasd-slo-ms", "200", Wishes(slo_s=0.2)),
        ("faasd-slo-ms", "0.5", Wishes(slo_s=0.0005)),
        ("faasd-slo-ms", "1e9", Wishes(slo_s=1e6)),
        ("faasd-tenant", "a", Wishes(tenant="a")),
        ("faasd-tenant", "~" * 128, Wishes(tenant="~" * 128)),
        ("faasd-session", "user-7", Wishes(session="user-7")),
    ],
)
def test_a_wish_is_taken(header: str, text: str, wish: Wishes) -> None:
    assert wishes({header: text}.get) == wish


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("faasd-priority", ""),
        ("faasd-priority", "11"),
        ("faasd-priority", "-11"),
        ("faasd-priority", "1.0"),
        ("faasd-priority", "1_0"),
        ("faasd-priority", " 1"),
        ("faasd-priority", "\u0661"),
        ("faasd-priority", "0" * 4),
        ("faasd-slo-ms", ""),
        ("faasd-slo-ms", "0"),
        ("faasd-slo-ms", "-1"),
        ("faasd-slo-ms", "nan"),
        ("faasd-slo-ms", "inf"),
        ("faasd-slo-ms", "1e10"),
        ("faasd-slo-ms", "fast"),
        ("faasd-tenant", ""),
        ("faasd-tenant", "two words"),
        ("faasd-tenant", "x" * 129),
        ("faasd-tenant", "\u00e9"),
        ("faasd-session", ""),
        ("faasd-session", "a\tb"),
    ],
)
def test_a_wish_that_is_none_is_refused_with_what_would_be_one(header: str, text: str) -> None:
    with pytest.raises(BadRequest, match=f"(?i){header}") as refused:
        wishes({header: text}.get)

    assert refused.value.remedy


def test_who_says_nothing_wishes_nothing() -> None:
    nothing: dict[str, str] = {}

    assert wishes(nothing.get) is NONE
    assert NONE.of(Caller("invoke", "default", "key"), 3) == (None, 3, "key", "")


def test_anybody_may_step_back_but_not_before_others() -> None:
    caller = Caller("invoke", "default", "key")

    assert Wishes(priority=2).of(caller, 3)[1] == 2
    assert Wishes(priority=3).of(caller, 3)[1] == 3
    with pytest.raises(Forbidden, match="deploy"):
        Wishes(priority=4).of(caller, 3)


@pytest.mark.parametrize("role", ["deploy", "admin"])
def test_who_may_deploy_may_step_before_others(role: str) -> None:
    assert Wishes(priority=9).of(Caller(role, "default"), 0)[1] == 9


def test_only_an_admin_speaks_for_a_tenant() -> None:
    wish = Wishes(tenant="somebody")

    assert wish.of(Caller("admin", "default", "key"), 0)[2] == "somebody"
    for role in ("invoke", "deploy"):
        with pytest.raises(Forbidden, match="admin"):
            wish.of(Caller(role, "default", "key"), 0)


def test_anybody_names_an_slo_and_a_session() -> None:
    wish = Wishes(slo_s=0.1, session="s")

    assert wish.of(Caller("invoke", "default", "key"), 0) == (0.1, 0, "key", "s")
