"""Functions that are HTTP servers: calls of the worker become requests to 127.0.0.1.

The relay stands beside the user's server, inside the sandbox. Its template waits until the server
is ready; its instances pass bodies, content types and headers through as they are.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from typing import Any

from . import codec, http1
from .context import Context, Response, Streamed
from .function import Function

_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
# Of the connection, not of the message; and what is said anew for the connection to the server.
_NOT_PASSED_ON = {
    "connection", "content-length", "content-type", "expect", "faasd-request-id", "host",
    "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip


class NotReady(Exception):
    """The server did not come up in time."""

    faasd_phase = "server"


class ServerFailed(Exception):
    """The server did not answer a request as HTTP asks."""


def locate(config: dict[str, Any]) -> Function:
    server = Server(config)
    return Function(
        config,
        server.handle,
        server.wait_until_ready,
        None,
        decode=lambda _content_type, body: body,
        # Where an instance was killed, the server may work on its call for ever.
        outlives=lambda status: status == 0,
    )


class Server:
    """The user's server, as the relay sees it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._port: int = config["http"]["port"]
        self._path: str = config["http"]["path"]
        self._ready: str | None = config["http"]["ready"]
        self._patience_s: float = config["load_timeout_s"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def wait_until_ready(self, _context: Context) -> None:
        """Return once the server takes requests. Raises NotReady."""
        asyncio.run(self._wait())

    async def handle(self, body: bytes, context: Context) -> Response | Streamed:
        """What the server answers. Raises ServerFailed."""
        connection = await self._connect()
        # A server may answer while it still reads: neither may wait for the other.
        sending = asyncio.ensure_future(self._send(connection, self._request(body, context)))
        streamed = False
        try:
            head = await self._head(connection)
            status, content_type, headers = _told(head)
            streamed = _is_stream(head, content_type)
            if streamed:
                chunks = self._body(connection, head, sending)
                return Streamed(status, content_type, headers, chunks)
            whole = b"".join([part async for part in self._body(connection, head, sending)])
            return Response(whole, content_type, status, headers)
        finally:
            if not streamed:
                sending.cancel()
                connection.close()

    async def _wait(self) -> None:
        # The worker's own patience ends with less to tell.
        patience = max(self._patience_s * 0.9, self._patience_s - 1)
        give_up = time.monotonic() + patience
        pause = _PAUSE_S
        while True:
            left = give_up - time.monotonic()
            try:
                trouble = await asyncio.wait_for(self._trouble(), max(left, 0.001))
            except asyncio.TimeoutError:
                trouble = "it did not answer"
            if trouble is None:
                return
            if time.monotonic() + pause >= give_up:
                where = self.address + (self._ready or "")
                raise NotReady(
                    f"its server at {where} was not ready within "
                    f"{self._patience_s:g} s ([limits] load_timeout_s): {trouble}"
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)

    async def _trouble(self) -> str | None:
        """Why the server is not ready, or None."""
        try:
            connection = await http1.Connection.to(self._port)
        except OSError as error:
            return f"{_reason(error)} (it must listen on $PORT)"
        try:
            if self._ready is None:
                return None
            asked = {"Host": self.address, "Connection": "close"}
            await connection.send(http1.message(f"GET {self._ready} HTTP/1.1", asked, b""))
            head = await connection.head()
            if head is None:
                return "it closed the connection"
            return None if head.status < 400 else f"it answered with status {head.status}"
        except (http1.BadMessage, http1.Disconnected, OSError) as error:
            return str(error) or "it closed the connection"
        finally:
            connection.close()

    async def _connect(self) -> http1.Connection:
        # One connection for each call: a kept one may just be closed when a request is written,
        # and no call is made twice.
        try:
            return await http1.Connection.to(self._port)
        except OSError as error:
            raise ServerFailed(
                f"the server at {self.address} takes no connections: {_reason(error)}"
            ) from None

    def _request(self, body: bytes, context: Context) -> bytes:
        headers = {"Host": self.address, "Connection": "close"}
        if context.content_type:
            headers["Content-Type"] = context.content_type
        headers["Faasd-Request-Id"] = context.request_id
        given = context.headers.items()
        headers.update((name, value) for name, value in given if name not in _NOT_PASSED_ON)
        return http1.message(f"POST {self._path} HTTP/1.1", headers, body)

    async def _send(self, connection: http1.Connection, request: bytes) -> None:
        try:
            await connection.send(request)
        except OSError:
            # It has answered before it read all, or is gone: reading tells.
            return

    async def _head(self, connection: http1.Connection) -> http1.Head:
        while True:
            try:
                head = await connection.head()
                if head is None:
                    raise http1.Disconnected
                if not 100 <= head.status <= 599 or head.status == 101:
                    raise http1.BadMessage(f"its answer has status {head.status}")
                if head.status >= 200:
                    return head
            except http1.Disconnected:
                raise ServerFailed(
                    f"the server at {self.address} closed the connection without an answer"
                ) from None
            except http1.BadMessage as error:
                raise ServerFailed(
                    f"the server at {self.address} speaks no HTTP: {error}"
                ) from None

    async def _body(
        self, connection: http1.Connection, head: http1.Head, sending: asyncio.Future[None]
    ) -> AsyncGenerator[bytes, None]:
        try:
            async for part in connection.response_body(head):
                yield part
        except http1.Disconnected:
            raise ServerFailed(
                f"the server at {self.address} closed the connection amid its answer"
            ) from None
        except http1.BadMessage as error:
            raise ServerFailed(f"the server at {self.address} speaks no HTTP: {error}") from None
        finally:
            sending.cancel()
            connection.close()


def _reason(error: OSError) -> str:
    # What a loop raises names the address once more.
    return os.strerror(error.errno) if error.errno else str(error)


def _told(head: http1.Head) -> tuple[int, str, dict[str, str]]:
    headers = {name: v for name, v in head.headers.items() if name not in _NOT_PASSED_ON}
    return head.status, head.headers.get("content-type") or codec.BYTES, headers


def _is_stream(head: http1.Head, content_type: str) -> bool:
    """Whether the server says piece by piece what it has to say."""
    if head.status in http1.NO_BODY:
        return False
    return head.chunked or head.length is None or content_type.startswith(codec.EVENTS)
