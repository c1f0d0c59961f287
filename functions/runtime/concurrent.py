"""The loop of an instance that serves several invocations at once: async handlers, and threads.

Output is attributed by a mark before each line, since several invocations share the descriptors:
a record separator, the request id, a unit separator. The worker takes it off again.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import io
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack

from . import codec, frames, process, report
from .context import Context, Streamed
from .function import Function

LONGEST_PART = 8_192

_request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")


class MarkedOutput(io.TextIOBase):
    """Writes whole lines to `stream`, each behind the id of the invocation that printed it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._partial: dict[str, str] = {}

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def write(self, text: str) -> int:
        request = _request.get()
        *lines, rest = (self._partial.pop(request, "") + text).split("\n")
        if len(rest) > LONGEST_PART:
            lines.append(rest)
            rest = ""
        if rest:
            self._partial[request] = rest
        for line in lines:
            for start in range(0, len(line) or 1, LONGEST_PART):
                part = line[start : start + LONGEST_PART]
                self._stream.write(f"\x1e{request}\x1f{part}\n")
        return len(text)

    def flush(self) -> None:
        if self._partial.get(_request.get()):
            self.write("\n")
        self._stream.flush()


def serve(function: Function, link: frames.FrameStream) -> None:
    """Serve until the worker closes the data socket."""
    sys.stdout = MarkedOutput(sys.stdout)
    sys.stderr = MarkedOutput(sys.stderr)
    asyncio.run(_Shared(function, link).serve())


class _Shared:
    """Invocations as tasks of one loop. Not thread-safe; threads only run sync handlers."""

    def __init__(self, function: Function, link: frames.FrameStream) -> None:
        self._pid = os.getpid()
        self._closing = False
        self._function = function
        self._sock = link.sock
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(function.config["concurrency"], "faasd-handler")

    async def serve(self) -> None:
        self._sock.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        while True:
            try:
                length = int.from_bytes(await reader.readexactly(4), "big")
                frame = msgpack.unpackb(await reader.readexactly(length))
            except (asyncio.IncompleteReadError, ConnectionError):
                self._closing = True
                raise frames.Closed from None
            if frame[0] == "call":
                for call_id, meta, body in frame[1]:
                    task = asyncio.ensure_future(self._one(call_id, meta, body))
                    self._tasks[call_id] = task
                    task.add_done_callback(functools.partial(self._forget, call_id))
            elif frame[0] == "cancel" and frame[1] in self._tasks:
                self._tasks[frame[1]].cancel()

    def _forget(self, call_id: int, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(call_id, None)

    async def _one(self, call_id: int, meta: list[Any], body: bytes) -> None:
        started = time.perf_counter()
        _request.set(meta[0])
        try:
            answer = await self._answer(call_id, meta, body, started)
        except asyncio.CancelledError:
            told = {"code": "cancelled", "message": "The caller went away."}
            answer = ["error", call_id, told, _ms_since(started)]
        except BaseException as error:  # user code; SystemExit too must not end the instance
            answer = ["error", call_id, report.problem(error), _ms_since(started)]
        process.flush_output()
        await self._write(answer)

    async def _answer(
        self, call_id: int, meta: list[Any], body: bytes, started: float
    ) -> list[Any]:
        event = self._function.decode(meta[1], body)
        context = Context(self._function.config, self._function.state, meta)
        result = await self._call(event, context)
        if isinstance(result, Streamed):
            await self._pass_on(call_id, result)
            return ["end", call_id, _ms_since(started)]
        if hasattr(result, "__anext__") or hasattr(result, "__next__"):
            await self._stream(call_id, meta, result)
            return ["end", call_id, _ms_since(started)]
        status, content_type, headers, payload = codec.encode(result)
        return ["result", call_id, status, content_type, headers, _ms_since(started), payload]

    async def _call(self, event: Any, context: Context) -> Any:
        handler = self._function.handler
        if inspect.iscoroutinefunction(handler):
            return await handler(event, context)
        if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
            return handler(event, context)
        return await self._in_thread(functools.partial(handler, event, context))

    async def _in_thread(self, work: Any) -> Any:
        inherited = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        done = functools.partial(inherited.run, _outcome, work)
        running = loop.run_in_executor(self._threads, done)
        try:
            result, error = await asyncio.shield(running)
        except asyncio.CancelledError:
            # Nothing stops a thread: saying that it has would give its place to others.
            if not self._closing:
                await asyncio.wait({running})
            raise
        if error is not None:
            raise error
        return result

    async def _stream(self, call_id: int, meta: list[Any], items: Any) -> None:
        announced = False
        async for item in self._items(items):
            if meta[5]:
                content_type, chunk = codec.EVENTS, codec.encode_event(item)
            else:
                content_type, chunk = codec.encode_item(item)
            if not announced:
                await self._write(["start", call_id, 200, content_type])
                announced = True
            await self._write(["chunk", call_id, chunk])
            # A generator that awaits nothing would keep its siblings, and its own end, waiting.
            await asyncio.sleep(0)
        if not announced:
            empty = codec.EVENTS if meta[5] else codec.LINES
            await self._write(["start", call_id, 200, empty])

    async def _pass_on(self, call_id: int, reply: Streamed) -> None:
        try:
            head = [reply.status, reply.content_type, reply.headers]
            await self._write(["start", call_id, *head])
            async for chunk in reply.chunks:
                await self._write(["chunk", call_id, chunk])
        finally:
            await reply.chunks.aclose()

    async def _items(self, items: Any) -> Any:
        if hasattr(items, "__anext__"):
            try:
                async for item in items:
                    yield item
            finally:
                await items.aclose()
            return
        end = object()
        try:
            while (item := await self._in_thread(functools.partial(next, items, end))) is not end:
                yield item
        finally:
            items.close()

    async def _write(self, message: list[Any]) -> None:
        process.end_copy_of(self._pid)
        self._writer.write(frames.pack(message))
        try:
            await self._writer.drain()
        except ConnectionError:
            return


def _outcome(work: Any) -> tuple[Any, BaseException | None]:
    """Result or exception as values: a future refuses to carry a StopIteration, for ever."""
    try:
        return work(), None
    except BaseException as error:  # user code; it is raised again by the one who waits for it
        return None, error


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
