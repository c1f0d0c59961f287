"""The steps by which a function is worth raising: levels that save most for what they add come first.

Of all levels of a profile those are kept that are of use in some memory: the upper hull of seconds
saved over megabytes. So from step to step less is saved per megabyte, and to take steps in the
order of their worth over all functions is the best use of any amount of memory, but for the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from faasd.policies.preloading.levels import Level, Profile, Stage

LEAST_MB = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """From one level to a higher one. Where instances are forks, the last step is a place more."""

    below: Level
    level: Level
    saves_s: float
    adds_mb: float
    load_cpu_s: float


def ladder(profile: Profile, *, steps: bool = True) -> tuple[Step, ...]:
    """Without `steps`, all or nothing: of places, and of templates."""
    stages = [profile.takes(one.level) for one in profile.stages]
    instance = stages[-1] if profile.forks and stages[-1].level is Level.INSTANCE else None
    if instance is not None:
        del stages[-1]
    if not steps:
        stages = [stages[0], *stages[1:][-1:]]
    found = _hull(profile, stages)
    if instance is None:
        return found
    below = profile.stage(Level.RESIDENT)
    last = Step(
        below.level,
        Level.INSTANCE,
        profile.saves_s(Level.INSTANCE, below.level),
        max(LEAST_MB, _size_mb(instance)),
        instance.load_cpu_s,
    )
    return (*found, last)


def _hull(profile: Profile, stages: list[Stage]) -> tuple[Step, ...]:
    found: list[Step] = []
    at = stages[0]
    above = stages[1:]
    while above:
        best = max(above, key=lambda one: (_density(at, one), one.level))
        if best.start_s >= at.start_s:
            break
        found.append(
            Step(
                at.level,
                best.level,
                at.start_s - best.start_s,
                max(LEAST_MB, _size_mb(best) - _size_mb(at)),
                profile.load_cpu_s(best.level, at.level),
            )
        )
        above = [one for one in above if one.level > best.level]
        at = best
    return tuple(found)


def _density(low: Stage, high: Stage) -> float:
    return (low.start_s - high.start_s) / max(LEAST_MB, _size_mb(high) - _size_mb(low))


def _size_mb(stage: Stage) -> float:
    return stage.private_mb + sum(size for _, size in stage.shared)
