"""docs/api.md, Invocations: each of its promises once, on a real platform."""

from __future__ import annotations

import base64
import gzip
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conformance import conforms, tells_its_cost, timings
from tests.platform import Answer, Platform, eventually, refused

ECHO = """
def handle(event, context):
    return event
"""
TYPE = """
def handle(event, context):
    return {"type": type(event).__name__, "content_type": context.content_type,
            "headers": context.headers, "request_id": context.request_id}
"""
RESPONSE = """
def handle(event, context):
    return context.response(**event)
"""
STREAM = """
import time
from pathlib import Path

def handle(event, context):
    yield {"n": 1}
    while not Path(event["gate"]).exists():
        time.sleep(0.005)
    yield "two"
    if event.get("fail"):
        raise ValueError("no three")
    yield {"n": 3}
"""
WAIT = """
import time
from pathlib import Path

def handle(event, context):
    Path(event["folder"], "entered").touch()
    while not Path(event["folder"], "gate").exists():
        time.sleep(0.005)
    return "through"
"""
COUNTED = """
from pathlib import Path

def handle(event, context):
    with Path(event["log"]).open("a") as log:
        log.write(f"{context.attempt}\\n")
    if event.get("until") and not Path(event["until"]).exists():
        raise RuntimeError(f"attempt {context.attempt} came too early")
    return {"attempt": context.attempt, "echo": event.get("echo")}
"""
FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "echo": (ECHO, {"limits": {"max_body_mb": 1}}),
    "type": (TYPE, {}),
    "response": (RESPONSE, {}),
    "stream": (STREAM, {}),
    "wait": (WAIT, {}),
    "narrow": (WAIT, {"limits": {"max_instances": 1, "queue": 0}}),
    "hasty": (WAIT, {"limits": {"timeout_s": 0.2}}),
    "counted": (COUNTED, {"retries": {"max_attempts": 2, "backoff_s": 0}}),
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform")) as platform:
        for name, (code, spec) in FUNCTIONS.items():
            platform.must_deploy(name, code, **spec)
        yield platform


def raw(platform: Platform, request: bytes) -> bytes:
    """The answer to bytes that no HTTP client would send."""
    host = urlsplit(platform.url)
    with socket.create_connection((host.hostname, host.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while received := connection.recv(65_536):
            answer += received
    return answer


def opened(
    platform: Platform, connection: Any, path: str, event: Any, **headers: str
) -> HTTPResponse:
    """A response whose body is still to be read."""
    connection.request(
        "POST", path, json.dumps(event), {"Content-Type": "application/json", **headers}
    )
    response: HTTPResponse = connection.getresponse()
    return response


def submit(platform: Platform, name: str, event: Any, **headers: str) -> str:
    """The id of an accepted asynchronous invocation."""
    answer = platform.post(f"/invoke/{name}?mode=async", event, headers)
    assert answer.status == 202, answer.body
    return str(conforms(answer.json(), "Submitted")["id"])


def settled(platform: Platform, identity: str, status: str) -> Any:
    """The asynchronous invocation once it has come to this status."""
    address = f"/v1/invocations/{identity}"
    assert eventually(lambda: platform.get(address).json()["status"] == status)
    return conforms(platform.get(address).json(), "Invocation")


# Request and response


def test_json_is_decoded_and_answered_as_json(platform: Platform) -> None:
    answer = platform.post("/invoke/echo", {"text": "größe", "n": [1, 2.5, None, True]})

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"text": "größe", "n": [1, 2.5, None, True]}


def test_text_is_a_str_both_ways(platform: Platform) -> None:
    answer = platform.request(
        "POST", "/invoke/echo", "größe".encode(), {"Content-Type": "text/plain"}
    )

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.decode() == "größe"


def test_everything_else_is_bytes_both_ways(platform: Platform) -> None:
    body = bytes(range(256)) * 4

    answer = platform.request("POST", "/invoke/echo", body, {"Content-Type": "image/x-own"})

    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.body == body


def test_no_body_is_none(platform: Platform) -> None:
    assert platform.post("/invoke/type").json()["type"] == "NoneType"


def test_a_compressed_body_reaches_the_function_as_it_was_sent(platform: Platform) -> None:
    body = gzip.compress(b"x" * 1000)

    answer = platform.post("/invoke/echo", body, {"Content-Encoding": "gzip"})

    assert answer.body == body


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_header_bytes_that_are_no_utf_8_are_read_as_latin_1(platform: Platform, mode: str) -> None:
    answer = raw(
        platform,
        b"POST /invoke/type?mode="
        + mode.encode()
        + b" HTTP/1.1\r\nHost: localhost\r\nX-Name: gr\xf6\xdfe"
        b"\r\nContent-Type: text/x-\xff\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
    )
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    if mode == "async":
        body = settled(platform, body["id"], "succeeded")["result"]["json"]

    assert body["headers"]["x-name"] == "größe"
    assert body["content_type"] == "text/x-ÿ"


def test_the_function_sees_the_callers_headers_but_not_the_credentials(platform: Platform) -> None:
    answer = platform.post(
        "/invoke/type", 1, {"X-Tenant": "a", "Cookie": "secret", "Faasd-Request-Id": "mine-1"}
    )

    seen = answer.json()
    assert seen["headers"]["x-tenant"] == "a"
    assert "cookie" not in seen["headers"]
    assert seen["request_id"] == answer.headers["faasd-request-id"] == "mine-1"


@pytest.mark.parametrize("given", ["", "..", "a b", "x" * 129, "{id}"])
def test_a_request_id_that_no_address_can_hold_is_replaced(platform: Platform, given: str) -> None:
    answer = platform.post("/invoke/echo", 1, {"Faasd-Request-Id": given})

    assert answer.status == 200
    assert len(answer.headers["faasd-request-id"]) == 32


def test_a_function_chooses_status_type_and_headers(platform: Platform) -> None:
    chosen = {"body": "tea", "status": 418, "content_type": "text/x-pot", "headers": {"X-A": "b"}}

    answer = platform.post("/invoke/response", chosen)

    assert (answer.status, answer.body) == (418, b"tea")
    assert answer.headers["content-type"] == "text/x-pot"
    assert answer.headers["x-a"] == "b"
    assert tells_its_cost(answer)


def test_a_function_cannot_speak_for_the_platform(platform: Platform) -> None:
    spoofed = {"Faasd-Start": "fast", "faasd-worker": "w", "Idempotency-Replayed": "true"}

    answer = platform.post("/invoke/response", {"body": "", "headers": spoofed})

    assert answer.headers["faasd-start"] != "fast"
    assert answer.headers["faasd-worker"] != "w"
    assert "idempotency-replayed" not in answer.headers


@pytest.mark.parametrize(
    "chosen",
    [
        {"headers": {"X-A": "b\rc"}},
        {"headers": {"X-A": "b\0c"}},
        {"headers": {"X A:": "b"}},
        {"headers": {"": "b"}},
        {"content_type": "a\r\nX-Injected: yes"},
    ],
)
def test_a_header_that_cannot_be_sent_is_the_functions_error(
    platform: Platform, chosen: dict[str, Any]
) -> None:
    answer = platform.post("/invoke/response", {"body": "x", **chosen})

    refused(answer, 500, "unserialisable_result", "response header")
    assert "x-injected" not in answer.headers
    assert tells_its_cost(answer)


# What an invocation cost


def test_every_answer_tells_what_it_cost(platform: Platform) -> None:
    revision = platform.get("/v1/functions/echo").json()["revision"]

    answer = platform.post("/invoke/echo", 1)

    assert tells_its_cost(answer)
    assert answer.headers["faasd-revision"] == revision
    assert timings(answer)["exec"] > 0


def test_an_error_of_the_function_has_its_traceback_and_its_cost(platform: Platform) -> None:
    answer = platform.post("/invoke/counted", {"log": "/dev/null", "until": "/nowhere"})

    problem = conforms(
        refused(answer, 500, "handler_error", "RuntimeError", "came too early"), "Problem"
    )
    assert 'handler.py", line' in problem["traceback"]
    assert not {"timings", "start", "worker", "revision"} & set(problem)
    assert tells_its_cost(answer)


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/invoke/nothing", {}, 404, "function_not_found"),
        ("/invoke/No_Name", {}, 400, "bad_request"),
        ("/invoke/echo?mode=later", {}, 400, "bad_request"),
        ("/invoke/echo", {"Faasd-Deadline-Ms": "soon"}, 400, "bad_request"),
        ("/invoke/echo", {"Faasd-Deadline-Ms": "nan"}, 400, "bad_request"),
        ("/invoke/echo", {"Faasd-Deadline-Ms": "0"}, 504, "deadline_exceeded"),
        ("/invoke/echo", {"Idempotency-Key": ""}, 400, "bad_request"),
        ("/invoke/echo", {"Idempotency-Key": "x" * 256}, 400, "bad_request"),
        ("/invoke/echo", {"Faasd-Namespace": "No Name"}, 400, "bad_request"),
    ],
)
def test_an_error_before_any_instance_has_a_start_of_none(
    platform: Platform, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = platform.post(path, 1, headers)

    conforms(refused(answer, status, code), "Problem")
    assert tells_its_cost(answer, reached=False)


def test_json_that_is_none_is_refused_by_the_instance(platform: Platform) -> None:
    answer = platform.request(
        "POST", "/invoke/echo", b'{"a":', {"Content-Type": "application/json"}
    )

    refused(answer, 400, "bad_request", "not JSON")
    assert tells_its_cost(answer)


def test_a_body_beyond_the_limit_is_refused(platform: Platform) -> None:
    answer = platform.post("/invoke/echo", bytes(1024 * 1024 + 1))

    problem = refused(answer, 413, "body_too_large", "1048576")
    assert "max_body_mb" in problem["remedy"]
    assert tells_its_cost(answer, reached=False)


def test_a_function_past_its_own_limit_is_stopped(platform: Platform, tmp_path: Path) -> None:
    answer = platform.post("/invoke/hasty", {"folder": str(tmp_path)})

    problem = refused(answer, 504, "function_timeout")
    assert "timeout_s" in problem["remedy"]
    assert tells_its_cost(answer)


def test_an_invocation_past_its_callers_deadline_is_stopped(
    platform: Platform, tmp_path: Path
) -> None:
    answer = platform.post("/invoke/wait", {"folder": str(tmp_path)}, {"Faasd-Deadline-Ms": "300"})

    refused(answer, 504, "deadline_exceeded")


def test_a_full_queue_sheds_at_the_door(platform: Platform, tmp_path: Path) -> None:
    event = {"folder": str(tmp_path)}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(platform.post, "/invoke/narrow", event)
        assert eventually(lambda: (tmp_path / "entered").exists())
        shed = platform.post("/invoke/narrow", event)
        (tmp_path / "gate").touch()

    refused(shed, 429, "queue_full")
    assert int(shed.headers["retry-after"]) >= 1
    assert first.result().body == b"through"


# Streams


def test_items_arrive_as_they_are_made(platform: Platform, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with platform.open_connection() as connection:
        response = opened(platform, connection, "/invoke/stream", {"gate": str(gate)})
        first = response.readline()
        gate.touch()
        rest = response.read()

    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert json.loads(first) == {"n": 1}
    assert rest == b'two{"n":3}\n'
    assert tells_its_cost(Answer(200, {k.lower(): v for k, v in response.getheaders()}, rest))


def test_items_are_server_sent_events_when_asked_for(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    answer = platform.post(
        "/invoke/stream", {"gate": str(tmp_path / "gate")}, {"Accept": "text/event-stream"}
    )

    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body == b'data: {"n":1}\n\ndata: two\n\ndata: {"n":3}\n\n'


def test_an_error_in_mid_stream_is_an_event(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    answer = platform.post(
        "/invoke/stream",
        {"gate": str(tmp_path / "gate"), "fail": True},
        {"Accept": "text/event-stream"},
    )

    *items, error = answer.body.decode().strip().split("\n\n")
    event, data = error.split("\n")
    assert items == ['data: {"n":1}', "data: two"]
    assert event == "event: error"
    problem = conforms(json.loads(data.removeprefix("data: ")), "Problem")
    assert problem["code"] == "handler_error"
    assert problem["request_id"] == answer.headers["faasd-request-id"]


def test_an_error_in_mid_stream_breaks_a_chunked_body_off(
    platform: Platform, tmp_path: Path
) -> None:
    (tmp_path / "gate").touch()
    with platform.open_connection() as connection:
        response = opened(
            platform, connection, "/invoke/stream", {"gate": str(tmp_path / "gate"), "fail": True}
        )
        with pytest.raises(IncompleteRead):
            response.read()


def test_a_caller_of_http_1_0_gets_its_stream_unchunked(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    event = json.dumps({"gate": str(tmp_path / "gate")}).encode()

    answer = raw(
        platform,
        b"POST /invoke/stream HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: "
        + str(len(event)).encode()
        + b"\r\n\r\n"
        + event,
    )

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert b"chunked" not in head.lower()
    assert body == b'{"n":1}\ntwo{"n":3}\n'


# Asynchronous


def test_an_accepted_invocation_is_found_at_its_location(platform: Platform) -> None:
    answer = platform.post("/invoke/echo?mode=async", {"text": "later"})

    told = conforms(answer.json(), "Submitted")
    assert (answer.status, told["status"]) == (202, "queued")
    assert answer.headers["location"] == told["url"] == f"/v1/invocations/{told['id']}"
    found = settled(platform, told["id"], "succeeded")
    assert (found["function"], found["namespace"]) == ("echo", "default")
    assert found["result"] == {
        "status": 200,
        "content_type": "application/json",
        "json": {"text": "later"},
    }
    assert found["start"] in {"warm", "fork"}
    assert found["timings"]["exec"] > 0
    assert [attempt["error"] for attempt in found["attempts"]] == [None]


@pytest.mark.parametrize("given", ["a/b", "50%", "?#&=", "a%2Fb"])
def test_a_request_id_is_the_invocations_id_whatever_its_characters(
    platform: Platform, given: str
) -> None:
    answer = platform.post("/invoke/echo?mode=async", 1, {"Faasd-Request-Id": given})

    assert platform.get(answer.headers["location"]).json()["id"] == given


def test_an_id_that_is_taken_is_a_conflict(platform: Platform) -> None:
    submit(platform, "echo", 1, **{"Faasd-Request-Id": "taken"})

    answer = platform.post("/invoke/echo?mode=async", 1, {"Faasd-Request-Id": "taken"})

    refused(answer, 409, "conflict", "taken")


@pytest.mark.parametrize(
    ("content_type", "body", "shown"),
    [
        ("text/plain", b"words", {"text": "words"}),
        ("image/png", b"\x89PNG\0", {"base64": base64.b64encode(b"\x89PNG\0").decode()}),
    ],
)
def test_a_result_is_kept_as_it_was_returned(
    platform: Platform, content_type: str, body: bytes, shown: dict[str, str]
) -> None:
    answer = platform.request(
        "POST", "/invoke/echo?mode=async", body, {"Content-Type": content_type}
    )
    identity = answer.json()["id"]

    result = settled(platform, identity, "succeeded")["result"]
    kept = platform.get(f"/v1/invocations/{identity}/result")

    assert {key: result[key] for key in shown} == shown
    assert (kept.status, kept.body) == (200, body)
    assert kept.headers["content-type"] == result["content_type"]


@pytest.mark.parametrize("text", ["[" * 50_000 + "]" * 50_000, "NaN"])
def test_a_result_that_only_claims_to_be_json_is_shown_as_bytes(
    platform: Platform, text: str
) -> None:
    identity = submit(platform, "response", {"body": text, "content_type": "application/json"})

    result = settled(platform, identity, "succeeded")["result"]

    assert base64.b64decode(result["base64"]).decode() == text


def test_a_result_is_a_conflict_while_it_is_not_there(platform: Platform, tmp_path: Path) -> None:
    identity = submit(platform, "wait", {"folder": str(tmp_path)})
    assert eventually(lambda: (tmp_path / "entered").exists())

    early = platform.get(f"/v1/invocations/{identity}/result")
    running = conforms(platform.get(f"/v1/invocations/{identity}").json(), "Invocation")
    (tmp_path / "gate").touch()

    refused(early, 409, "conflict", "running")
    assert (running["status"], running["result"]) == ("running", None)
    settled(platform, identity, "succeeded")
    assert platform.get(f"/v1/invocations/{identity}/result").body == b"through"


def test_a_failed_invocation_is_tried_again_then_dead_then_redriven(
    platform: Platform, tmp_path: Path
) -> None:
    marker, log = tmp_path / "marker", tmp_path / "log"
    identity = submit(platform, "counted", {"log": str(log), "until": str(marker)})
    address = f"/v1/invocations/{identity}"

    dead = settled(platform, identity, "dead")
    listed = platform.get("/v1/invocations?status=dead&function=counted").json()
    marker.touch()
    redriven = platform.post(f"{address}/redrive")
    alive = settled(platform, identity, "succeeded")

    assert [attempt["number"] for attempt in dead["attempts"]] == [1, 2]
    for attempt in dead["attempts"]:
        problem = conforms(attempt["error"], "Problem")
        assert (problem["code"], problem["request_id"]) == ("handler_error", identity)
    assert dead["result"] is None
    assert dead["finished_at"]
    assert identity in [one["id"] for one in conforms(listed, "Invocations")["invocations"]]
    assert redriven.status == 202
    assert conforms(redriven.json(), "InvocationSummary")["status"] == "queued"
    assert [attempt["number"] for attempt in alive["attempts"]] == [1, 2, 3]
    assert alive["result"]["json"]["attempt"] == 3
    assert log.read_text() == "1\n2\n3\n"


def test_only_a_dead_invocation_is_redriven(platform: Platform) -> None:
    identity = submit(platform, "echo", 1)
    settled(platform, identity, "succeeded")

    answer = platform.post(f"/v1/invocations/{identity}/redrive")

    refused(answer, 409, "conflict", "succeeded")


def test_an_error_of_the_request_is_not_tried_again(platform: Platform) -> None:
    answer = platform.request(
        "POST", "/invoke/echo?mode=async", b"{", {"Content-Type": "application/json"}
    )

    dead = settled(platform, answer.json()["id"], "dead")

    assert [attempt["error"]["code"] for attempt in dead["attempts"]] == ["bad_request"]


def test_invocations_are_listed_the_newest_first(platform: Platform) -> None:
    first, second = submit(platform, "type", 1), submit(platform, "type", 2)

    everything = platform.get("/v1/invocations?function=type&limit=2").json()["invocations"]
    newest = platform.get("/v1/invocations?function=type&limit=1").json()["invocations"]

    assert [one["id"] for one in everything] == [second, first]
    assert [one["id"] for one in newest] == [second]


@pytest.mark.parametrize(
    "query",
    [
        "status=finished",
        "function=No_Name",
        "limit=0",
        "limit=1001",
        "limit=ten",
        "limit=%C2%B2",
        "limit=0000000001009999999999",
    ],
)
def test_a_list_says_which_part_of_the_query_it_does_not_accept(
    platform: Platform, query: str
) -> None:
    refused(platform.get(f"/v1/invocations?{query}"), 400, "bad_request")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", "/result"), ("POST", "/redrive")]
)
def test_an_invocation_that_there_is_not(platform: Platform, method: str, path: str) -> None:
    answer = platform.request(method, f"/v1/invocations/nobody{path}")

    refused(answer, 404, "not_found", "nobody")


# Idempotency


def test_the_first_success_under_a_key_is_repeated(platform: Platform, tmp_path: Path) -> None:
    event = {"log": str(tmp_path / "log"), "echo": "once"}

    first = platform.post("/invoke/counted", event, {"Idempotency-Key": "sync"})
    second = platform.post("/invoke/counted", event, {"Idempotency-Key": "sync"})

    assert first.body == second.body
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["faasd-start"] == "none"
    assert second.headers["faasd-revision"] == first.headers["faasd-revision"]
    assert (tmp_path / "log").read_text() == "1\n"


def test_one_key_for_two_requests_is_refused(platform: Platform) -> None:
    platform.post("/invoke/echo", "one", {"Idempotency-Key": "two"})

    answer = platform.post("/invoke/echo", "other", {"Idempotency-Key": "two"})

    refused(answer, 422, "idempotency_mismatch")


def test_an_error_frees_its_key(platform: Platform, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    event = {"log": str(tmp_path / "log"), "until": str(marker)}

    failed = platform.post("/invoke/counted", event, {"Idempotency-Key": "freed"})
    marker.touch()
    passed = platform.post("/invoke/counted", event, {"Idempotency-Key": "freed"})

    assert (failed.status, passed.status) == (500, 200)
    assert "idempotency-replayed" not in passed.headers


def test_requests_under_one_key_at_once_share_one_run(platform: Platform, tmp_path: Path) -> None:
    event = {"log": str(tmp_path / "log"), "echo": 1}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: platform.post("/invoke/counted", event, {"Idempotency-Key": "shared"}),
                range(8),
            )
        )

    assert {answer.status for answer in answers} == {200}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 7
    assert (tmp_path / "log").read_text() == "1\n"


def test_a_stream_is_repeated_whole(platform: Platform, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    key = {"Idempotency-Key": "stream"}

    first = platform.post("/invoke/stream", {"gate": str(gate)}, key)
    gate.unlink()
    second = platform.post("/invoke/stream", {"gate": str(gate)}, key)

    assert first.body == second.body == b'{"n":1}\ntwo{"n":3}\n'
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["idempotency-replayed"] == "true"


def test_one_key_accepts_one_asynchronous_invocation(platform: Platform, tmp_path: Path) -> None:
    event = {"log": str(tmp_path / "log")}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: platform.post(
                    "/invoke/counted?mode=async", event, {"Idempotency-Key": "accepted"}
                ),
                range(8),
            )
        )

    assert {answer.status for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 7
    settled(platform, answers[0].json()["id"], "succeeded")
    assert (tmp_path / "log").read_text() == "1\n"
