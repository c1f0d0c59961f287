"""Streams over a connection that others share: items wait for credit, which their reader gives.

Both sides count alike: what an item weighs, and a window of so much that may be on its way. A
reader that is slow therefore holds up its own stream and no other, and little is held for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from faasd.errors import FaasdError
from faasd.streams import close

WINDOW = 1 << 20
_LEAST_WEIGHT = 256


class Inflow(AsyncIterator[Any]):
    """The items of a stream as they arrive. For one reader, who closes it unless it ended."""

    __slots__ = (
        "_arrived",
        "_ended",
        "_error",
        "_given_up",
        "_grant",
        "_granted",
        "_items",
        "_taken",
    )

    def __init__(self, grant: Callable[[int], None], given_up: Callable[[], None]) -> None:
        """`grant` tells the sender of more credit, `given_up` that its items are not wanted."""
        self._grant = grant
        self._given_up = given_up
        self._items: deque[Any] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._granted = WINDOW
        self._taken = 0
        self._ended = False
        self._error: FaasdError | None = None

    def feed(self, item: Any) -> None:
        """An item arrived. Raises ValueError when there was no credit left for it."""
        if self._granted <= 0:
            raise ValueError("an item without credit")
        self._granted -= weight(item)
        if not self._ended:
            self._items.append(item)
            self._wake()

    def end(self, error: FaasdError | None = None) -> None:
        """No more will come, and why; what is here can still be read."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._wake()

    async def __anext__(self) -> Any:
        while not self._items:
            if self._ended:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            except asyncio.CancelledError:
                await self.aclose()
                raise
        item = self._items.popleft()
        self._taken += weight(item)
        if self._taken >= WINDOW // 4 and not self._ended:
            self._granted += self._taken
            self._grant(self._taken)
            self._taken = 0
        return item

    async def aclose(self) -> None:
        """Want no more of it. Safe to call twice."""
        self._items.clear()
        self._error = None
        if not self._ended:
            self.end()
            self._given_up()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


class Outflow:
    """The items of a stream of ours, sent as fast as the reader takes them."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items
        self._credit = WINDOW
        self._refilled: asyncio.Future[None] | None = None

    def refill(self, credit: Any) -> None:
        """The reader took so much. Raises ValueError for what is no amount."""
        if type(credit) is not int or credit <= 0:
            raise ValueError("credit is a positive number")
        self._credit += credit
        if self._refilled is not None and not self._refilled.done():
            self._refilled.set_result(None)

    async def pump(self, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send all items; what the source raises is raised."""
        async for item in self._items:
            while self._credit <= 0:
                self._refilled = asyncio.get_running_loop().create_future()
                await self._refilled
            self._credit -= weight(item)
            await send(item)

    async def aclose(self) -> None:
        """End the source. Not `pump`'s to do: a task that is cancelled early never gets there."""
        await close(self._items)


def weight(item: Any) -> int:
    """What an item counts against the window; both sides must agree."""
    return max(_LEAST_WEIGHT, len(item)) if isinstance(item, bytes) else _LEAST_WEIGHT
