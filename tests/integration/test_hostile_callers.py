"""Callers that send nonsense, too much, too late, twice, or leave: on the real platform.

Each gets one clear problem, and the callers beside it notice nothing.
"""

from __future__ import annotations

import itertools
import json
import socket
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.platform import Answer, Platform, eventually, refused

JSON = {"Content-Type": "application/json"}

# Runs until a file named `go` is in the event's folder, and notes its beginning and its end there.
GATED = """
import os, time

def note(folder, word):
    with open(os.path.join(folder, word), "a") as file:
        file.write("x")

def handle(event, context):
    if event is None:
        return "fine"
    note(event["folder"], event.get("name", "") + "started")
    try:
        while not os.path.exists(os.path.join(event["folder"], "go")):
            time.sleep(0.01)
    except BaseException as error:
        note(event["folder"], type(error).__name__)
        raise
    return "served"
"""

# Counts its runs in the event's file.
COUNTED = """
def handle(event, context):
    with open(event["file"], "a") as file:
        file.write("x")
    if event.get("fail"):
        raise ValueError("not yet")
    return event.get("answer", "counted")
"""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("hostile-callers")
    with Platform(folder, env={"FAASD_WORKER_CANCEL_GRACE_S": "0.3"}) as platform:
        platform.must_deploy("healthy", "def handle(event, context):\n    return event\n")
        platform.must_deploy("counted", COUNTED)
        platform.must_deploy(
            "small", "def handle(event, context):\n    return event\n", limits={"max_body_mb": 1}
        )
        yield platform


@pytest.fixture(autouse=True)
def _service_stays_up(platform: Platform) -> Iterator[None]:
    seen = len(platform.log)
    yield
    assert platform.process is not None
    assert platform.process.poll() is None
    assert platform.post("/invoke/healthy", {"n": 1}).json() == {"n": 1}
    assert [entry for entry in platform.log[seen:] if entry.get("level") == "error"] == []


def deploy(platform: Platform, code: str, **spec: Any) -> str:
    name = f"called-{next(_numbers)}"
    platform.must_deploy(name, textwrap.dedent(code), **spec)
    return f"/invoke/{name}"


def deploy_gated(platform: Platform, **limits: Any) -> str:
    return deploy(platform, GATED, limits={"max_instances": 1, **limits})


def raw(platform: Platform, request: bytes, *, half_closed: bool = False) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    host = urlsplit(platform.url)
    with socket.create_connection((host.hostname, host.port), timeout=60) as connection:
        connection.sendall(request)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
    return answer


def queued(platform: Platform, path: str) -> int:
    name = path.removeprefix("/invoke/")
    return int(platform.get(f"/v1/functions/{name}").json()["queued"])


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_body_over_the_limit_is_refused_by_its_announced_length(platform: Platform) -> None:
    answer = platform.post("/invoke/small", bytes(2 << 20))

    problem = refused(answer, 413, "body_too_large", "1048576", "max_body_mb = 1")
    assert "max_body_mb" in problem["remedy"]


def test_a_body_over_the_limit_is_refused_when_it_comes_in_chunks(platform: Platform) -> None:
    with platform.open_connection() as connection:
        connection.request("POST", "/invoke/small", iter([bytes(1 << 18)] * 8))
        response = connection.getresponse()
        headers = {key.lower(): value for key, value in response.getheaders()}
        answer = Answer(response.status, headers, response.read())

    problem = refused(answer, 413, "body_too_large", "1048576")
    assert "max_body_mb" in problem["remedy"]


def test_a_body_at_the_limit_is_served(platform: Platform) -> None:
    body = bytes(1 << 20)

    assert platform.post("/invoke/small", body).body == body


@pytest.mark.parametrize(
    "body",
    [b"{not json", b'{"open": ', b"\xff\xfe\xfd", b'"\xff"', b"[" * 100_000, b"1" * 5000, b"NaN"],
    ids=["words", "unfinished", "no text", "bad utf-8", "deep", "a huge number", "not a number"],
)
@pytest.mark.parametrize("kind", ["application/json", "application/problem+json"])
def test_a_body_that_is_not_the_json_it_claims_is_the_callers_error(
    platform: Platform, body: bytes, kind: str
) -> None:
    answer = platform.post("/invoke/healthy", body, {"Content-Type": kind})

    refused(answer, 400, "bad_request", "not JSON")


@pytest.mark.parametrize(
    ("charset", "body"),
    [
        ("utf-8", b"\xff"),
        ("klingon", b"qapla"),
        ("zlib", b"x"),
        ("undefined", b"x"),
        ("idna", b"\xff"),
        ("punycode", b"\xff-"),
        ("utf-16", b"odd"),
    ],
)
def test_text_in_a_charset_that_does_not_fit_is_the_callers_error(
    platform: Platform, charset: str, body: bytes
) -> None:
    kind = f"text/plain; charset={charset}"

    answer = platform.post("/invoke/healthy", body, {"Content-Type": kind})

    refused(answer, 400, "bad_request", "not text", charset)


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain; charset=latin-1; format=flowed",
        'text/plain; format=flowed; Charset="latin-1"',
        "Text/Plain;charset=LATIN-1",
    ],
)
def test_parameters_of_a_content_type_come_in_any_order_and_case(
    platform: Platform, kind: str
) -> None:
    answer = platform.post("/invoke/healthy", b"caf\xe9", {"Content-Type": kind})

    assert answer.body.decode() == "café"


@pytest.mark.parametrize("kind", [";;;", "application/", "/", "json", "a" * 4000, "text/plain; ="])
def test_a_content_type_that_says_nothing_leaves_the_body_as_it_is(
    platform: Platform, kind: str
) -> None:
    answer = platform.post("/invoke/healthy", b"as it is", {"Content-Type": kind})

    assert (answer.status, answer.body) == (200, b"as it is")


def test_an_unknown_function_is_not_found(platform: Platform) -> None:
    problem = refused(
        platform.post("/invoke/nobody", {}), 404, "function_not_found", "'nobody'", "'default'"
    )

    assert "faasd ls" in problem["remedy"]


@pytest.mark.parametrize("name", ["Upper", "a_b", "-a", "a" * 64, "%2e%2e", "a%00b", "%ff"])
def test_a_name_that_cannot_be_one_is_refused(platform: Platform, name: str) -> None:
    refused(platform.post(f"/invoke/{name}", {}), 400, "bad_request", "is not a name")


def test_a_full_queue_sheds_and_serves_the_others(platform: Platform, tmp_path: Path) -> None:
    path = deploy_gated(platform, queue=2)
    event = {"folder": str(tmp_path)}

    with ThreadPoolExecutor(5) as threads:
        served = [threads.submit(platform.post, path, event)]
        assert eventually((tmp_path / "started").exists)
        served += [threads.submit(platform.post, path, event) for _ in range(2)]
        assert eventually(lambda: queued(platform, path) == 2)
        shed = [platform.post(path, event) for _ in range(3)]
        (tmp_path / "go").touch()

    for answer in shed:
        problem = refused(answer, 429, "queue_full", "2 invocations are waiting")
        assert int(answer.headers["retry-after"]) >= 1
        assert problem["retryable"] is True
        assert "[limits] queue" in problem["remedy"]
        assert "queue;dur=" in answer.headers["server-timing"]
        assert answer.headers["faasd-start"] == "none"
    assert [future.result().body for future in served] == [b"served"] * 3
    assert length(tmp_path / "started") == 3


def test_without_a_queue_only_free_instances_take_calls(platform: Platform, tmp_path: Path) -> None:
    path = deploy_gated(platform, queue=0)
    event = {"folder": str(tmp_path)}

    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(platform.post, path, event)
        assert eventually((tmp_path / "started").exists)
        refused(platform.post(path, event), 429, "queue_full")
        (tmp_path / "go").touch()

    assert served.result().body == b"served"


@pytest.mark.parametrize("deadline", ["0", "-5", "-0.0"])
def test_a_deadline_that_has_passed_runs_nothing(
    platform: Platform, tmp_path: Path, deadline: str
) -> None:
    counter = tmp_path / "runs"

    answer = platform.post(
        "/invoke/counted", {"file": str(counter)}, {"Faasd-Deadline-Ms": deadline}
    )

    problem = refused(answer, 504, "deadline_exceeded", "had passed")
    assert "Faasd-Deadline-Ms" in problem["remedy"]
    assert length(counter) == 0


def test_a_deadline_that_passes_in_the_queue_drops_the_invocation(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy_gated(platform)
    event = {"folder": str(tmp_path)}

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(platform.post, path, event)
        assert eventually((tmp_path / "started").exists)
        answer = platform.post(path, {**event, "name": "late-"}, {"Faasd-Deadline-Ms": "100"})
        (tmp_path / "go").touch()

    problem = refused(answer, 504, "deadline_exceeded", "while it waited")
    assert "Faasd-Deadline-Ms" in problem["remedy"]
    assert first.result().body == b"served"
    assert platform.post(path).body == b"fine"
    assert not (tmp_path / "late-started").exists()


def test_a_deadline_that_passes_while_it_runs_stops_the_handler(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy_gated(platform)

    answer = platform.post(path, {"folder": str(tmp_path)}, {"Faasd-Deadline-Ms": "1500"})

    refused(answer, 504, "deadline_exceeded", "while it ran")
    assert eventually((tmp_path / "InvocationCancelled").exists)
    assert platform.post(path).body == b"fine"


@pytest.mark.parametrize(
    "value", ["soon", "", "nan", "inf", "-inf", "1e400", "0x10", "1,5", "9" * 400]
)
def test_a_deadline_that_is_no_number_is_refused(platform: Platform, value: str) -> None:
    answer = platform.post("/invoke/healthy", 1, {"Faasd-Deadline-Ms": value})

    problem = refused(answer, 400, "bad_request", "Faasd-Deadline-Ms")
    assert "500" in problem["remedy"]


@pytest.mark.parametrize(
    "request_head",
    [
        b"POST /invoke/healthy HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /invoke/healthy HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /invoke/healthy HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /invoke/healthy HTTP/1.1\r\nHost: x\r\nno colon here\r\n\r\n",
        b"POST /invoke/healthy HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"POST /invoke/healthy HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
        b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /invoke/healthy HTTP/9.9\r\n\r\n",
    ],
    ids=[
        "negative length",
        "two lengths",
        "bad chunk",
        "no colon",
        "NUL",
        "endless header",
        "endless address",
        "TLS",
        "a future HTTP",
    ],
)
def test_what_is_not_http_is_refused_without_words_of_ours(
    platform: Platform, request_head: bytes
) -> None:
    answer = raw(platform, request_head)

    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"Traceback" not in answer


def test_a_body_that_ends_too_early_runs_nothing(platform: Platform, tmp_path: Path) -> None:
    body = json.dumps({"file": str(tmp_path / "runs")}).encode()
    head = (
        b"POST /invoke/counted HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % (len(body) + 1)
    )

    raw(platform, head + body, half_closed=True)

    assert platform.post("/invoke/counted", {"file": str(tmp_path / "next")}).status == 200
    assert not (tmp_path / "runs").exists()


# Yields 64 KB at a time and writes how many it has yielded into the event's file.
FLOWING = """
import os

def handle(event, context):
    if event is None:
        yield "fine"
        return
    chunk = bytes(65_536)
    for number in range(event["chunks"]):
        with open(event["file"] + ".part", "w") as file:
            file.write(str(number))
        os.rename(event["file"] + ".part", event["file"])
        yield chunk
"""


def test_a_slow_reader_slows_the_generator_instead_of_filling_the_server(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy(platform, FLOWING, limits={"max_instances": 1})
    progress = tmp_path / "progress"
    chunks = 4096
    body = json.dumps({"file": str(progress), "chunks": chunks})

    with platform.open_connection() as connection:
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.request("POST", path, body, JSON)
        response = connection.getresponse()
        assert eventually(progress.exists)
        stalled_at = _stall(platform, progress)
        total = sum(len(part) for part in iter(lambda: response.read(1 << 20), b""))

    assert stalled_at < chunks // 4
    assert total == chunks * 65_536
    assert int(progress.read_text()) == chunks - 1


def _stall(platform: Platform, progress: Path) -> int:
    """Where the generator stands once it does not advance over fifty invocations of another."""
    unchanged, last = 0, -1
    while unchanged < 50:
        assert platform.post("/invoke/healthy", 1).status == 200
        now = int(progress.read_text())
        unchanged, last = (unchanged + 1 if now == last else 0), now
    return last


def test_a_reader_that_leaves_in_mid_stream_frees_the_instance(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy(platform, FLOWING, limits={"max_instances": 1})
    progress = tmp_path / "progress"

    with platform.open_connection() as connection:
        event = {"file": str(progress), "chunks": 1_000_000}
        connection.request("POST", path, json.dumps(event), JSON)
        response = connection.getresponse()
        assert len(response.read(1 << 20)) == 1 << 20
        response.close()

    assert platform.post(path).body == b"fine"
    assert int(progress.read_text()) < 999_999


def test_a_handler_whose_caller_leaves_sees_an_exception(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy_gated(platform)

    with platform.open_connection() as connection:
        connection.request("POST", path, json.dumps({"folder": str(tmp_path)}), JSON)
        assert eventually((tmp_path / "started").exists)

    assert eventually((tmp_path / "InvocationCancelled").exists)
    assert platform.post(path).body == b"fine"


def test_an_async_handler_whose_caller_leaves_is_cancelled_alone(
    platform: Platform, tmp_path: Path
) -> None:
    code = """
    import asyncio, pathlib
    async def handle(event, context):
        folder = pathlib.Path(event["folder"])
        (folder / (event["name"] + "started")).touch()
        try:
            while not (folder / "go").exists():
                await asyncio.sleep(0.01)
        except BaseException as error:
            (folder / type(error).__name__).touch()
            raise
        return "served"
    """
    path = deploy(platform, code, limits={"concurrency": 2, "max_instances": 1})
    event = {"folder": str(tmp_path), "name": "stays-"}

    with ThreadPoolExecutor(1) as threads:
        stays = threads.submit(platform.post, path, event)
        assert eventually((tmp_path / "stays-started").exists)
        with platform.open_connection() as connection:
            connection.request("POST", path, json.dumps({**event, "name": "leaves-"}), JSON)
            assert eventually((tmp_path / "leaves-started").exists)
        assert eventually((tmp_path / "CancelledError").exists)
        (tmp_path / "go").touch()

    assert stays.result().body == b"served"


def test_an_invocation_whose_caller_leaves_while_it_waits_never_runs(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy_gated(platform)
    event = {"folder": str(tmp_path)}

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(platform.post, path, event)
        assert eventually((tmp_path / "started").exists)
        with platform.open_connection() as connection:
            connection.request("POST", path, json.dumps({**event, "name": "left-"}), JSON)
            assert eventually(lambda: queued(platform, path) == 1)
        assert eventually(lambda: queued(platform, path) == 0)
        (tmp_path / "go").touch()

    assert first.result().body == b"served"
    assert platform.post(path).body == b"fine"
    assert not (tmp_path / "left-started").exists()


@pytest.mark.parametrize("mode", ["later", "", "SYNC", "async%00"])
def test_an_unknown_mode_is_refused(platform: Platform, mode: str) -> None:
    problem = refused(platform.post(f"/invoke/healthy?mode={mode}", 1), 400, "bad_request", "mode")

    assert "sync, async" in problem["remedy"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/invoke/healthy", {"POST"}),
        ("DELETE", "/invoke/healthy", {"POST"}),
        ("POST", "/v1/functions/healthy", {"DELETE", "GET", "HEAD", "PUT"}),
        ("PATCH", "/healthz", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_is_not_accepted_is_told_which_are(
    platform: Platform, method: str, path: str, allowed: set[str]
) -> None:
    answer = platform.request(method, path)

    problem = refused(answer, 405, "bad_request", method)
    assert set(answer.headers["allow"].split(", ")) <= allowed
    assert "Use " in problem["remedy"]


@pytest.mark.parametrize("path", ["/", "/invoke/", "/invoke/a/b", "/v2", "/..%2f..%2fetc/passwd"])
def test_an_unknown_address_is_not_found(platform: Platform, path: str) -> None:
    problem = refused(platform.post(path, 1), 404, "not_found", "nothing at")

    assert "/openapi.json" in problem["remedy"]


def test_an_idempotency_key_belongs_to_one_body(platform: Platform, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    key = {"Idempotency-Key": "one-body"}
    first = platform.post("/invoke/counted", {"file": str(counter), "answer": 1}, key)

    again = platform.post("/invoke/counted", {"file": str(counter), "answer": 1}, key)
    other = platform.post("/invoke/counted", {"file": str(counter), "answer": 2}, key)

    assert (first.json(), again.json()) == (1, 1)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    problem = refused(other, 422, "idempotency_mismatch", "Idempotency-Key")
    assert "new Idempotency-Key" in problem["remedy"]
    assert length(counter) == 1


def test_duplicates_that_arrive_together_run_once(platform: Platform, tmp_path: Path) -> None:
    path = deploy(platform, GATED, limits={"max_instances": 4})
    event, key = {"folder": str(tmp_path)}, {"Idempotency-Key": "together"}

    with ThreadPoolExecutor(4) as threads:
        calls: list[Future[Answer]] = [
            threads.submit(platform.post, path, event, key) for _ in range(4)
        ]
        assert eventually((tmp_path / "started").exists)
        mismatch = platform.post(path, {**event, "name": "other-"}, key)
        (tmp_path / "go").touch()

    answers = [call.result() for call in calls]
    assert [answer.body for answer in answers] == [b"served"] * 4
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [
        False,
        True,
        True,
        True,
    ]
    refused(mismatch, 422, "idempotency_mismatch")
    assert length(tmp_path / "started") == 1


def test_a_failure_frees_its_idempotency_key(platform: Platform, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    key = {"Idempotency-Key": "failed-first"}

    failed = platform.post("/invoke/counted", {"file": str(counter), "fail": True}, key)
    worked = platform.post("/invoke/counted", {"file": str(counter)}, key)

    refused(failed, 500, "handler_error", "not yet")
    assert worked.body == b"counted"
    assert "idempotency-replayed" not in worked.headers
    assert length(counter) == 2


def test_a_caller_that_leaves_hands_its_idempotency_key_on(
    platform: Platform, tmp_path: Path
) -> None:
    path = deploy_gated(platform)
    event, headers = {"folder": str(tmp_path)}, {"Idempotency-Key": "handed-on"}

    with ThreadPoolExecutor(1) as threads:
        with platform.open_connection() as connection:
            connection.request("POST", path, json.dumps(event), {**JSON, **headers})
            assert eventually((tmp_path / "started").exists)
            second = threads.submit(platform.post, path, event, headers)
        assert eventually((tmp_path / "InvocationCancelled").exists)
        (tmp_path / "go").touch()

    assert second.result().body == b"served"
    assert length(tmp_path / "started") == 2


@pytest.mark.parametrize("key", ["", "k" * 256])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_idempotency_key_of_no_sensible_length_is_refused(
    platform: Platform, key: str, mode: str
) -> None:
    answer = platform.post(f"/invoke/healthy?mode={mode}", 1, {"Idempotency-Key": key})

    problem = refused(answer, 400, "bad_request", "Idempotency-Key")
    assert "255" in problem["remedy"]


@pytest.mark.parametrize("name", ["X-Name", "Content-Type", "Accept", "Cookie"])
def test_a_header_that_is_no_utf_8_does_no_harm(platform: Platform, name: str) -> None:
    answer = platform.post("/invoke/healthy", b"as it is", {name: "caf\xe9"})

    assert (answer.status, answer.body) == (200, b"as it is")


@pytest.mark.parametrize("given", ["r" * 129, "caf\xe9", "tab\there", ""])
def test_a_request_id_that_cannot_be_used_is_replaced(platform: Platform, given: str) -> None:
    answer = platform.post("/invoke/healthy", 1, {"Faasd-Request-Id": given})

    assert answer.status == 200
    assert answer.headers["faasd-request-id"] != given
    assert answer.headers["faasd-request-id"].isalnum()


@pytest.mark.parametrize("given", ["order 66", "a/b", "..", "a?b#c", "{x}"])
def test_an_accepted_asynchronous_invocation_can_be_found_where_it_says(
    platform: Platform, given: str
) -> None:
    accepted = platform.post("/invoke/healthy?mode=async", 1, {"Faasd-Request-Id": given})

    assert accepted.status == 202
    found = platform.get(accepted.headers["location"])
    assert found.status == 200
    assert found.json()["id"] == accepted.json()["id"]


@pytest.mark.parametrize(
    "reply",
    [
        "context.response('x', headers={'X-A': 'b\\r\\nSet-Cookie: stolen=1'})",
        "context.response('x', headers={'X-A': 'b\\nSet-Cookie: stolen=1'})",
        "context.response('x', headers={'X-A': 'b\\rSet-Cookie: stolen=1'})",
        "context.response('x', headers={'X-A\\r\\nSet-Cookie': 'stolen=1'})",
        "context.response('x', headers={'X A': 'b'})",
        "context.response('x', headers={'X-A: b, Set-Cookie': 'stolen=1'})",
        "context.response('x', headers={'': 'b'})",
        "context.response('x', headers={'X-A': 'b\\0c'})",
        "context.response('x', headers={'X-A': '\\ud800'})",
        "context.response('x', headers={'X-A': 5})",
        "context.response('x', content_type='text/plain\\r\\nSet-Cookie: stolen=1')",
        "context.response('x', content_type='text/plain\\nSet-Cookie: stolen=1')",
        "context.response('x', content_type=5)",
    ],
)
def test_headers_that_cannot_be_sent_are_the_functions_error(
    platform: Platform, reply: str
) -> None:
    code = f"def handle(event, context):\n    return {reply} if event else 'fine'\n"
    path = deploy(platform, code)

    answer = platform.post(path, True)

    refused(answer, 500, "unserialisable_result", "response header")
    assert "set-cookie" not in answer.headers
    assert platform.post(path).body == b"fine"


def test_headers_that_belong_to_the_platform_cannot_be_forged(platform: Platform) -> None:
    code = """
    def handle(event, context):
        names = ["Faasd-Request-Id", "faasd-start", "Faasd-Worker", "faasd-revision",
                 "Server-Timing", "Content-Length", "Transfer-Encoding", "Connection",
                 "Idempotency-Replayed"]
        headers = {name: "forged" for name in names}
        return context.response("true", headers={**headers, "X-Mine": "kept"})
    """
    path = deploy(platform, code)

    with platform.open_connection() as connection:
        connection.request("POST", path)
        response = connection.getresponse()
        headers = response.getheaders()
        body = response.read()

    assert (response.status, body) == (200, b"true")
    assert ("X-Mine", "kept") in headers
    assert [name for name, value in headers if "forged" in value] == []


def test_answers_without_a_body_stay_without_one(platform: Platform) -> None:
    code = """
    def handle(event, context):
        return context.response("not to be seen", status=event)
    """
    path = deploy(platform, code)

    with platform.open_connection() as connection:
        for status in (204, 304):
            connection.request("POST", path, str(status), JSON)
            response = connection.getresponse()
            assert (response.status, response.read()) == (status, b"")


def parallel(*calls: Callable[[], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def test_many_callers_at_once_each_get_their_own_answer(platform: Platform) -> None:
    answers = parallel(
        *(lambda number=number: platform.post("/invoke/healthy", number) for number in range(64))
    )

    assert [answer.json() for answer in answers] == list(range(64))
