"""docs/api.md, Functions and Cluster: each of its promises once, on a real platform."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from faasd.errors import BY_CODE
from faasd.telemetry import Metrics
from tests.conformance import conforms
from tests.platform import Answer, Platform, eventually, multipart, pack, refused

ONE = "def handle(event, context):\n    return 1\n"
TWO = "def handle(event, context):\n    return 2\n"
BROKEN = "import a_module_that_nobody_has\n\ndef handle(event, context):\n    return 3\n"
PRINTS = """
import sys

def handle(event, context):
    for n in range(event["lines"]):
        print("line", n)
    print("to the side", file=sys.stderr)
    return "done"
"""
ARTIFACT = """
def handle(event, context):
    with open(context.artifacts["words"]) as words:
        return words.read()
"""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


@pytest.fixture
def name() -> str:
    """A function's name that no other test uses."""
    return f"fn-{next(_numbers)}"


def put(
    platform: Platform,
    name: str,
    *,
    accept: str = "",
    **parts: tuple[str, bytes],
) -> Answer:
    form, content_type = multipart(**parts)
    headers = {"Content-Type": content_type, **({"Accept": accept} if accept else {})}
    return platform.request("PUT", f"/v1/functions/{name}", form, headers)


def spec_of(name: str, **spec: Any) -> tuple[str, bytes]:
    return ("application/json", json.dumps({"name": name, **spec}).encode())


def code_of(text: str) -> tuple[str, bytes]:
    return ("application/gzip", pack({"handler.py": text}))


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """Server-sent events: name and data."""
    found = []
    for block in body.decode().strip().split("\n\n"):
        event, data = block.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def next_log(response: HTTPResponse) -> Any:
    """The next line of a log that is followed."""
    assert response.readline() == b"event: log\n"
    data = response.readline().decode().removeprefix("data: ")
    assert response.readline() == b"\n"
    return conforms(json.loads(data), "LogLine")


def active(function: dict[str, Any]) -> list[str]:
    return [one["revision"] for one in function["revisions"] if one["active"]]


# Deploy


def test_a_deploy_answers_with_the_function(platform: Platform, name: str) -> None:
    answer = platform.deploy(name, ONE, limits={"timeout_s": 5})

    function = conforms(answer.json(), "Function")
    assert answer.status == 201
    assert (function["name"], function["namespace"]) == (name, "default")
    assert function["url"] == f"/invoke/{name}"
    assert function["spec"]["limits"]["timeout_s"] == 5
    assert active(function) == [function["revision"]]
    assert platform.post(function["url"]).json() == 1


def test_the_same_content_is_the_same_revision(platform: Platform, name: str) -> None:
    first = platform.deploy(name, ONE)
    again = platform.deploy(name, ONE)

    assert (first.status, again.status) == (201, 200)
    assert again.json()["revision"] == first.json()["revision"]
    assert len(again.json()["revisions"]) == 1


def test_other_content_is_another_revision_that_serves_from_then_on(
    platform: Platform, name: str
) -> None:
    first = platform.must_deploy(name, ONE)
    second = platform.must_deploy(name, TWO)

    assert [one["revision"] for one in second["revisions"]] == [
        first["revision"],
        second["revision"],
    ]
    assert active(second) == [second["revision"]]
    assert platform.post(f"/invoke/{name}").json() == 2


def test_a_spec_may_be_toml(platform: Platform, name: str) -> None:
    spec = f'name = "{name}"\n[limits]\ntimeout_s = 7\n'.encode()

    answer = put(platform, name, spec=("application/toml", spec), code=code_of(ONE))

    assert answer.status == 201
    assert answer.json()["spec"]["limits"]["timeout_s"] == 7


def test_a_spec_is_refused_by_the_key_at_fault(platform: Platform, name: str) -> None:
    answer = platform.deploy(name, ONE, limits={"timeout": 5})

    refused(answer, 422, "invalid_spec", "limits.timeout", "timeout_s")


def test_a_spec_of_another_name_is_refused(platform: Platform, name: str) -> None:
    answer = put(platform, name, spec=spec_of("another"), code=code_of(ONE))

    refused(answer, 400, "bad_request", "another", name)


def test_a_name_that_is_none_is_refused_with_what_to_correct(platform: Platform) -> None:
    answer = put(platform, "No_Name", spec=spec_of("x"), code=code_of(ONE))

    problem = refused(answer, 400, "bad_request", "No_Name")
    assert "function.toml" not in problem["remedy"]


def test_code_that_does_not_start_leaves_the_former_revision_serving(
    platform: Platform, name: str
) -> None:
    former = platform.must_deploy(name, ONE)

    answer = platform.deploy(name, BROKEN)

    conforms(refused(answer, 422, "deploy_failed", "a_module_that_nobody_has"), "Problem")
    assert platform.get(f"/v1/functions/{name}").json()["revision"] == former["revision"]
    assert platform.post(f"/invoke/{name}").json() == 1


def test_an_archive_that_is_none_is_refused(platform: Platform, name: str) -> None:
    answer = put(platform, name, spec=spec_of(name), code=("application/gzip", b"not a tar"))

    refused(answer, 422, "invalid_archive")


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"--b--\r\n",
        b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nX: " + b"y" * 20_000 + b"\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="artifacts"\r\n\r\n[]\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="artifacts"\r\n\r\n'
        + b"[" * 100_000
        + b"\r\n--b--\r\n",
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n",
    ],
)
def test_a_form_that_is_none_is_refused(platform: Platform, name: str, form: bytes) -> None:
    answer = platform.request(
        "PUT", f"/v1/functions/{name}", form, {"Content-Type": "multipart/form-data; boundary=b"}
    )

    refused(answer, 400, "bad_request")


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data"])
def test_a_body_that_is_no_form_is_refused(
    platform: Platform, name: str, content_type: str
) -> None:
    answer = platform.request("PUT", f"/v1/functions/{name}", b"{}", {"Content-Type": content_type})

    refused(answer, 400, "bad_request")


def test_a_deploy_tells_its_progress_and_ends_with_the_function(
    platform: Platform, name: str
) -> None:
    answer = put(platform, name, accept="text/event-stream", spec=spec_of(name), code=code_of(ONE))

    *steps, (last, function) = events_of(answer.body)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["faasd-request-id"]
    assert {event for event, _ in steps} == {"progress"}
    assert "template" in [conforms(data, "Progress")["stage"] for _, data in steps]
    assert last == "result"
    assert conforms(function, "Function")["name"] == name


def test_a_deploy_that_fails_ends_its_progress_with_the_problem(
    platform: Platform, name: str
) -> None:
    answer = put(
        platform, name, accept="text/event-stream", spec=spec_of(name), code=code_of(BROKEN)
    )

    event, problem = events_of(answer.body)[-1]
    assert (answer.status, event) == (200, "error")
    assert conforms(problem, "Problem")["code"] == "deploy_failed"
    assert problem["request_id"] == answer.headers["faasd-request-id"]


# Show, list, remove, roll back


def test_a_function_is_shown_with_its_instances(platform: Platform, name: str) -> None:
    platform.must_deploy(name, ONE)
    platform.post(f"/invoke/{name}")

    function = conforms(platform.get(f"/v1/functions/{name}").json(), "Function")

    assert function["instances"]["idle"] + function["instances"]["busy"] >= 1
    assert function["queued"] == 0


def test_functions_are_listed_by_name(platform: Platform, name: str) -> None:
    for suffix in ("b", "a"):
        platform.must_deploy(f"{name}-{suffix}", ONE)

    listed = conforms(platform.get("/v1/functions").json(), "Functions")["functions"]

    names = [conforms(function, "Function")["name"] for function in listed]
    assert names == sorted(names)
    assert {f"{name}-a", f"{name}-b"} <= set(names)


def test_a_removed_function_is_gone(platform: Platform, name: str) -> None:
    platform.must_deploy(name, ONE)

    removed = platform.request("DELETE", f"/v1/functions/{name}")

    assert (removed.status, removed.body) == (204, b"")
    assert removed.headers["faasd-request-id"]
    refused(platform.post(f"/invoke/{name}"), 404, "function_not_found", name)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/rollback"), ("GET", "/logs")],
)
def test_a_function_that_there_is_not(platform: Platform, method: str, path: str) -> None:
    answer = platform.request(method, f"/v1/functions/nobody{path}")

    refused(answer, 404, "function_not_found", "nobody")


def test_a_rollback_makes_another_revision_serve(platform: Platform, name: str) -> None:
    first = platform.must_deploy(name, ONE)
    second = platform.must_deploy(name, TWO)

    back = platform.post(f"/v1/functions/{name}/rollback", {"revision": first["revision"]})
    served = platform.post(f"/invoke/{name}").json()
    forth = platform.post(f"/v1/functions/{name}/rollback")

    assert active(conforms(back.json(), "Function")) == [first["revision"]]
    assert served == 1
    assert active(forth.json()) == [second["revision"]]
    assert platform.post(f"/invoke/{name}").json() == 2


def test_a_rollback_needs_a_revision_that_there_is(platform: Platform, name: str) -> None:
    platform.must_deploy(name, ONE)
    address = f"/v1/functions/{name}/rollback"

    refused(platform.post(address), 409, "conflict")
    refused(platform.post(address, {"revision": "000000000000"}), 404, "not_found", "000000000000")
    refused(platform.post(address, {"revision": 1}), 400, "bad_request")
    refused(platform.post(address, {"revison": "1"}), 400, "bad_request")
    refused(platform.post(address, b"["), 400, "bad_request", "not JSON")
    refused(platform.post(address, [1]), 400, "bad_request", "object")


def test_a_rollback_tells_its_progress(platform: Platform, name: str) -> None:
    platform.must_deploy(name, ONE)
    platform.must_deploy(name, TWO)

    answer = platform.post(f"/v1/functions/{name}/rollback", {}, {"Accept": "text/event-stream"})

    assert [event for event, _ in events_of(answer.body)][-1] == "result"


# Artifacts


def test_an_artifact_is_uploaded_once_and_read_by_the_function(
    platform: Platform, name: str
) -> None:
    content = f"words of {name}".encode()
    sha256 = hashlib.sha256(content).hexdigest()
    address = f"/v1/artifacts/{sha256}"
    parts: dict[str, Any] = {
        "spec": spec_of(name, artifacts={"words": "words.txt"}),
        "code": code_of(ARTIFACT),
        "artifacts": ("application/json", json.dumps({"words": sha256}).encode()),
    }

    before = platform.request("HEAD", address)
    early = put(platform, name, **parts)
    created = platform.request("PUT", address, content)
    known = platform.request("PUT", address, content)
    after = platform.request("HEAD", address)
    deployed = put(platform, name, **parts)

    assert (before.status, after.status) == (404, 200)
    refused(early, 409, "conflict", "words")
    assert (created.status, known.status) == (201, 200)
    assert conforms(created.json(), "Artifact") == known.json() == {"sha256": sha256}
    assert deployed.status == 201
    assert platform.post(f"/invoke/{name}").body == content


def test_an_upload_of_other_content_is_refused(platform: Platform) -> None:
    sha256 = hashlib.sha256(b"one").hexdigest()

    answer = platform.request("PUT", f"/v1/artifacts/{sha256}", b"other")

    refused(answer, 422, "digest_mismatch", sha256)
    assert platform.request("HEAD", f"/v1/artifacts/{sha256}").status == 404


def test_a_digest_that_is_none_is_refused(platform: Platform) -> None:
    refused(platform.request("PUT", "/v1/artifacts/ABC", b"x"), 400, "bad_request", "ABC")


def test_the_artifacts_of_spec_and_form_must_agree(platform: Platform, name: str) -> None:
    answer = put(
        platform,
        name,
        spec=spec_of(name, artifacts={"words": "words.txt"}),
        code=code_of(ARTIFACT),
    )

    refused(answer, 422, "invalid_spec", "words")


# Logs


def test_a_log_line_bears_the_request_that_printed_it(platform: Platform, name: str) -> None:
    function = platform.must_deploy(name, PRINTS)
    platform.post(f"/invoke/{name}", {"lines": 1}, {"Faasd-Request-Id": "printed-1"})

    lines = eventually(lambda: found if len(found := platform.logs(name)) == 2 else [])

    by_stream = {conforms(line, "LogLine")["stream"]: line for line in lines}
    assert by_stream["stdout"]["line"] == "line 0"
    assert by_stream["stderr"]["line"] == "to the side"
    assert {line["request_id"] for line in lines} == {"printed-1"}
    assert {line["function"] for line in lines} == {f"default/{name}"}
    assert {line["revision"] for line in lines} == {function["revision"]}


def test_a_log_ends_after_what_is_there(platform: Platform, name: str) -> None:
    platform.must_deploy(name, PRINTS)
    platform.post(f"/invoke/{name}", {"lines": 1999})

    assert eventually(lambda: len(platform.logs(name, tail=10_000)) == 2000)
    assert len(platform.logs(name, tail=1000)) == 1000
    assert len(platform.logs(name, tail=3)) == 3
    assert platform.logs(name, tail=0) == []


def test_a_log_that_is_followed_tells_what_is_printed_from_then_on(
    platform: Platform, name: str
) -> None:
    platform.must_deploy(name, PRINTS)
    platform.post(f"/invoke/{name}", {"lines": 1}, {"Faasd-Request-Id": "first"})
    assert eventually(lambda: len(platform.logs(name)) == 2)

    with platform.open_connection() as connection:
        connection.request("GET", f"/v1/functions/{name}/logs?follow=1&tail=2")
        response = connection.getresponse()
        there = [next_log(response), next_log(response)]
        platform.post(f"/invoke/{name}", {"lines": 0}, {"Faasd-Request-Id": "second"})
        printed = next_log(response)

    assert response.headers["Content-Type"] == "text/event-stream"
    assert {line["request_id"] for line in there} == {"first"}
    assert (printed["request_id"], printed["line"]) == ("second", "to the side")


@pytest.mark.parametrize("query", ["tail=-1", "tail=10001", "tail=x", "follow=maybe"])
def test_a_log_says_which_part_of_the_query_it_does_not_accept(
    platform: Platform, name: str, query: str
) -> None:
    platform.must_deploy(name, ONE)

    refused(platform.get(f"/v1/functions/{name}/logs?{query}"), 400, "bad_request")


# Cluster


def test_a_worker_is_shown_with_its_load(platform: Platform, name: str) -> None:
    platform.must_deploy(name, ONE)
    platform.post(f"/invoke/{name}")

    (worker,) = conforms(platform.get("/v1/workers").json(), "Workers")["workers"]

    conforms(worker, "Worker")
    assert worker["status"] == "up"
    assert worker["cpus"] >= 1
    assert worker["memory_mb"] > worker["memory_budget_mb"] > 0
    assert "python" in [runtime["name"] for runtime in worker["runtimes"]]
    assert f"default/{name}" in [function["function"] for function in worker["functions"]]


def test_a_worker_that_there_is_not_is_not_drained(platform: Platform) -> None:
    refused(platform.post("/v1/workers/nobody/drain"), 404, "not_found", "nobody")


def test_a_drained_worker_gets_nothing_new(tmp_path: Path) -> None:
    with Platform(tmp_path, env={"FAASD_WORKER_ID": "only"}) as platform:
        platform.must_deploy("fn", ONE)
        ready = platform.get("/readyz")

        drained = platform.post("/v1/workers/only/drain")

        assert (ready.status, ready.json()) == (200, {"status": "ok"})
        assert drained.status == 202
        assert conforms(drained.json(), "Draining")["id"] == "only"
        (worker,) = platform.get("/v1/workers").json()["workers"]
        assert worker["status"] == "draining"
        for answer in (platform.get("/readyz"), platform.post("/invoke/fn")):
            refused(answer, 503, "unavailable", "No worker")
            assert int(answer.headers["retry-after"]) >= 1
        assert platform.get("/healthz").json() == {"status": "ok"}


def test_every_metric_is_served_in_the_text_format(platform: Platform, name: str) -> None:
    platform.must_deploy(name, ONE)
    platform.post(f"/invoke/{name}")
    eventually(lambda: platform.get(f"/v1/functions/{name}").json()["instances"]["idle"])

    answer = platform.get("/metrics")

    text = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for family in Metrics().registry.collect():
        assert f"# TYPE {family.name}" in text
    labels = f'function="default/{name}"'
    assert f'faasd_requests_total{{{labels},mode="sync",outcome="ok"}} 1.0' in text
    assert f"faasd_request_seconds_count{{{labels}}} 1.0" in text
    assert f'faasd_phase_seconds_count{{{labels},phase="exec"}} 1.0' in text
    assert f'faasd_starts_total{{{labels},kind="warm"}} 1.0' in text
    assert 'faasd_workers{status="up"} 1.0' in text


def test_a_path_that_there_is_not_points_to_the_document(platform: Platform) -> None:
    problem = refused(platform.get("/v2/functions"), 404, "not_found", "/v2/functions")

    assert "/openapi.json" in problem["remedy"]


def test_a_method_that_is_not_accepted_names_those_that_are(platform: Platform) -> None:
    answer = platform.request("PATCH", "/v1/functions/x")

    assert answer.status == 405
    assert answer.headers["allow"] == "DELETE, GET, PUT"
    assert conforms(answer.json(), "Problem")["code"] in BY_CODE


def test_every_answer_bears_a_request_id(platform: Platform) -> None:
    for method, path in [
        ("GET", "/healthz"),
        ("GET", "/v1/functions"),
        ("GET", "/nowhere"),
        ("PATCH", "/healthz"),
        ("HEAD", f"/v1/artifacts/{'0' * 64}"),
    ]:
        answer = platform.request(method, path, headers={"Faasd-Request-Id": "given"})
        assert answer.headers["faasd-request-id"] == "given"
