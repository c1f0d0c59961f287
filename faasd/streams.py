"""Streams whose end is always heard of, even when nobody began to read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

T_co = TypeVar("T_co", covariant=True)

_closing: set[asyncio.Task[None]] = set()


class Closable(AsyncIterator[T_co]):
    """An async generator that cleans up also when it is closed before its first item.

    Closing a generator that was never begun runs none of its code, hence no `finally` either;
    `unread` is called then instead, and `source`, which the generator reads from, is closed. For
    one reader; owned by the event loop.
    """

    def __init__(
        self,
        items: AsyncGenerator[T_co, None],
        unread: Callable[[], None],
        source: AsyncIterator[T_co] | None = None,
    ) -> None:
        self._items = items
        self._unread: Callable[[], None] | None = unread
        self._source = source

    async def __anext__(self) -> T_co:
        self._unread = None
        return await anext(self._items)

    async def aclose(self) -> None:
        """End it. Safe to call twice."""
        unread, self._unread = self._unread, None
        if unread is not None:
            unread()
            await close(self._source)
        await self._items.aclose()


async def close(items: object) -> None:
    """End an iterator, where it is one that can be ended."""
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()


def close_soon(items: object) -> None:
    """The same for one who cannot wait."""
    task = asyncio.get_running_loop().create_task(close(items))
    _closing.add(task)
    task.add_done_callback(_closing.discard)
