"""What every policy of preloading and keep-alive is: told of events, asked for actions.

The contract with a driver, which is a worker or the simulator:

1. Functions, nodes and places are small numbers of the driver's. A place is what can be kept or
   dropped by itself: an instance, a template, a sandbox with libraries or bare. For a call the driver
   takes the idle place at the highest level that can serve it, the most recently used of equal ones.
2. It calls the method named for an event, and `decide` when `due` has come: `due` is in the past as
   soon as there is something to do. It carries out the actions in their order, and calls nothing here
   in between but what they bring about at once.
3. A demand start is `placed` when it begins, at the level it will have, and `began` at once after;
   a load is `placed` when it is done. What does not fit is `pressed` for first.
4. A call for what is loaded in the sandbox of another takes that over: the hosted place is `dropped`, the
   host `placed` as the caller's. It waits while the host runs a call. A template is `placed` again,
   without a host.
5. A node's `budget_mb` is what all its places may take. Policies start loads within it only; what
   requests make the driver start is not theirs to refuse.
6. Time may stand still or go back; nothing waits for it to be exact.

Cost: `arrived`, `began` and `idled` are on the way of every call and do next to nothing; whatever
costs more is done when a place is made or dropped, or when its time has come.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar

from faasd.policies.preloading.actions import Action, Cancel, Load, Lower, Why
from faasd.policies.preloading.book import BUSY, Book
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.levels import Level, Profile
from faasd.policies.preloading.loads import Bounds, Loads

_PRESSED = Why("dropped for memory, the longest unused first")
_FORGOTTEN = Why("the function is gone")
_NO_PLACE = Why("the place that it was for is gone")
_HUNG = Why("the load is overdue")
_YIELDS = Why("given up for memory that a request needs")
_NEVER = -math.inf


class Policy(abc.ABC):
    """Keeps the book of what is where. What to keep, load and drop is the subclass's to say.

    Subclasses override `arrived` and `idled` (on the way of every call), `_tick` (when `due` has
    come), `_rank` (who goes first under pressure), and the hooks `_appeared` and `_vanished`.
    """

    name: ClassVar[str]
    PRESSED: ClassVar[Why] = _PRESSED

    def __init__(self, *, bounds: Bounds | None = None) -> None:
        self.due = math.inf
        """When `decide` has something to do, unless an event comes before."""
        self.book = Book()
        self.loads = Loads(self.book, bounds)
        self.dropped_under_pressure = 0
        self._last_arrival: dict[int, float] = {}
        self._idle_since = self.book.idle_since
        self._hits = self.book.hits
        self._owner = self.book.owner
        self._actions: list[Action] = []
        self._victims: dict[int, LazyHeap] = {}
        self._gone: set[int] = set()
        self._leaving: dict[int, float] = {}
        self._leaving_mb: dict[int, float] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.book!r}, {len(self.loads)} loads>"

    # Functions and nodes

    def known(self, function: int, profile: Profile, now: float) -> None:
        """A function can be called, or its profile was measured anew."""
        new = function not in self.book.profiles or function in self._gone
        self._gone.discard(function)
        self.book.know(function, profile)
        if new:
            self._function_added(function, now)

    def forgotten(self, function: int, now: float) -> None:
        """It is gone: its places are dropped, those that run calls when they are idle."""
        self._gone.add(function)
        for node in self.book.ledger.nodes:
            for load in self.loads.of(node):
                if load.function == function:
                    self._give_up(load, _FORGOTTEN, now)
        self._end_forgotten(function)
        self._last_arrival.pop(function, None)
        self.loads.quarantine.forget(function)
        self._function_removed(function, now)
        self._forget_if_empty(function)

    def node_joined(self, node: int, budget_mb: float, now: float) -> None:
        """A node is there, or has another budget."""
        del now
        self.book.ledger.open(node, budget_mb)
        self._victims.setdefault(node, LazyHeap())
        self._leaving_mb.setdefault(node, 0.0)

    def node_left(self, node: int, now: float) -> None:
        """It is gone with all that was there."""
        self.loads.forget_node(node)
        for place in self.book.everything():
            if self.book.node[place] == node:
                self.dropped(place, now)
        self.book.ledger.close(node)
        del self._victims[node], self._leaving_mb[node]

    # Calls

    def arrived(self, function: int, now: float) -> None:
        """A call came in, wherever it is going to run."""
        self._last_arrival[function] = now

    def began(self, place: int, function: int, now: float) -> None:
        """A place runs a call. It may have been another function's, or nobody's, until now."""
        if self._owner[place] != function:
            self._taken(place, function, now)
        if place in self._leaving:
            self._no_more_leaving(place)
            self.book.restore(place)
        self._idle_since[place] = BUSY
        self._hits[place] += 1

    def idled(self, place: int, now: float) -> None:
        """A place runs nothing any more."""
        self._idle_since[place] = now
        self._list(place, now)
        if self._gone and self._owner[place] in self._gone:
            self._end_forgotten(self._owner[place])

    # Places

    def placed(
        self,
        place: int,
        function: int,
        node: int,
        level: Level,
        now: float,
        *,
        load: int | None = None,
        host: int | None = None,
    ) -> None:
        """There is a place, idle, or one that was there is at another level now."""
        if load is not None:
            self.loads.succeeded(load)
        known = self.book.is_there(place)
        self._no_more_leaving(place)
        self.book.put(place, function, node, level, now, host)
        if known:
            self._changed(place, now)
        else:
            self._appeared(place, now)
        if self.book.is_idle(place):
            self._list(place, now)

    def measured(self, place: int, private_mb: float) -> None:
        """What a place takes of its own, by measurement."""
        self.book.measured(place, private_mb)

    def dropped(self, place: int, now: float) -> None:
        """A place is no more: lowered as asked, or ended for whatever reason."""
        if not self.book.is_there(place):
            return
        self._no_more_leaving(place)
        self._victims[self.book.node[place]].discard(place)
        self._vanished(place, now)
        function = self._owner[place]
        for load in self.loads.of(self.book.node[place]) if len(self.loads) else ():
            if place in {load.host, load.place}:
                self._give_up(load, _NO_PLACE, now)
        self.book.remove(place)
        if function in self._gone:
            self._forget_if_empty(function)

    def failed(self, load: int, reason: str, now: float) -> None:
        """A load came to nothing: it is not tried again for a while."""
        done = self.loads.failed(load, reason, now)
        if done is not None:
            self._load_ended(done.function, done.node, now)

    def pressed(self, node: int, over_mb: float, now: float) -> None:
        """So much memory is needed on a node, for a request or because others take it."""
        over_mb -= self._leaving_mb[node]
        over_mb = self._give_up_loads(node, over_mb, now)
        self.make_room(node, over_mb, now, self.PRESSED)

    # Decisions

    def decide(self, now: float) -> list[Action]:
        """What to do now. Nothing that was said once is said again."""
        for late in self.loads.overdue(now):
            self.failed(late.load.id, f"not done after {now - late.began_at:.0f} s", now)
            self._act(Cancel(late.load.id, _HUNG))
        due = self._tick(now)
        actions, self._actions = self._actions, []
        self.due = min(due, self.loads.due)
        return actions

    @abc.abstractmethod
    def _tick(self, now: float) -> float:
        """Do what is due, by `_act`, and say when there is more."""

    def explain(self, place: int, now: float) -> Why:
        """Why a place is kept."""
        del place, now
        return Why(f"kept by {self.name}")

    def leaving_mb(self, node: int) -> float:
        """What places that were asked to go hold until they are gone."""
        return self._leaving_mb[node]

    # What subclasses build on

    def _act(self, action: Action) -> None:
        self._actions.append(action)
        self.due = _NEVER

    def _lower(self, place: int, level: Level, why: Why) -> float:
        """Ask for an idle place to be stripped, and what that will free, in megabytes."""
        if place in self._leaving or level >= self.book.level[place]:
            return 0.0
        freed_mb = self.book.lower(place, level)
        self._leaving[place] = freed_mb
        self._leaving_mb[self.book.node[place]] += freed_mb
        self._act(Lower(place, level, why))
        return freed_mb

    def _end(self, place: int, why: Why) -> float:
        """End a place with the instances that are forks of it, and what that will free."""
        freed_mb = 0.0
        if self._is_template(place):
            for one in self.book.kin(place):
                if self.book.level[one] is Level.INSTANCE:
                    freed_mb += self._lower(one, Level.ABSENT, why)
        return freed_mb + self._lower(place, Level.ABSENT, why)

    def _end_whole(self, place: int, why: Why) -> float:
        """As `_end`, whatever a subclass makes of that."""
        return Policy._end(self, place, why)

    def _end_forgotten(self, function: int) -> None:
        for place in self.book.places(function):
            if not self._in_use(place):
                self._end_whole(place, _FORGOTTEN)

    def _forget_if_empty(self, function: int) -> None:
        if not self.book.places(function) and not self.loads.anywhere(function):
            self.book.profiles.pop(function, None)
            self._gone.discard(function)

    def _is_leaving(self, place: int) -> bool:
        return place in self._leaving

    def _is_template(self, place: int) -> bool:
        book = self.book
        level = book.level[place]
        return Level.LAYER < level < Level.INSTANCE and book.profiles[book.owner[place]].forks

    def _in_use(self, place: int) -> bool:
        """Busy itself, or what busy ones come from or are in."""
        if self._idle_since[place] == BUSY:
            return True
        if self._is_template(place):
            return any(self._idle_since[one] == BUSY for one in self.book.kin(place))
        return any(self._idle_since[one] == BUSY for one in self.book.hosts.get(place, ()))

    def _used_at(self, place: int) -> float:
        """When an idle place was last of use. A template is when its function is called."""
        since = self._idle_since[place]
        if self._is_template(place):
            return max(since, self._last_arrival.get(self._owner[place], _NEVER))
        return since

    def _free_mb(self, node: int) -> float:
        """What is free once all that is leaving has left."""
        return self.book.ledger.free_mb(node)

    def _list(self, place: int, now: float) -> None:
        """Have an idle place considered when memory is needed."""
        heap = self._victims[self.book.node[place]]
        if place not in heap:
            heap.offer(place, self._rank(place, now))

    def _rank(self, place: int, now: float) -> float:
        """Of what is idle on a node, the lowest goes first when memory is needed."""
        del now
        return self._used_at(place)

    def make_room(self, node: int, over_mb: float, now: float, why: Why) -> float:
        """End idle places, the lowest first, until so much is freed; what is still missing."""
        heap = self._victims[node]
        spared: list[int] = []
        while over_mb > 0 and (found := heap.pop()) is not None:
            rank, place = found
            if self._idle_since[place] == BUSY or place in self._leaving:
                continue
            if self._in_use(place):
                spared.append(place)
                continue
            fresh = self._rank(place, now)
            if fresh > rank and fresh > heap.least:
                heap.offer(place, fresh)
                continue
            self._evicted(place, fresh, now)
            over_mb -= self._end(place, why)
            self.dropped_under_pressure += 1
        for place in spared:
            heap.offer(place, self._rank(place, now))
        return over_mb

    def _begin_load(
        self,
        function: int,
        node: int,
        level: Level,
        now: float,
        why: Why,
        *,
        place: int | None = None,
        host: int | None = None,
    ) -> bool:
        """Load if it may be, and fits into what is free; others are not dropped for it."""
        if node not in self._victims or not self.loads.may_start(function, node, now):
            return False
        adds_mb = self.book.adds_mb(function, node, level, hosted=host is not None)
        if place is not None:
            adds_mb -= self.book.private_mb(place)
        if adds_mb > self._free_mb(node):
            return False
        self._act(self.loads.start(function, node, level, now, why, place=place, host=host))
        return True

    def _saves_s(self, place: int) -> float:
        """Seconds that a call waits less for a place than without it."""
        profile, level = self.book.profiles[self._owner[place]], self.book.level[place]
        forked = level is Level.INSTANCE and profile.forks
        below = Level.RESIDENT if forked else Level.ABSENT
        return profile.saves_s(level, below)

    def _give_up_loads(self, node: int, over_mb: float, now: float) -> float:
        """Cancel loads, the latest first, until so much is freed; what is still missing."""
        for load in reversed(self.loads.of(node)):
            if over_mb <= 0:
                break
            if not self.loads.takes_memory(load.id):
                continue
            before_mb = self.book.ledger.used_mb(node)
            self._give_up(load, _YIELDS, now)
            over_mb -= before_mb - self.book.ledger.used_mb(node)
        return over_mb

    def _give_up(self, load: Load, why: Why, now: float) -> None:
        self.loads.given_up(load.id)
        self._act(Cancel(load.id, why))
        self._load_ended(load.function, load.node, now)

    def _no_more_leaving(self, place: int) -> None:
        freed_mb = self._leaving.pop(place, None)
        if freed_mb is not None:
            self._leaving_mb[self.book.node[place]] -= freed_mb

    def _taken(self, place: int, function: int, now: float) -> None:
        """A place that was another's serves a function from now on; `placed` says at which level."""
        del now
        self.book.hand_over(place, function)

    # Hooks

    def _function_added(self, function: int, now: float) -> None:
        """It was not known before."""
        del function, now

    def _function_removed(self, function: int, now: float) -> None:
        """It will not be called any more."""
        del function, now

    def _appeared(self, place: int, now: float) -> None:
        """A place is new."""
        del place, now

    def _changed(self, place: int, now: float) -> None:
        """A place is at another level, or another function's."""
        del place, now

    def _vanished(self, place: int, now: float) -> None:
        """A place is about to be forgotten."""
        del place, now

    def _evicted(self, place: int, rank: float, now: float) -> None:
        """A place is about to be ended for memory."""
        del place, rank, now

    def _load_ended(self, function: int, node: int, now: float) -> None:
        """A load failed or was given up."""
        del function, node, now
