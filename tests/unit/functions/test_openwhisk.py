"""Actions as OpenWhisk calls them: what they get, what their results stand for."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest

from functions.runtime import codec, openwhisk
from tests.unit.functions.nodes import Answer, Zygote

ACTION = """
    import os

    def main(args):
        if args.get("fail"):
            raise ValueError(args["fail"])
        names = ["ACTION_NAME", "ACTION_VERSION", "ACTIVATION_ID", "DEADLINE", "NAMESPACE"]
        return {"args": args, **{name: os.environ["__OW_" + name] for name in names}}
"""


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("openwhisk")) as zygote:
        yield zygote


def call(zygote: Zygote, body: bytes, **meta: Any) -> Answer:
    template = zygote.template({"main.py": ACTION}, contract="openwhisk", handler="main:main")
    return template.must_be_ready().instance().call(body, content_type="application/json", **meta)


def test_an_action_gets_the_object_and_returns_one(zygote: Zygote) -> None:
    answer = call(zygote, b'{"name": "x"}')

    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.json()["args"] == {"name": "x"}


def test_an_action_is_told_of_its_activation(zygote: Zygote) -> None:
    before = time.time()

    told = call(zygote, b"{}", request_id="r7", remaining_s=5).json()

    assert told["ACTIVATION_ID"] == "r7"
    assert (told["NAMESPACE"], told["ACTION_NAME"]) == ("default", "/default/tested")
    assert told["ACTION_VERSION"] == "abc123abc123"
    assert before + 4 < int(told["DEADLINE"]) / 1000 <= time.time() + 5


def test_each_activation_is_told_of_itself(zygote: Zygote) -> None:
    template = zygote.template({"main.py": ACTION}, contract="openwhisk", handler="main:main")
    instance = template.must_be_ready().instance()

    told = [instance.call(b"", request_id=one).json()["ACTIVATION_ID"] for one in ("a", "b")]

    assert told == ["a", "b"]


def test_an_exception_is_told_with_its_trace(zygote: Zygote) -> None:
    problem = call(zygote, b'{"fail": "no"}').problem

    assert (problem["code"], problem["type"]) == ("handler_error", "ValueError")
    assert 'raise ValueError(args["fail"])' in problem["traceback"]
    assert "openwhisk.py" not in problem["traceback"]


def test_a_module_called_main_may_be_the_archives_own(zygote: Zygote) -> None:
    template = zygote.template(
        {"__main__.py": "def main(args): return {'where': __file__[-11:], 'name': __name__}"},
        contract="openwhisk",
        handler="__main__:main",
    )

    told = template.must_be_ready().instance().call(b"").json()

    assert told == {"where": "__main__.py", "name": "__main__"}


def test_a_helper_that_is_called_load_is_not_taken_for_a_hook(zygote: Zygote) -> None:
    code = """
        loaded = []

        def load(path):
            raise OSError(path)

        def warm_up(context):
            loaded.append(context.function)

        def main(args):
            return {"loaded": loaded}
    """
    named = {"contract": "openwhisk", "handler": "main:main"}

    plain = zygote.template({"main.py": code}, **named).must_be_ready().instance()
    warmed = zygote.template({"main.py": code}, **named, load="main:warm_up").must_be_ready()

    assert plain.call(b"").json() == {"loaded": []}
    assert warmed.instance().call(b"").json() == {"loaded": ["default/tested"]}


def test_what_an_action_imports_is_found_in_its_sandbox(zygote: Zygote) -> None:
    code = "import turtledemo\ndef main(args): return {}"

    zygote.template({"main.py": code}, contract="openwhisk", handler="main:main").must_be_ready()

    assert "turtledemo" in zygote.late_imports()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("async def main(args): ...", "TypeError", "a plain function, main(args)"),
        ("def main(args): yield {}", "TypeError", "a plain function, main(args)"),
        ("def handle(args): ...", "AttributeError", "no function 'main'; it has handle"),
        ("import nothing_of_the_kind", "ModuleNotFoundError", "nothing_of_the_kind"),
    ],
)
def test_what_is_no_action_is_refused(zygote: Zygote, code: str, kind: str, words: str) -> None:
    template = zygote.template({"main.py": code}, contract="openwhisk", handler="main:main")

    said, refusal = template.said()

    assert (said, refusal["phase"], refusal["type"]) == ("refused", "import", kind)
    assert words in refusal["message"]


def test_no_body_is_no_arguments() -> None:
    assert openwhisk.arguments(None) == {}


@pytest.mark.parametrize("event", ["text", [1], b"bytes", 1, True])
def test_an_event_that_is_no_object_is_refused(event: Any) -> None:
    with pytest.raises(codec.BadEvent, match="takes a JSON object, sent as application/json, not"):
        openwhisk.arguments(event)


def said(result: Any) -> tuple[int, str, dict[str, str], bytes]:
    return codec.encode(openwhisk.response(result))


def test_a_result_with_an_error_is_an_application_error() -> None:
    assert said({"error": {"why": "no"}}) == (
        502, "application/json", {}, b'{"error":{"why":"no"}}',
    )  # fmt: skip


@pytest.mark.parametrize("result", [None, "text", [1], 3])
def test_a_result_that_is_no_dict_is_refused(result: Any) -> None:
    with pytest.raises(codec.BadResult, match="An OpenWhisk action returns a dict, not"):
        said(result)


def test_a_web_actions_result_is_the_response() -> None:
    result = {
        "statusCode": "302",
        "headers": {"Location": "/x", "X-Many": ["a", 1], "X-Flag": True},
    }

    assert said(result) == (
        302,
        "application/octet-stream",
        {"Location": "/x", "X-Many": "a, 1", "X-Flag": "true"},
        b"",
    )


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        ({}, "<p>", ("text/html; charset=utf-8", b"<p>")),
        ({}, {"a": 1}, ("application/json", b'{"a":1}')),
        ({}, [1], ("application/json", b"[1]")),
        ({"content-type": "text/csv"}, "a,b", ("text/csv", b"a,b")),
        ({"Content-Type": "image/svg+xml"}, "<svg>", ("image/svg+xml", b"<svg>")),
        ({"Content-Type": "application/json"}, '{"a": 1}', ("application/json", b'{"a": 1}')),
        (
            {"CONTENT-TYPE": "image/png"},
            base64.b64encode(b"\x89PNG").decode(),
            ("image/png", b"\x89PNG"),
        ),
    ],
)
def test_the_body_of_a_web_action_is_sent_by_its_type(
    headers: dict[str, str], body: Any, told: tuple[str, bytes]
) -> None:
    status, content_type, others, sent = said({"statusCode": 200, "headers": headers, "body": body})

    assert (status, content_type, sent, others) == (200, *told, {})


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"statusCode": "many"}, "statusCode is 'many', no status"),
        ({"statusCode": None}, "statusCode is None, no status"),
        ({"statusCode": 999}, "statusCode 999 must lie between 200 and 599"),
        ({"statusCode": 200, "headers": ["a"]}, "headers must be a dict, not a list"),
        ({"statusCode": 200, "headers": {"X": "a\nb"}}, "must be one line"),
        (
            {"statusCode": 200, "headers": {"Content-Type": "image/png"}, "body": "PNG!"},
            "A body of type image/png must be base64",
        ),
    ],
)
def test_a_web_result_that_cannot_be_sent_is_refused(result: dict[str, Any], words: str) -> None:
    with pytest.raises(codec.BadResult, match=words):
        said(result)
