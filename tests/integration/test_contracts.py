"""Functions with contracts other than the platform's own, through `faasd up`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.platform import Platform, refused

EXAMPLE = Path(__file__).parents[2] / "functions" / "examples" / "openwhisk-hello"
ACTION = """
import os

calls = 0

def main(args):
    global calls
    calls += 1
    if "web" in args:
        return {"statusCode": 201, "headers": {"X-Calls": calls}, "body": args["web"]}
    if "raise" in args:
        raise LookupError(args["raise"])
    if "error" in args:
        return {"error": args["error"]}
    print("activation", os.environ["__OW_ACTIVATION_ID"])
    return {"activation": os.environ["__OW_ACTIVATION_ID"], "name": os.environ["__OW_ACTION_NAME"]}
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("contracts")) as platform:
        platform.must_deploy("action", {"main.py": ACTION}, contract="openwhisk")
        yield platform


def test_an_openwhisk_action_serves_invocations_with_its_activation_told(
    platform: Platform,
) -> None:
    answer = platform.post("/invoke/action", {"n": 1}, {"Faasd-Request-Id": "one"})

    assert answer.status == 200
    assert answer.json() == {"activation": "one", "name": "/default/action"}
    printed = [entry["line"] for entry in platform.logs("action") if entry["request_id"] == "one"]
    assert printed == ["activation one"]


def test_the_example_action_answers_as_its_readme_says(platform: Platform) -> None:
    spec = tomllib.loads((EXAMPLE / "function.toml").read_text())
    platform.must_deploy(spec.pop("name"), {"main.py": (EXAMPLE / "main.py").read_text()}, **spec)

    answer = platform.post("/invoke/openwhisk-hello", {"name": "Ada"})
    failed = platform.post("/invoke/openwhisk-hello", {"name": 7})

    assert answer.json() == {"greeting": "Hello, Ada!"}
    assert (failed.status, failed.json()) == (502, {"error": "name must be text"})


def test_a_web_result_is_the_response(platform: Platform) -> None:
    answer = platform.post("/invoke/action", {"web": "<p>hello"})

    assert (answer.status, answer.body) == (201, b"<p>hello")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert int(answer.headers["x-calls"]) > 0


def test_an_application_error_is_the_actions_own_answer(platform: Platform) -> None:
    answer = platform.post("/invoke/action", {"error": "none left"})

    assert (answer.status, answer.json()) == (502, {"error": "none left"})


def test_an_exception_in_an_action_is_told_with_its_trace(platform: Platform) -> None:
    answer = platform.post("/invoke/action", {"raise": "weights"})

    problem = refused(answer, 500, "handler_error", "The function raised LookupError: weights.")
    assert 'raise LookupError(args["raise"])' in problem["traceback"]


@pytest.mark.parametrize("body", [b"[1]", b"7", b'"text"'])
def test_an_event_that_is_no_object_is_refused(platform: Platform, body: bytes) -> None:
    answer = platform.post("/invoke/action", body, {"Content-Type": "application/json"})

    refused(answer, 400, "bad_request", "An OpenWhisk action takes a JSON object")


def test_an_action_that_is_not_in_the_archive_is_refused_at_deploy(platform: Platform) -> None:
    answer = platform.deploy("lost", {"handler.py": "x = 1"}, contract="openwhisk")

    refused(answer, 422, "invalid_spec", "handler = 'main:main': there is no main.py")


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"image": "example:1"}, 'image = "example:1"'),
        ({"contract": "http", "image": "example:1"}, 'image = "example:1"'),
        ({"contract": "http", "command": ["./serve"]}, 'contract = "http"'),
        ({"contract": "lambda", "command": ["./bootstrap"]}, 'contract = "lambda"'),
        ({"network": "models"}, 'network = "models"'),
    ],
)
def test_what_needs_a_container_is_refused_where_there_is_none(
    platform: Platform, spec: dict[str, Any], wanted: str
) -> None:
    answer = platform.deploy("boxed", "def handle(event, context): return 1", **spec)

    problem = refused(answer, 422, "deploy_failed", f"{wanted} needs containers")
    assert "faasd up --runtime docker" in problem["remedy"]


def test_the_internet_is_not_refused_to_a_process_which_has_it(platform: Platform) -> None:
    code = "def handle(event, context): return 1"

    platform.must_deploy("open", code, network="internet")

    assert platform.post("/invoke/open").json() == 1
