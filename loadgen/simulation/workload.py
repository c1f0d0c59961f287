"""What arrives, as arrays: when, for which function, and how long it will compute.

Drawn once from the trace and a seed, so that all policies are given the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from loadgen.arrivals import Law, arrivals
from loadgen.errors import UsageError
from loadgen.mapping import Assignment, assign
from loadgen.simulation.model import Model, with_own_figures
from loadgen.traces.model import Trace


@dataclass(frozen=True, slots=True)
class Workload:
    """Calls ascend in time. `models` are those of the functions, by place."""

    times_s: array[float]
    functions: array[int]
    exec_s: array[float]
    names: tuple[str, ...]
    models: tuple[Model, ...]
    mapping: tuple[Assignment, ...]
    span_s: float

    def __len__(self) -> int:
        return len(self.times_s)


def draw(
    trace: Trace,
    profiles: Mapping[str, Model],
    *,
    law: Law = Law.EXPONENTIAL,
    seed: int = 0,
    own_figures: bool = False,
    override: Mapping[str, str] | None = None,
) -> Workload:
    """With `own_figures`, durations and memory are the trace's where it tells them."""
    if not trace.functions:
        raise UsageError(f"{trace.path} has no invocation; name another trace or a longer part.")
    mapping = assign(trace.functions, sorted(profiles), override or {})
    chosen = {one.function: profiles[one.endpoint] for one in mapping}
    models = tuple(
        with_own_figures(chosen[one.name], one.duration_ms, one.memory_mb)
        if own_figures
        else chosen[one.name]
        for one in trace.functions
    )
    times, functions = array("d"), array("I")
    for at_s, function in arrivals(trace, law=law, seed=seed):
        times.append(at_s)
        functions.append(function)
    return Workload(
        times,
        functions,
        _run_times(functions, models, seed),
        tuple(one.name for one in trace.functions),
        models,
        mapping,
        trace.span_s,
    )


def _run_times(functions: Sequence[int], models: Sequence[Model], seed: int) -> array[float]:
    rng = Random(f"{seed}/run times")
    draws = [one.draw() for one in models]
    return array("d", (draws[function](rng) for function in functions))


def check_order(workload: Workload) -> None:
    """Raises UsageError where time goes back, or is none."""
    last = 0.0
    for place, at_s in enumerate(workload.times_s):
        # Also false where it is no number.
        if not last <= at_s:
            raise UsageError(
                f"Time goes back: call {place + 1} comes at {at_s:g} s, after one at {last:g} s; "
                "sort the calls by time, from 0 on."
            )
        last = at_s
