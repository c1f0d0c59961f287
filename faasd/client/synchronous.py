"""The client for programs without an event loop: every call runs on a loop thread of its own."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from faasd.client.asynchronous import AsyncClient

P = ParamSpec("P")
R = TypeVar("R")
CANCEL_GRACE_S = 5.0


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Client, P], R]:
    @functools.wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return client.run(method(client.asynchronous, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    @functools.wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return client.iterate(method(client.asynchronous, *args, **kwargs))

    return call


class Client:
    """`AsyncClient` for blocking callers: the same methods, the same errors. Thread-safe.

    Interrupting a call (Ctrl-C) cancels its request. `deploy` calls `on_progress` on the client's
    own thread.
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
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="faasd-client", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return self.asynchronous.url

    def close(self) -> None:
        """Close the connections and end the thread; the client is of no use afterwards."""
        if self._loop.is_closed():
            return
        self.run(self.asynchronous.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run `work` on the client's loop, and cancel it when the wait for it is interrupted."""
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_announced(work, ended), self._loop)
        try:
            return future.result()
        except BaseException:
            # What comes next, such as closing an iterator, must not meet it still running.
            future.cancel()
            ended.wait(CANCEL_GRACE_S)
            raise

    def iterate(self, items: AsyncGenerator[R, None]) -> Iterator[R]:
        """The items, one awaited at a time; what the iterator holds is let go at the end."""
        try:
            while found := self.run(_next(items)):
                yield from found
        finally:
            self.run(items.aclose())

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


async def _announced(work: Coroutine[Any, Any, R], ended: threading.Event) -> R:
    try:
        return await work
    finally:
        ended.set()


async def _next(items: AsyncGenerator[R, None]) -> tuple[R, ...]:
    async for item in items:
        return (item,)
    return ()
