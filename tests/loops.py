"""Async tests: each in a loop of its own, bounded, and failing on what a loop would only log.

Those in virtual time take no time: where nothing is ready, the clock jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec
from unittest import mock

from faasd import clock

P = ParamSpec("P")

_PATIENCE_S = 20.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """When nothing is ready, time is what the next timer waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_s = 0.0

    def time(self) -> float:
        return self._virtual_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            due: float = self._scheduled[0].when()  # type: ignore[attr-defined]
            self._virtual_s = max(self._virtual_s, due)
        super()._run_once()  # type: ignore[misc]


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test in a virtual loop, whose clock is the only one; it must not use threads."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        leaked: list[dict[str, Any]] = []

        async def checked() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: leaked.append(context))
            with mock.patch.object(clock, "monotonic", loop.time):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(checked())
        assert not leaked, leaked

    return run


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test as pytest runs it; an exception that nobody took fails it too."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_bounded(test(*args, **kwargs))

    return run


def run_bounded(work: Coroutine[Any, Any, None]) -> None:
    leaked: list[dict[str, Any]] = []

    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: leaked.append(context))
        async with asyncio.timeout(_PATIENCE_S):
            await work
        await asyncio.sleep(0)

    asyncio.run(bounded())
    # A task's exception that nobody took is told when the task is collected.
    gc.collect(1)
    assert not leaked, leaked


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until this holds; the patience of the test bounds it."""
    while not condition():
        await asyncio.sleep(0.001)
