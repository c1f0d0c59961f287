"""Where instances wait for a GPU: in the order in which they came, while idle ones make room.

A request that waits is overtaken only on devices that it could not use: many small ones cannot
keep a large one waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from faasd.errors import Unavailable
from faasd.policies import placement
from faasd.policies.placement import Refusal
from faasd.spec import Resources
from worker.gpus.inventory import Gpu
from worker.gpus.ledger import GpuLedger, Grant, Verdict, request_of

_RETRY_AFTER_S = 5.0


@dataclass(slots=True, eq=False)
class _Waiting:
    instance: str
    resources: Resources
    within: Collection[str] | None
    answer: asyncio.Future[Grant] = field(repr=False)
    refusal: str = ""


class GpuDesk:
    """Owned by the event loop.

    `idle` names instances that hold devices and run nothing, the longest unused first, and leaves
    out those that a minimum keeps; `end` ends instances, whose `release` is told as always.
    """

    def __init__(
        self,
        ledger: GpuLedger,
        *,
        idle: Callable[[], Sequence[str]],
        end: Callable[[Sequence[str]], None],
        patience_s: float = 30.0,
    ) -> None:
        self.ledger = ledger
        self._idle = idle
        self._end = end
        self._patience_s = patience_s
        self._waiting: deque[_Waiting] = deque()
        self._ending: set[str] = set()

    def __repr__(self) -> str:
        return f"<GpuDesk {len(self._waiting)} waiting, {self.ledger!r}>"

    async def acquire(
        self, instance: str, resources: Resources, *, within: Collection[str] | None = None
    ) -> Grant:
        """Devices for an instance until `release`. Raises Unavailable when waiting cannot help, or
        did not.
        """
        waiting = _Waiting(instance, resources, within, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._serve()
        try:
            async with asyncio.timeout(self._patience_s):
                return await waiting.answer
        except TimeoutError:
            self._withdraw(waiting)
            raise Unavailable(
                f"{waiting.refusal} It waited {self._patience_s:g} s.",
                remedy="Lower [resources] gpus or gpu_memory_mb or [limits] max_instances, or "
                "add GPUs.",
                retry_after_s=_RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise

    def release(self, instance: str) -> None:
        """The instance is gone, or never came to be. Safe to call for one that holds nothing."""
        self._ending.discard(instance)
        if self.ledger.release(instance):
            self._serve()

    def refreshed(
        self,
        gpus: Sequence[Gpu],
        fault: str,
        *,
        instances: Mapping[str, Collection[int]],
        templates: Mapping[str, Collection[int]],
    ) -> list[Verdict]:
        """The devices and our processes as they are now; the owners that must end for it."""
        self.ledger.know(gpus, fault)
        verdicts = self.ledger.watch(instances, templates)
        self._serve()
        return verdicts

    def became_idle(self) -> None:
        """Some instance ran out of work: it may make room for one that waits."""
        if self._waiting:
            self._serve()

    def _withdraw(self, waiting: _Waiting) -> None:
        answer = waiting.answer
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self._serve()
        elif answer.done() and not answer.cancelled() and answer.exception() is None:
            self.release(waiting.instance)

    def _serve(self) -> None:
        """Give what can be given, and make room for what cannot."""
        taken: set[str] = set()
        left: deque[_Waiting] = deque()
        victims: list[str] = []
        for waiting in self._waiting:
            if waiting.answer.done():
                continue
            wanted = self._wanted(waiting)
            found = self._try(waiting, wanted, taken)
            if isinstance(found, Grant):
                waiting.answer.set_result(found)
            elif not wanted:
                waiting.answer.set_exception(
                    Unavailable(found.detail, retry_after_s=_RETRY_AFTER_S)
                )
            else:
                waiting.refusal = found.detail
                left.append(waiting)
                victims += self._room_for(waiting, wanted - taken)
                taken |= wanted
        self._waiting = left
        if victims:
            self._end(victims)

    def _wanted(self, waiting: _Waiting) -> frozenset[str]:
        """The devices that it could be placed on, were they free."""
        request = request_of(waiting.resources)
        return placement.candidates(request, self.ledger.devices, waiting.within)

    def _try(self, waiting: _Waiting, wanted: frozenset[str], taken: set[str]) -> Grant | Refusal:
        """An attempt on the devices that nobody before it waits for."""
        if not wanted & taken:
            return self.ledger.acquire(waiting.instance, waiting.resources, within=waiting.within)
        found = self.ledger.acquire(waiting.instance, waiting.resources, within=wanted - taken)
        if isinstance(found, Grant):
            return found
        alone = self.ledger.plan(
            waiting.instance, request_of(waiting.resources), within=waiting.within
        )
        if isinstance(alone, Refusal):
            return alone
        return Refusal("Others have waited longer for the same GPUs.", waiting_helps=True)

    def _room_for(self, waiting: _Waiting, devices: frozenset[str]) -> tuple[str, ...]:
        """The idle instances to end for it, beside those that are ending already."""
        idle = [one for one in self._idle() if one not in self._ending]
        victims = self.ledger.make_room(
            request_of(waiting.resources), idle, ending=self._ending, within=devices
        )
        self._ending.update(victims)
        return victims
