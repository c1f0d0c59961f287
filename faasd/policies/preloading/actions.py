"""What a policy asks for, and why. Actions are rare: most events end in none."""

from __future__ import annotations

from dataclasses import dataclass

from faasd.policies.preloading.levels import Level


@dataclass(frozen=True, slots=True)
class Why:
    """The reason of a decision, for people and for tables.

    `chance` is the probability that the function is called within `within_s`; `density` the
    seconds saved per megabyte and second of holding, or the policy's own measure of worth.
    """

    rule: str
    chance: float | None = None
    within_s: float | None = None
    saves_s: float = 0.0
    memory_mb: float = 0.0
    density: float | None = None
    price: float | None = None

    def __str__(self) -> str:
        parts = [self.rule]
        if self.chance is not None and self.within_s is not None:
            parts.append(f"called within {self.within_s:.0f} s with p = {self.chance:.2f}")
        if self.saves_s:
            parts.append(f"saves {self.saves_s:.3g} s")
        if self.memory_mb:
            parts.append(f"for {self.memory_mb:.1f} MB")
        if self.density is not None:
            parts.append(f"worth {self.density:.3g}")
        if self.price is not None:
            parts.append(f"where {self.price:.3g} is needed")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Load:
    """Bring a function to a level on a node, at low priority.

    Answered by `placed(..., load=id)` or by `failed(id, ...)`. `host` is the place of another
    function in whose sandbox it is to be, `place` the one that is to be raised; a new place is
    made where there is neither. A place that a call began in the meantime is left to that, and the
    load answered with `placed` as the place is then.
    """

    id: int
    function: int
    node: int
    level: Level
    why: Why
    host: int | None = None
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up a load that has not ended. It is forgotten: answer neither way."""

    load: int
    why: Why


@dataclass(frozen=True, slots=True)
class Lower:
    """Strip an idle place down to a level; ABSENT ends it.

    Answered by `placed` with the new level, or by `dropped`. To be ignored when a call began there
    in the meantime.
    """

    place: int
    level: Level
    why: Why


Action = Load | Cancel | Lower
