"""The client for programs without an event loop: every call runs on a loop thread of its own.

Ctrl-C may strike the calling thread between any two instructions, so it shares nothing with the loop
but queues and callbacks, and everything still running ends when the client is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from faasd.client.asynchronous import AsyncClient

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
WAKE_S = 0.25


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Client, P], R]:
    @functools.wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return client.run(lambda: method(client.asynchronous, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    @functools.wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return client.iterate(lambda: method(client.asynchronous, *args, **kwargs))

    return call


class Client:
    """`AsyncClient` for blocking callers: the same methods, the same errors. Thread-safe.

    Interrupting a call (Ctrl-C) cancels its request. `deploy` calls `on_progress` on the client's
    own thread. To be closed, best as a context manager.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        namespace: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.asynchronous = AsyncClient(url, key, namespace, timeout_s)
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="faasd-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return self.asynchronous.url

    def close(self) -> None:
        """Cancel what runs, close the connections and end the thread; calls are refused from then."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def run(self, start: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine on the client's loop; it is cancelled if the wait is interrupted."""
        ended: queue.SimpleQueue[asyncio.Task[R]] = queue.SimpleQueue()
        with _Running(self._loop, start, ended.put):
            return self._get(ended).result()

    def iterate(self, start: Callable[[], AsyncGenerator[R, None]]) -> Iterator[R]:
        """The items of an asynchronous iteration, which is cancelled when this one is left."""
        handed: queue.SimpleQueue[_Item[R] | asyncio.Task[None]] = queue.SimpleQueue()
        room = asyncio.Semaphore()

        async def hand_over() -> None:
            async with contextlib.aclosing(start()) as items:
                async for item in items:
                    await room.acquire()
                    handed.put(_Item(item))

        with _Running(self._loop, hand_over, handed.put):
            while isinstance(got := self._get(handed), _Item):
                yield got.value
                self._loop.call_soon_threadsafe(room.release)
            got.result()

    def _get(self, source: queue.SimpleQueue[T]) -> T:
        # CPython may see a signal only after the lock it was about to wait for: wait in slices.
        while True:
            try:
                return source.get(timeout=WAKE_S)
            except queue.Empty:
                if not self._thread.is_alive():
                    raise RuntimeError("The client was closed during the call.") from None

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        async with self.asynchronous:
            await self._closing.wait()

    deploy = _blocking(AsyncClient.deploy)
    functions = _blocking(AsyncClient.functions)
    function = _blocking(AsyncClient.function)
    remove = _blocking(AsyncClient.remove)
    rollback = _blocking(AsyncClient.rollback)
    logs = _iterating(AsyncClient.logs)
    invoke = _blocking(AsyncClient.invoke)
    stream = _iterating(AsyncClient.stream)
    submit = _blocking(AsyncClient.submit)
    invocation = _blocking(AsyncClient.invocation)
    result = _blocking(AsyncClient.result)
    invocations = _blocking(AsyncClient.invocations)
    redrive = _blocking(AsyncClient.redrive)
    workers = _blocking(AsyncClient.workers)
    drain = _blocking(AsyncClient.drain)
    create_key = _blocking(AsyncClient.create_key)
    keys = _blocking(AsyncClient.keys)
    delete_key = _blocking(AsyncClient.delete_key)
    status = _blocking(AsyncClient.status)


class _Item(Generic[R]):
    """Tells an item from the task that ends the iteration."""

    __slots__ = ("value",)

    def __init__(self, value: R) -> None:
        self.value = value


class _Running(Generic[R]):
    """A task on the loop while the block lasts; `on_end` is called with it, on the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[], Coroutine[Any, Any, R]],
        on_end: Callable[[asyncio.Task[R]], None],
    ) -> None:
        self._loop = loop
        self._start = start
        self._on_end = on_end
        self._task: asyncio.Task[R] | None = None

    def __enter__(self) -> None:
        self._loop.call_soon_threadsafe(self._begin)

    def __exit__(self, *exc: object) -> None:
        # Closing the client, even in another thread, has cancelled it already.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._start())
        self._task.add_done_callback(self._on_end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
