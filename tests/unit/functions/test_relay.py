"""Functions that are HTTP servers: what passes between the worker's frames and the server."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import pytest

from functions.runtime import frames
from tests.unit.functions.nodes import Instance, Zygote, free_port

Reply = Callable[["Request"], Iterable[bytes]]
BIG = bytes(range(256)) * 16_384  # more than any socket buffers


class Request:
    """What the server got."""

    def __init__(self, first: str, headers: dict[str, str], body: bytes) -> None:
        self.first = first
        self.headers = headers
        self.body = body


class Server:
    """A server of raw bytes: one thread per connection, which ends with the reply."""

    def __init__(self, reply: Reply, port: int = 0) -> None:
        self.reply = reply
        self.requests: list[Request] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
        self._listener.close()
        self._accepting.join(30)
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as stream:
            try:
                first = stream.readline().decode().strip()
                if not first:
                    return
                headers = {}
                while line := stream.readline().decode().strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", 0)))
                request = Request(first, headers, body)
                self.requests.append(request)
                for piece in self.reply(request):
                    sock.sendall(piece)
            except OSError:
                return


def whole(
    body: bytes, status: str = "200 OK", headers: str = "Content-Type: text/plain\r\n"
) -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def http(server: Server, *, path: str = "/", ready: str | None = None) -> dict[str, object]:
    return {"port": server.port, "path": path, "ready": ready}


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("relay")) as zygote:
        yield zygote
        assert zygote.late_imports() == []


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(lambda _request: [whole(b"hello")]) as server:
        yield server


@pytest.fixture
def instance(zygote: Zygote, server: Server) -> Instance:
    template = zygote.template(contract="http", http=http(server), concurrency=8)
    return template.must_be_ready().instance()


def test_body_and_type_of_a_call_reach_the_server_untouched(
    instance: Instance, server: Server
) -> None:
    server.reply = lambda request: [whole(request.body)]

    answer = instance.call(b'{"a":  1}', content_type="application/json; charset=utf-8")

    assert answer.body == b'{"a":  1}'
    (request,) = [one for one in server.requests if one.body]
    assert request.first == "POST / HTTP/1.1"
    assert request.headers["content-type"] == "application/json; charset=utf-8"
    assert request.headers["faasd-request-id"] == "request-1"


def test_the_callers_headers_reach_the_server_but_for_those_of_the_connection(
    instance: Instance, server: Server
) -> None:
    given = {"x-tenant": "a", "accept": "text/plain", "te": "trailers", "host": "faasd.example"}

    instance.call(b"", headers=given)

    told = server.requests[-1].headers
    assert (told["x-tenant"], told["accept"]) == ("a", "text/plain")
    assert told["host"] == f"127.0.0.1:{server.port}"
    assert "te" not in told
    assert "content-type" not in told


def test_calls_go_to_the_path_that_the_spec_names(zygote: Zygote, server: Server) -> None:
    template = zygote.template(contract="http", http=http(server, path="/v1/predict?x=1"))

    template.must_be_ready().instance().call(b"x")

    assert server.requests[-1].first == "POST /v1/predict?x=1 HTTP/1.1"


def test_status_type_headers_and_body_come_back_untouched(
    instance: Instance, server: Server
) -> None:
    headers = (
        "Content-Type: image/png\r\nX-Model: m1\r\nVary: a\r\nVary: b\r\nConnection: close\r\n"
    )
    server.reply = lambda _request: [whole(b"\x89PNG\0", "418 I'm a teapot", headers)]

    answer = instance.call(b"x")

    assert (answer.status, answer.content_type, answer.body) == (418, "image/png", b"\x89PNG\0")
    assert answer.headers == {"x-model": "m1", "vary": "a, b"}


def test_an_answer_without_a_type_is_bytes(instance: Instance, server: Server) -> None:
    server.reply = lambda _request: [whole(b"x", headers="")]

    assert instance.call(b"").content_type == "application/octet-stream"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_has_no_body_ends_with_its_headers(
    instance: Instance, server: Server, status: str
) -> None:
    server.reply = lambda _request: [f"HTTP/1.1 {status}\r\n\r\n".encode()]

    answer = instance.call(b"x")

    assert (answer.kind, answer.status, answer.body) == ("result", int(status[:3]), b"")


def test_interim_answers_are_passed_over(instance: Instance, server: Server) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    server.reply = lambda _request: [early, whole(b"done")]

    assert instance.call(b"x").body == b"done"


def test_large_bodies_go_both_ways_at_once(instance: Instance, server: Server) -> None:
    server.reply = lambda request: [whole(request.body)]

    assert instance.call(BIG).body == BIG


def test_an_answer_that_comes_before_the_body_was_read_is_passed_on(zygote: Zygote) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        http = {"port": listener.getsockname()[1], "path": "/", "ready": None}
        template = zygote.template(contract="http", http=http)
        listener.accept()[0].close()
        instance = template.must_be_ready().instance()
        instance.send(BIG)
        connection, _address = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(whole(b"too large", "413 Content Too Large"))

            answer = instance.answer()

    assert (answer.status, answer.body) == (413, b"too large")


def test_chunks_come_as_the_server_sends_them(instance: Instance, server: Server) -> None:
    may_go_on: queue.Queue[bytes] = queue.Queue()

    def slowly(_request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 201 Created\r\nContent-Type: text/csv\r\nX-Rows: 2\r\n"
        yield b"Transfer-Encoding: chunked\r\n\r\n5;name=x\r\none, \r\n"
        yield may_go_on.get(timeout=30)
        yield b"0\r\nX-Trailer: 1\r\n\r\n"

    server.reply = slowly
    instance.send(b"x")

    assert instance.frame()[:1] + instance.frame()[2:] == ["start", b"one, "]
    may_go_on.put(b"4\r\ntwo.\r\n")
    assert instance.frame()[2] == b"two."
    assert instance.frame()[0] == "end"


def test_a_stream_has_the_status_type_and_headers_of_the_server(
    instance: Instance, server: Server
) -> None:
    head = b"HTTP/1.1 201 Created\r\nContent-Type: text/csv\r\nContent-Encoding: gzip\r\n"
    server.reply = lambda _request: [
        head,
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ]

    answer = instance.call(b"x")

    assert (answer.kind, answer.status, answer.content_type) == ("stream", 201, "text/csv")
    assert answer.headers == {"content-encoding": "gzip"}
    assert answer.body == b"ok"


def test_server_sent_events_stream_until_the_server_ends(
    instance: Instance, server: Server
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    server.reply = lambda _request: [head, b"data: 1\n\n", b"data: 2\n\n"]

    answer = instance.call(b"x", events=True)

    assert (answer.kind, answer.content_type) == ("stream", "text/event-stream")
    assert answer.body == b"data: 1\n\ndata: 2\n\n"


def test_one_instance_has_several_calls_under_way(instance: Instance, server: Server) -> None:
    together = threading.Barrier(8)

    def meet(request: Request) -> list[bytes]:
        together.wait(30)
        return [whole(request.body)]

    server.reply = meet
    for number in range(8):
        instance.send(str(number).encode())

    assert sorted(instance.answer().body for _ in range(8)) == [b"%d" % n for n in range(8)]


def test_a_caller_that_goes_away_closes_the_servers_connection(
    instance: Instance, server: Server
) -> None:
    gone = threading.Event()
    reached = threading.Event()

    def endless(_request: Request) -> Iterator[bytes]:
        reached.set()
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        try:
            while True:
                yield b"data: more\n\n"
        finally:
            gone.set()

    server.reply = endless
    call = instance.send(b"x")
    assert reached.wait(30)
    instance.cancel(call)

    assert instance.answer().problem["code"] == "cancelled"
    assert gone.wait(30)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "speaks no HTTP: its message begins with 'SSH-2.0"),
        (b"HELO there you\r\n\r\n", "speaks no HTTP: its answer begins with 'HELO there you'"),
        (b"HTTP/1.1 999 Odd\r\n\r\n", "speaks no HTTP: its answer has status 999"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "'-1' is no Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "amid its answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 21), "its headers do not end"),
    ],
)
def test_a_server_that_does_not_answer_is_named(
    instance: Instance, server: Server, answer: bytes, words: str
) -> None:
    server.reply = lambda _request: [answer]

    problem = instance.call(b"x").problem

    assert (problem["code"], problem["type"]) == ("handler_error", "ServerFailed")
    assert f"the server at 127.0.0.1:{server.port} " in problem["message"]
    assert words in problem["message"]
    server.reply = lambda _request: [whole(b"again")]
    assert instance.call(b"x").body == b"again"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (b"5\r\nab", "amid its answer"),
        (b"zz\r\n", "b'zz' is no length of a chunk"),
        (b"2\r\nabcd\r\n", "a chunk is longer than was said"),
    ],
)
def test_a_stream_that_breaks_off_ends_in_an_error(
    instance: Instance, server: Server, rest: bytes, words: str
) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    server.reply = lambda _request: [head + rest]

    answer = instance.call(b"x")

    assert (answer.kind, answer.chunks[0]) == ("error", b"abc")
    assert words in answer.problem["message"]


def test_a_server_that_is_gone_is_named(instance: Instance, server: Server) -> None:
    server.stop()

    problem = instance.call(b"x").problem

    assert problem["message"] == (
        f"the server at 127.0.0.1:{server.port} takes no connections: Connection refused"
    )


def test_a_server_that_starts_late_is_waited_for(zygote: Zygote) -> None:
    port = free_port()
    template = zygote.template(contract="http", http={"port": port, "path": "/", "ready": None})

    with Server(lambda _request: [whole(b"late")], port):
        assert template.must_be_ready().instance().call(b"x").body == b"late"


def test_a_path_decides_when_the_server_is_ready(zygote: Zygote) -> None:
    asked = threading.Semaphore(0)
    warm = threading.Event()

    def reply(request: Request) -> list[bytes]:
        if request.first == "GET /healthz HTTP/1.1":
            asked.release()
            return [whole(b"", "200 OK" if warm.is_set() else "503 Service Unavailable")]
        return [whole(b"served")]

    with Server(reply) as server:
        template = zygote.template(contract="http", http=http(server, ready="/healthz"))
        assert all(asked.acquire(timeout=30) for _ in range(3))
        warm.set()
        assert template.must_be_ready().instance().call(b"x").body == b"served"


def test_a_server_that_does_not_come_up_is_refused_with_what_it_did(zygote: Zygote) -> None:
    port = free_port()
    wanted = {"port": port, "path": "/", "ready": None}
    template = zygote.template(contract="http", http=wanted, load_timeout_s=1.0)

    kind, refusal = template.said()

    assert (kind, refusal["phase"], refusal["type"]) == ("refused", "server", "NotReady")
    assert refusal["message"] == (
        f"its server at 127.0.0.1:{port} was not ready within 1 s ([limits] load_timeout_s): "
        "Connection refused (it must listen on $PORT)"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (whole(b"", "500 Oh"), "it answered with status 500"),
        (b"", "it closed the connection"),
        (b"hello\r\n\r\n", "its message begins with 'hello'"),
    ],
)
def test_a_server_that_never_becomes_ready_is_refused_with_its_answer(
    zygote: Zygote, answer: bytes, words: str
) -> None:
    with Server(lambda _request: [answer]) as server:
        wanted = http(server, ready="/ready")
        template = zygote.template(contract="http", http=wanted, load_timeout_s=1.0)

        message = template.said()[1]["message"]

    assert f"127.0.0.1:{server.port}/ready was not ready" in message
    assert words in message


def test_a_server_that_hangs_while_it_is_asked_is_refused(zygote: Zygote) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        http = {"port": listener.getsockname()[1], "path": "/", "ready": "/ready"}
        template = zygote.template(contract="http", http=http, load_timeout_s=0.3)

        assert template.said()[1]["message"].endswith("load_timeout_s): it did not answer")


def test_an_instance_that_ends_leaves_its_template(zygote: Zygote, server: Server) -> None:
    template = zygote.template(contract="http", http=http(server)).must_be_ready()
    instance = template.instance()
    instance.close()

    assert template.said() == ["exited", instance.pid, 0]
    assert template.instance().call(b"x").body == b"hello"


def test_an_instance_that_is_killed_takes_its_template_along(
    zygote: Zygote, server: Server
) -> None:
    template = zygote.template(contract="http", http=http(server)).must_be_ready()
    instance = template.instance()
    instance.kill()

    assert template.said() == ["exited", instance.pid, 9]
    with pytest.raises(frames.Closed):
        template.said()
