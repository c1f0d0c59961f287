"""The Lambda Runtime API as a runtime sees it, and as AWS's own client for Python does."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from functions.runtime import frames
from tests.unit.functions.nodes import PATIENCE_S, Template, Zygote, free_port

ROOT = "/2018-06-01/runtime"
CLIENT = "awslambdaric"


@dataclass(frozen=True)
class Reply:
    """What the API answered."""

    status: int
    headers: dict[str, str]
    body: bytes


class Runtime:
    """A runtime in the hands of the test."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        self.send(method, path, body, headers)
        return self.reply()

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._connection.request(method, ROOT + path, body, headers or {})
                return
            except ConnectionRefusedError:
                if time.monotonic() > give_up:
                    raise
                self._connection.close()
                time.sleep(0.01)

    def reply(self) -> Reply:
        response = self._connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())

    def ask_for_next(self) -> None:
        self.send("GET", "/invocation/next")

    def respond(self, request_id: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", f"/invocation/{request_id}/response", body, headers)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("lambda")) as zygote:
        yield zygote
        assert zygote.late_imports() == []


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def runtime(port: int) -> Iterator[Runtime]:
    with contextlib.closing(Runtime(port)) as runtime:
        yield runtime


@pytest.fixture
def template(zygote: Zygote, port: int) -> Template:
    return zygote.template(contract="lambda", runtime_api_port=port, timeout_s=30)


def id_of(told: Reply) -> str:
    return told.headers["lambda-runtime-aws-request-id"]


def test_the_runtime_gets_the_event_as_it_was_sent(template: Template, runtime: Runtime) -> None:
    runtime.ask_for_next()
    template.must_be_ready().instance().send(b'{"a":  1}', content_type="text/plain")

    told = runtime.reply()

    assert (told.status, told.body) == (200, b'{"a":  1}')
    assert told.headers["content-type"] == "application/json"


def test_the_runtime_is_told_of_request_deadline_function_and_trace(
    template: Template, runtime: Runtime
) -> None:
    before = time.time()
    runtime.ask_for_next()
    template.must_be_ready().instance().send(b"{}", remaining_s=5)

    headers = runtime.reply().headers

    assert headers["lambda-runtime-aws-request-id"] == "request-1"
    deadline = int(headers["lambda-runtime-deadline-ms"]) / 1000
    assert before + 4 < deadline <= time.time() + 5
    arn = headers["lambda-runtime-invoked-function-arn"]
    assert arn == "arn:aws:lambda:local:000000000000:function:tested"
    trace = headers["lambda-runtime-trace-id"]
    assert re.fullmatch(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24};Sampled=0", trace)


def test_without_a_callers_deadline_the_functions_timeout_is_told(
    template: Template, runtime: Runtime
) -> None:
    before = time.time()
    runtime.ask_for_next()
    template.must_be_ready().instance().send(b"{}")

    deadline = int(runtime.reply().headers["lambda-runtime-deadline-ms"]) / 1000

    assert before + 29 < deadline <= time.time() + 30


def test_the_callers_trace_goes_on(template: Template, runtime: Runtime) -> None:
    trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"
    runtime.ask_for_next()
    template.must_be_ready().instance().send(b"{}", headers={"x-amzn-trace-id": trace})

    assert runtime.reply().headers["lambda-runtime-trace-id"] == trace


def test_an_id_that_does_not_fit_into_a_path_is_replaced(
    template: Template, runtime: Runtime
) -> None:
    runtime.ask_for_next()
    template.must_be_ready().instance().send(b"{}", request_id="a/../b?c#d")

    assert re.fullmatch(r"[0-9a-f]{32}", id_of(runtime.reply()))


def test_the_response_is_the_callers(template: Template, runtime: Runtime) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()

    for number in range(3):
        instance.send(b"{}")
        posted = runtime.respond(id_of(runtime.reply()), f'{{"n": {number}}}')
        answer = instance.answer()
        assert (posted.status, posted.body) == (202, b'{"status": "OK"}')
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert answer.json() == {"n": number}
        runtime.ask_for_next()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("application/json", "application/json"),
        ("application/x-www-form-urlencoded", "application/json"),
        ("image/png", "image/png"),
    ],
)
def test_the_response_has_the_runtimes_type_but_not_that_of_its_client(
    template: Template, runtime: Runtime, said: str, told: str
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    runtime.respond(id_of(runtime.reply()), b"x", **{"Content-Type": said})

    assert instance.answer().content_type == told


def test_a_response_in_chunks_is_put_together(template: Template, runtime: Runtime) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    pieces = iter([b'{"a"', b": 1}"])
    runtime.respond(id_of(runtime.reply()), pieces)

    assert instance.answer().body == b'{"a": 1}'


def test_a_response_of_many_megabytes_comes_whole(template: Template, runtime: Runtime) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    event = b'"' + b"e" * 10_000_000 + b'"'
    instance.send(event)
    told = runtime.reply()
    runtime.respond(id_of(told), told.body)

    assert instance.answer().body == event


def test_no_body_is_an_empty_event(template: Template, runtime: Runtime) -> None:
    runtime.ask_for_next()
    template.must_be_ready().instance().send(b"")

    assert runtime.reply().body == b"{}"


def test_an_event_that_is_not_json_does_not_reach_the_runtime(
    template: Template, runtime: Runtime
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()

    problem = instance.call(b"{", content_type="application/octet-stream").problem

    assert problem["code"] == "bad_request"
    assert problem["message"].startswith("The body is not JSON: ")
    instance.send(b"{}")
    assert runtime.reply().status == 200


def test_an_error_of_the_handler_is_told_with_its_trace(
    template: Template, runtime: Runtime
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    told = {"errorType": "KeyError", "errorMessage": "'x'", "stackTrace": ["  File a\n", {"l": 1}]}
    posted = runtime.ask("POST", f"/invocation/{id_of(runtime.reply())}/error", json.dumps(told))

    problem = instance.answer().problem

    assert posted.status == 202
    assert (problem["code"], problem["type"], problem["message"]) == (
        "handler_error", "KeyError", "'x'",
    )  # fmt: skip
    assert problem["traceback"] == "  File a\n{\"l\": 1}\nKeyError: 'x'\n"


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"stackTrace": 7}'])
def test_an_error_of_few_words_is_an_error_all_the_same(
    template: Template, runtime: Runtime, body: bytes
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    headers = {"Lambda-Runtime-Function-Error-Type": "Runtime.Unknown"}
    runtime.ask("POST", f"/invocation/{id_of(runtime.reply())}/error", body, headers)

    assert instance.answer().problem["type"] == "Runtime.Unknown"


def test_an_error_in_the_midst_of_a_response_is_an_error(
    template: Template, runtime: Runtime, port: int
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    request_id = id_of(runtime.reply())
    told = base64.b64encode(b'{"errorType": "Late", "errorMessage": "broke"}').decode()
    poster = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    poster.connect()
    assert poster.sock is not None
    poster.sock.sendall(
        f"POST {ROOT}/invocation/{request_id}/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        "Trailer: Lambda-Runtime-Function-Error-Type\r\n\r\n3\r\nabc\r\n0\r\n"
        "Lambda-Runtime-Function-Error-Type: Late\r\n"
        f"Lambda-Runtime-Function-Error-Body: {told}\r\n\r\n".encode()
    )

    assert instance.answer().problem["message"] == "broke"
    poster.close()


@pytest.mark.parametrize("outcome", ["response", "error"])
def test_an_outcome_of_no_invocation_is_refused(
    template: Template, runtime: Runtime, port: int, outcome: str
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    runtime.reply()
    with contextlib.closing(Runtime(port)) as other:
        refused = other.ask("POST", f"/invocation/unknown/{outcome}", b"{}")

    assert refused.status == 400
    assert json.loads(refused.body)["errorType"] == "InvalidRequestID"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("POST", "/invocation/next"), ("GET", "/init/error"), ("PUT", "/x?y")],
)
def test_a_path_that_the_api_does_not_have_is_refused(
    template: Template, runtime: Runtime, method: str, path: str
) -> None:
    assert runtime.ask(method, path).status == 404

    runtime.ask_for_next()
    template.must_be_ready()


def test_a_connection_that_speaks_no_http_is_closed(
    template: Template, runtime: Runtime, port: int
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    told = runtime.reply()
    stranger = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    stranger.connect()
    assert stranger.sock is not None
    stranger.sock.sendall(b"hello\r\n\r\n")

    assert stranger.sock.recv(100) == b""
    stranger.close()
    runtime.respond(id_of(told), b"1")
    assert instance.answer().body == b"1"


def test_a_runtime_may_open_a_connection_for_every_request(template: Template, port: int) -> None:
    first = Runtime(port)
    first.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    request_id = id_of(first.reply())
    first.close()
    with contextlib.closing(Runtime(port)) as second:
        second.respond(request_id, b"2")
    assert instance.answer().body == b"2"

    with contextlib.closing(Runtime(port)) as third:
        third.ask_for_next()
        instance.send(b"{}")
        assert third.reply().status == 200


def test_an_invocation_goes_to_a_runtime_that_still_waits(template: Template, port: int) -> None:
    impatient = Runtime(port)
    impatient.ask_for_next()
    instance = template.must_be_ready().instance()
    impatient.close()

    with contextlib.closing(Runtime(port)) as patient:
        patient.ask_for_next()
        instance.send(b"{}")
        patient.respond(id_of(patient.reply()), b"3")

    assert instance.answer().body == b"3"


def test_a_call_whose_caller_left_keeps_its_place_until_the_runtime_is_done(
    template: Template, runtime: Runtime
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    call = instance.send(b"{}")
    told = runtime.reply()
    instance.cancel(call)
    # What is answered after it was read after it.
    assert instance.call(b"{").problem["code"] == "bad_request"
    runtime.respond(id_of(told), b"late")

    assert instance.answer().problem["code"] == "cancelled"
    runtime.ask_for_next()
    instance.send(b"{}")
    runtime.respond(id_of(runtime.reply()), b"next")
    assert instance.answer().body == b"next"


def test_an_instance_ends_with_its_data_socket_though_a_call_is_under_way(
    template: Template, runtime: Runtime
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.send(b"{}")
    runtime.reply()
    instance.close()

    assert template.said() == ["exited", instance.pid, 0]


def test_a_template_ends_with_its_instance_whose_connections_nobody_can_take_over(
    template: Template, runtime: Runtime
) -> None:
    runtime.ask_for_next()
    instance = template.must_be_ready().instance()
    instance.close()

    assert template.said() == ["exited", instance.pid, 0]
    with pytest.raises(frames.Closed):
        template.said()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        runtime.reply()


def test_a_runtime_that_cannot_initialise_refuses_the_function_with_its_words(
    template: Template, runtime: Runtime
) -> None:
    told = {"errorType": "Runtime.ImportModuleError", "errorMessage": "no module", "stackTrace": []}
    runtime.ask("POST", "/init/error", json.dumps(told))

    kind, refusal = template.said()

    assert (kind, refusal["phase"]) == ("refused", "import")
    assert (refusal["type"], refusal["message"]) == ("Runtime.ImportModuleError", "no module")
    assert refusal["traceback"] == "Runtime.ImportModuleError: no module\n"


def test_a_runtime_that_never_asks_refuses_the_function(zygote: Zygote, port: int) -> None:
    template = zygote.template(contract="lambda", runtime_api_port=port, load_timeout_s=0.3)

    kind, refusal = template.said()

    assert (kind, refusal["phase"], refusal["type"]) == ("refused", "server", "NotInitialised")
    assert refusal["message"] == (
        f"the image's runtime did not ask 127.0.0.1:{port} for an invocation within 0.3 s "
        "([limits] load_timeout_s)"
    )


HANDLER = """
    import os
    import sys

    def handle(event, context):
        print("handling", context.aws_request_id)
        if event.get("fail"):
            raise KeyError(event["fail"])
        if event.get("exit"):
            os._exit(3)
        return {
            "event": event,
            "name": os.environ["AWS_LAMBDA_FUNCTION_NAME"],
            "arn": context.invoked_function_arn,
            "in_time": 0 < context.get_remaining_time_in_millis() <= 30_000,
        }

    def unserialisable(event, context):
        return {1, 2}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AWS's own runtime interface client, in a folder of its own."""
    folder = tmp_path_factory.mktemp("client")
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), CLIENT],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    if installed.returncode:
        pytest.skip(f"{CLIENT} could not be installed: {installed.stderr.strip()[-300:]}")
    return folder


class ClientProcess:
    """A process of that client, as an image's entry point would start it."""

    def __init__(self, client: Path, code: Path, port: int, handler: str) -> None:
        (code / "app.py").write_text(textwrap.dedent(HANDLER))
        self._process = subprocess.Popen(
            [sys.executable, "-m", CLIENT, handler],
            cwd=code,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(client),
                "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
                "AWS_LAMBDA_FUNCTION_NAME": "tested",
                "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
                "LAMBDA_TASK_ROOT": str(code),
            },
        )
        self.output = ""
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            self.output = stream.read()

    def ended(self) -> int:
        code = self._process.wait(PATIENCE_S)
        self._reading.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        self._process.kill()
        self.ended()


def start(client: Path, code: Path, port: int, template: Template, handler: str) -> ClientProcess:
    """The client, once the API is there to be asked: it tries no second time."""
    with contextlib.closing(Runtime(port)) as probe:
        assert probe.ask("GET", "/").status == 404
    del template
    return ClientProcess(client, code, port, handler)


@pytest.fixture
def aws(client: Path, tmp_path: Path, port: int, template: Template) -> Iterator[ClientProcess]:
    started = start(client, tmp_path, port, template, "app.handle")
    yield started
    started.kill()


def test_awss_client_serves_invocations(aws: ClientProcess, template: Template) -> None:
    instance = template.must_be_ready().instance()

    for number in range(5):
        answer = instance.call(b'{"n": %d}' % number)
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert answer.json() == {
            "event": {"n": number},
            "name": "tested",
            "arn": "arn:aws:lambda:local:000000000000:function:tested",
            "in_time": True,
        }
    aws.kill()
    assert "handling request-1\n" in aws.output


def test_an_exception_under_awss_client_is_the_handlers_with_its_trace(
    aws: ClientProcess, template: Template
) -> None:
    del aws
    instance = template.must_be_ready().instance()

    problem = instance.call(b'{"fail": "weights"}').problem

    assert (problem["code"], problem["type"]) == ("handler_error", "KeyError")
    assert problem["message"] == "'weights'"
    assert 'app.py", line 8, in handle' in problem["traceback"]
    assert problem["traceback"].endswith("KeyError: 'weights'\n")
    assert instance.call(b"{}").status == 200


def test_a_result_that_awss_client_cannot_send_is_an_error(
    client: Path, tmp_path: Path, port: int, template: Template
) -> None:
    started = start(client, tmp_path, port, template, "app.unserialisable")

    problem = template.must_be_ready().instance().call(b"{}").problem

    assert problem["type"] == "Runtime.MarshalError"
    started.kill()


def test_a_handler_that_awss_client_does_not_find_refuses_the_function(
    client: Path, tmp_path: Path, port: int, template: Template
) -> None:
    started = start(client, tmp_path, port, template, "app.missing")

    kind, refusal = template.said()

    assert (kind, refusal["phase"]) == ("refused", "import")
    assert refusal["type"] == "Runtime.HandlerNotFound"
    assert "missing" in refusal["message"]
    assert started.ended() == 1
