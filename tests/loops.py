"""Async tests: each in a loop of its own, bounded, and failing on what a loop would only log."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")

_PATIENCE_S = 20.0


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
