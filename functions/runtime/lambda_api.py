"""Functions that speak AWS Lambda's Runtime API (2018-06-01): this serves it, on 127.0.0.1.

The image's own runtime connects from inside the sandbox: it asks for `next`, which is answered when
there is an invocation, and posts a response or an error. The template waits until the runtime has
initialised, which its first `next` says; the one instance of the sandbox inherits that connection
and answers it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import re
import socket
import time
from typing import Any, Optional

from . import codec, http1
from .context import Context, Response
from .function import Function
from .report import ForeignError

PORT = 9001
_ROOT = "/2018-06-01/runtime"
_OUTCOME = re.compile(_ROOT + r"/invocation/([^/]+)/(response|error)")
_ERROR_TYPE = "lambda-runtime-function-error-type"
_ERROR_BODY = "lambda-runtime-function-error-body"
# What a runtime puts into a path as it is; the platform admits more in a request's id.
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class NotInitialised(Exception):
    """The image's runtime did not ask for an invocation in time."""

    faasd_phase = "server"


def locate(config: dict[str, Any]) -> Function:
    api = RuntimeApi(config)
    return Function(
        config,
        api.handle,
        api.initialise,
        None,
        decode=_checked,
        # The runtime has gone on to talk to that instance, or still works for it.
        outlives=lambda _status: False,
    )


def _checked(_content_type: str, body: bytes) -> bytes:
    """The event as it is. Raises BadEvent where runtimes could not read it."""
    codec.decode(codec.JSON, body)
    return body or b"{}"


class _Round:
    """What belongs to one event loop: a template has one while it waits, an instance another."""

    def __init__(self) -> None:
        self.initialised: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Request ids with the message that tells the runtime of them; and who waits for what.
        self.queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.answers: dict[str, asyncio.Future[Response]] = {}
        self.tasks: set[asyncio.Future[None]] = set()


class RuntimeApi:
    """The listening socket and the connections on which the runtime waits for an invocation."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._port: int = config.get("runtime_api_port", PORT)
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._asking: list[http1.Connection] = []
        self._round: Optional[_Round] = None

    def initialise(self, _context: Context) -> None:
        """Return once the runtime asks for its first invocation.

        Raises ForeignError with what the runtime says went wrong, NotInitialised.
        """
        try:
            asyncio.run(self._wait())
        finally:
            self._round = None

    async def handle(self, event: bytes, context: Context) -> Response:
        """What the runtime makes of the event. Raises ForeignError."""
        here = self._round or self._begin()
        request_id = _id_of(context)
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        here.answers[request_id] = answer
        here.queue.put_nowait((request_id, self._next_message(request_id, event, context)))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # Nothing stops a runtime: saying that it has would give its place to others.
            await asyncio.wait({answer})
            raise

    def _begin(self) -> _Round:
        here = self._round = _Round()
        for connection in self._asking:
            self._keep(here, self._serve(here, connection, asking=True))
        self._keep(here, self._accept(here))
        return here

    def _keep(self, here: _Round, work: Any) -> None:
        task = asyncio.ensure_future(work)
        here.tasks.add(task)
        task.add_done_callback(here.tasks.discard)

    async def _wait(self) -> None:
        limit: float = self._config["load_timeout_s"]
        here = self._begin()
        try:
            # The worker's own patience ends with less to tell.
            await asyncio.wait_for(here.initialised, max(limit * 0.9, limit - 1))
        except asyncio.TimeoutError:
            raise NotInitialised(
                f"the image's runtime did not ask 127.0.0.1:{self._port} for an invocation within "
                f"{limit:g} s ([limits] load_timeout_s)"
            ) from None

    async def _accept(self, here: _Round) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                sock, _address = await loop.sock_accept(self._listener)
                self._keep(here, self._serve(here, http1.Connection(sock), asking=False))
        finally:
            for answer in here.answers.values():
                answer.cancel()

    async def _serve(self, here: _Round, connection: http1.Connection, *, asking: bool) -> None:
        try:
            if asking:
                await self._next(here, connection)
            while True:
                head = await connection.head()
                if head is None:
                    break
                body = await connection.request_body(head)
                await self._answer(here, connection, head, body)
        except (http1.BadMessage, http1.Disconnected, OSError):
            pass
        finally:
            if connection not in self._asking:
                connection.close()

    async def _answer(
        self, here: _Round, connection: http1.Connection, head: http1.Head, body: bytes
    ) -> None:
        method, target = head.words[0], head.words[1].partition("?")[0]
        outcome = _OUTCOME.fullmatch(target)
        if (method, target) == ("GET", _ROOT + "/invocation/next"):
            self._asking.append(connection)
            await self._next(here, connection)
        elif (method, target) == ("POST", _ROOT + "/init/error"):
            try:
                await connection.send(_ACCEPTED)
            finally:
                if not here.initialised.done():
                    here.initialised.set_exception(_failed_import(head, body))
        elif method == "POST" and outcome is not None:
            answer = here.answers.pop(outcome[1], None)
            if answer is not None and not answer.done():
                if outcome[2] == "response" and _ERROR_TYPE not in head.headers:
                    answer.set_result(_response(head, body))
                else:
                    answer.set_exception(_foreign(head, body))
            await connection.send(_ACCEPTED if answer else _REFUSED_ID)
        else:
            await connection.send(_NOT_FOUND)

    async def _next(self, here: _Round, connection: http1.Connection) -> None:
        """Answer `next` on this connection, once there is an invocation."""
        if not here.initialised.done():
            here.initialised.set_result(None)
        told = await here.queue.get()
        self._asking.remove(connection)
        if connection.is_closed():
            here.queue.put_nowait(told)
            raise http1.Disconnected
        await connection.send(told[1])

    def _next_message(self, request_id: str, event: bytes, context: Context) -> bytes:
        left: float = self._config["timeout_s"]
        if context.remaining_s is not None:
            left = min(left, context.remaining_s)
        name = context.function.rpartition("/")[2]
        headers = {
            "Content-Type": codec.JSON,
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + left) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": f"arn:aws:lambda:local:000000000000:function:{name}",
            "Lambda-Runtime-Trace-Id": context.headers.get("x-amzn-trace-id") or _trace_id(),
        }
        return http1.message("HTTP/1.1 200 OK", headers, event)


def _id_of(context: Context) -> str:
    if _PLAIN_ID.fullmatch(context.request_id):
        return context.request_id
    return os.urandom(16).hex()


def _trace_id() -> str:
    return f"Root=1-{int(time.time()):08x}-{os.urandom(12).hex()};Sampled=0"


def _response(head: http1.Head, body: bytes) -> Response:
    content_type = head.headers.get("content-type", "")
    # Runtimes written with command-line clients say what those say of any data.
    if not content_type or content_type.startswith("application/x-www-form-urlencoded"):
        content_type = codec.JSON
    return Response(body, content_type)


def _foreign(head: http1.Head, body: bytes) -> ForeignError:
    """The error that a runtime reports, or that ends a response it had begun."""
    if _ERROR_BODY in head.headers:
        with contextlib.suppress(binascii.Error, ValueError):
            body = base64.b64decode(head.headers[_ERROR_BODY])
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        told = {}
    kind = str(told.get("errorType") or head.headers.get(_ERROR_TYPE) or "Unhandled")
    message = str(told.get("errorMessage") or "")
    frames = told.get("stackTrace") or told.get("trace") or []
    lines = [_frame(one) for one in frames] if isinstance(frames, list) else [str(frames)]
    lines.append(f"{kind}: {message}" if message else kind)
    return ForeignError(kind, message, "\n".join(lines) + "\n")


def _failed_import(head: http1.Head, body: bytes) -> ForeignError:
    error = _foreign(head, body)
    error.faasd_phase = "import"
    return error


def _frame(told: Any) -> str:
    return told.rstrip("\n") if isinstance(told, str) else json.dumps(told)


def _json_message(status: str, told: dict[str, str]) -> bytes:
    body = json.dumps(told).encode()
    return http1.message(f"HTTP/1.1 {status}", {"Content-Type": codec.JSON}, body)


_ACCEPTED = _json_message("202 Accepted", {"status": "OK"})
_REFUSED_ID = _json_message(
    "400 Bad Request", {"errorMessage": "Invalid request ID", "errorType": "InvalidRequestID"}
)
_NOT_FOUND = _json_message(
    "404 Not Found", {"errorMessage": "There is no such path", "errorType": "NotFound"}
)
