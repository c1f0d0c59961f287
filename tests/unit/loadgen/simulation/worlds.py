"""Small workloads by hand, and profiles with round figures."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from faasd.policies.preloading import levels
from loadgen.simulation.api import simulate
from loadgen.simulation.model import Model, Step
from loadgen.simulation.node import Node
from loadgen.simulation.outcome import Outcome
from loadgen.simulation.workload import Workload

BIG = Node(100_000.0, cores=4)
KEPT = "fixed:idle_s=600"


def process(memory_mb: float = 600.0, *, exec_cv: float = 0.0, **ours: Any) -> Model:
    """Cold in 3.5 s: half a second of sandbox, one of libraries, two of loading. Runs for one."""
    profile = levels.processes(
        sandbox_s=0.5, import_s=1.0, load_s=2.0, exec_s=1.0, memory_mb=memory_mb
    )
    return Model(profile, exec_cv=exec_cv, **ours)


def fork(**ours: Any) -> Model:
    """A template in 1.05 s, an instance of it in 0.02. Runs for 0.1 s."""
    profile = levels.forks(
        floor_s=0.02, import_s=0.03, load_s=1.0, exec_s=0.1, template_mb=20.0, instance_mb=5.0
    )
    split = (Step(0, 0.02, 0.0), Step(1, 0.0, 0.03), Step(2, 0.0, 1.0))
    return Model(profile, exec_cv=0.0, split=split, **ours)


def workload(models: Sequence[Model], calls: Iterable[tuple[float, int]]) -> Workload:
    """Every call runs for exactly its function's time."""
    pairs = list(calls)
    times = array("d", (at for at, _ in pairs))
    functions = array("I", (function for _, function in pairs))
    runs = array("d", (models[function].profile.exec_s for _, function in pairs))
    names = tuple(f"f{place}" for place in range(len(models)))
    return Workload(times, functions, runs, names, tuple(models), (), times[-1] if times else 0.0)


def run(
    models: Sequence[Model],
    calls: Iterable[tuple[float, int]],
    policy: str = KEPT,
    nodes: Sequence[Node] = (BIG,),
    timeout_s: float = 60.0,
) -> Outcome:
    return simulate(workload(models, calls), policy=policy, nodes=nodes, timeout_s=timeout_s)


def latencies(outcome: Outcome) -> list[float]:
    pairs = zip(outcome.workload.times_s, outcome.record.finished_s, strict=True)
    return [round(ended - arrived, 6) for arrived, ended in pairs]


def kinds(outcome: Outcome) -> list[str]:
    return outcome.recorder.start
