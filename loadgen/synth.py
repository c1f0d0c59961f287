"""Synthetic traces in the shape of production FaaS load.

Shape `azure` follows what Shahrad et al. report of Azure Functions 2019 ("Serverless in the Wild", USENIX ATC
2020): popularity is highly skewed (here 1/rank^1.5: a few functions take most invocations, many are rare), and
arrivals are a mixture: timers fire periodically and are seldom the popular ones, about half of the rest comes in bursts
(inter-arrival CV well above 1), the others look Poisson. Exactly round(rate x duration) invocations are made,
at least one for each function; the same arguments make the same trace.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random

from loadgen.errors import UsageError

SKEW = 1.5
PERIODIC_SHARE = 0.25
BURSTY_SHARE = 0.4
BURST_MEAN = 8
BURST_GAP_S = 0.08
TIMER_JITTER_S = 0.02


class Shape(StrEnum):
    AZURE = "azure"


class Pattern(StrEnum):
    """How one function is invoked; part of its name in the trace."""

    PERIODIC = "periodic"
    BURSTY = "bursty"
    POISSON = "poisson"


def synthesise(
    *, functions: int, duration_s: float, rate: float, seed: int
) -> list[tuple[int, str]]:
    """Invocations as pairs of ms since the start and function name, ascending."""
    total = round(rate * duration_s)
    if total < functions:
        raise UsageError(
            f"{rate:g} invocations/s for {duration_s:g} s make {total}, fewer than the "
            f"{functions} functions; raise --rate or --duration, or lower --functions."
        )
    random = Random(seed)
    names = _names(patterns(functions, random))
    found: list[tuple[int, str]] = []
    for (name, pattern), count in zip(names, shares(functions, total), strict=True):
        times = _times(pattern, count, duration_s, Random(f"{seed}/{name}"))
        found.extend((_ms(at, duration_s), name) for at in times)
    return sorted(found)


def shares(functions: int, total: int) -> list[int]:
    """How often each function is invoked, the hottest first: one each, the rest by 1/rank^SKEW."""
    weights = [rank**-SKEW for rank in range(1, functions + 1)]
    spare = total - functions
    exact = [spare * weight / sum(weights) for weight in weights]
    whole = [int(value) for value in exact]
    by_remainder = sorted(range(functions), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: spare - sum(whole)]:
        whole[i] += 1
    return [1 + value for value in whole]


def patterns(functions: int, random: Random) -> list[Pattern]:
    """The pattern of each function by rank; the most popular third holds no timers."""
    popular = functions - functions * 2 // 3
    timers = min(round(PERIODIC_SHARE * functions), functions - popular)
    bursty = round(BURSTY_SHARE * functions)
    rest = [Pattern.BURSTY] * bursty + [Pattern.POISSON] * (functions - timers - bursty)
    random.shuffle(rest)
    unpopular = [Pattern.PERIODIC] * timers + rest[popular:]
    random.shuffle(unpopular)
    return rest[:popular] + unpopular


def _names(kinds: list[Pattern]) -> list[tuple[str, Pattern]]:
    digits = len(str(len(kinds)))
    return [(f"f{rank:0{digits}d}-{kind}", kind) for rank, kind in enumerate(kinds, start=1)]


def _times(pattern: Pattern, count: int, duration_s: float, random: Random) -> list[float]:
    if pattern is Pattern.POISSON:
        return [random.random() * duration_s for _ in range(count)]
    if pattern is Pattern.PERIODIC:
        period = duration_s / count
        phase = random.random() * period
        jitter = min(TIMER_JITTER_S, period / 10)
        return [phase + i * period + random.random() * jitter for i in range(count)]
    return _bursts(count, duration_s, random)


def _bursts(count: int, duration_s: float, random: Random) -> list[float]:
    times: list[float] = []
    while len(times) < count:
        at = random.random() * duration_s
        size = min(1 + int(random.expovariate(1 / BURST_MEAN)), count - len(times))
        for _ in range(size):
            times.append(at % duration_s)
            at += random.expovariate(1 / BURST_GAP_S)
    return times


def _ms(at_s: float, duration_s: float) -> int:
    return int(min(at_s * 1000, duration_s * 1000 - 1)) if duration_s >= 0.001 else 0


SHAPES = {Shape.AZURE: synthesise}
