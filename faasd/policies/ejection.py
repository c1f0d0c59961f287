"""When an instance that fails call after call is to be ended, so that a fresh one takes over. Pure.

An instance may break for good (a poisoned CUDA context, a lost file handle, a global that an input
left half-changed) while its siblings, or a fork of the same template, would serve. What fails just
as well in a fresh instance is the function's own fault, or that of what it calls; replacing
instances would only add starts to it. The rules, in order:

1. Failures in a row: `failures`, or twice the most from which an instance of this function came
   back by itself, at most `most`. Functions that fail on many inputs soon prove to be such.
2. Not while a fresh instance is known to fail as well: one that came after the last ejection and
   failed from its first call on, with nobody having succeeded since.
3. Not before `base_s` after the last ejection, doubled for each that helped nobody, at most
   `cap_s`. A success of a fresh instance shows that ejecting helps, and ends the doubling.

Outlier ejection is Envoy's term; that an instance replaced is a probe by itself, without a state of
being half-open, is what forking in milliseconds allows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Run:
    """Failures of one instance with no success in between; `sent` is when the last one began."""

    failures: int = 0
    sent: float | None = None


class Ejection:
    """The instances of one revision, by numbers that grow as they are started.

    Told of every failure of a function's own code. Of successes only while `watching`, which is
    mostly not the case: they cost nothing then.
    """

    __slots__ = (
        "_base_s", "_cap_s", "_failures", "_fruitless", "_healed", "_hopeless", "_leaving", "_most",
        "_newest", "_on_trial", "_runs", "_until", "ejections", "watching",
    )  # fmt: skip

    def __init__(
        self, *, failures: int = 5, most: int = 50, base_s: float = 1.0, cap_s: float = 60.0
    ) -> None:
        self._failures = failures
        self._most = most
        self._base_s = base_s
        self._cap_s = cap_s
        self._runs: dict[int, _Run] = {}
        self._leaving: set[int] = set()
        self._healed = 0
        self._newest = 0
        self._on_trial = False
        self._hopeless = False
        self._fruitless = 0
        self._until = 0.0
        self.watching = False
        self.ejections = 0

    def __repr__(self) -> str:
        hope = ", fresh ones fail too" if self._hopeless else ""
        return f"<Ejection {self.ejections} ended, {len(self._runs)} failing{hope}>"

    @property
    def enough(self) -> int:
        """How many failures in a row it takes."""
        return max(self._failures, min(self._most, 2 * self._healed))

    def failed(self, instance: int, sent: float, now: float) -> bool:
        """A call failed: whether its instance is to be ended, which `ejected` then says was done.

        Calls that were `sent` at one moment, as those of a batch, count as one: what made one of
        them fail may be what made all of them.
        """
        if instance in self._leaving:
            return False
        self.watching = True
        run = self._runs.setdefault(instance, _Run())
        if run.sent != sent:
            run.failures += 1
            run.sent = sent
        if self._on_trial and instance > self._newest and run.failures >= self._failures:
            self._hopeless = True
        return run.failures >= self.enough and not self._hopeless and now >= self._until

    def succeeded(self, instance: int) -> None:
        if self._hopeless:
            # What is over ailed all of them: how long it took says nothing of any instance.
            self._hopeless = False
            self._runs.clear()
        elif (run := self._runs.pop(instance, None)) is not None:
            self._healed = max(self._healed, run.failures)
        if self._on_trial and instance > self._newest:
            self._on_trial = False
            self._fruitless = 0
        self._look()

    def ejected(self, instance: int, newest: int, now: float) -> None:
        """It gets no more calls. `newest` is the highest number of any instance so far."""
        self._runs.pop(instance, None)
        self._leaving.add(instance)
        self._newest = newest
        self._on_trial = True
        self._until = now + min(self._cap_s, self._base_s * 2.0 ** min(self._fruitless, 64))
        self._fruitless += 1
        self.ejections += 1
        self._look()

    def gone(self, instance: int) -> None:
        """It ended, for whatever reason."""
        self._runs.pop(instance, None)
        self._leaving.discard(instance)
        self._look()

    def _look(self) -> None:
        self.watching = bool(self._runs or self._leaving or self._on_trial)
