"""The way in: a trace, profiles, a policy and nodes make an outcome. For notebooks and the command."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from faasd.policies.preloading import registry
from faasd.policies.preloading.policy import Policy
from faasd.policies.routing.candidate import Router
from faasd.policies.routing.routers import ROUTERS
from loadgen.arrivals import Law
from loadgen.errors import UsageError
from loadgen.simulation import model
from loadgen.simulation.engine import Engine
from loadgen.simulation.model import Model
from loadgen.simulation.node import Node
from loadgen.simulation.outcome import Outcome, outcome_of
from loadgen.simulation.workload import Workload, check_order, draw
from loadgen.traces.detect import read_trace
from loadgen.traces.model import Trace

DEFAULT_PROFILES = "forks"
DEFAULT_ROUTING = "auto"


def simulate(
    trace: Trace | Workload | str | Path,
    profiles: Mapping[str, Model] | str = DEFAULT_PROFILES,
    policy: str | Policy = registry.DEFAULT,
    *,
    nodes: Sequence[Node] = (Node(16_384, cores=16),),
    seed: int = 0,
    law: Law = Law.EXPONENTIAL,
    routing: str = DEFAULT_ROUTING,
    timeout_s: float = 60.0,
    own_figures: bool = False,
) -> Outcome:
    """Runs one policy over a trace. The same arguments, the same outcome. Raises LoadgenError.

    `trace` may be a file, or a workload that was drawn before, to give several policies the same
    calls; `profiles` a file, or a reference: `forks`, `processes`. A policy object is used up.
    """
    workload = (
        trace
        if isinstance(trace, Workload)
        else workload_of(trace, profiles, seed=seed, law=law, own_figures=own_figures)
    )
    check_order(workload)
    chosen = policy_of(policy) if isinstance(policy, str) else policy
    name = policy if isinstance(policy, str) else policy.name
    engine = Engine(
        workload, chosen, check_nodes(nodes), router=router_of(routing, seed), timeout_s=timeout_s
    )
    check_memory(engine)
    began = time.perf_counter()
    with _collecting_less():
        engine.run()
    return outcome_of(engine, name, tuple(nodes), time.perf_counter() - began)


def workload_of(
    trace: Trace | str | Path,
    profiles: Mapping[str, Model] | str = DEFAULT_PROFILES,
    *,
    seed: int = 0,
    law: Law = Law.EXPONENTIAL,
    own_figures: bool = False,
    override: Mapping[str, str] | None = None,
) -> Workload:
    read = trace if isinstance(trace, Trace) else read_trace(Path(trace))
    known = model.read_profiles(profiles) if isinstance(profiles, str) else profiles
    return draw(read, known, law=law, seed=seed, own_figures=own_figures, override=override)


def policy_of(choice: str) -> Policy:
    try:
        return registry.make(choice)
    except ValueError as error:
        raise UsageError(f"--policy {choice}: {error}.") from None


def split_policies(text: str) -> list[str]:
    """Policies by commas, which stand between the options of one as well. Raises UsageError."""
    choices: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if choices and "=" in part and ":" not in part:
            choices[-1] += f",{part}"
        else:
            choices.append(part)
    if not choices:
        raise UsageError("--policy names no policy.")
    for choice in choices:
        policy_of(choice)
        if choices.count(choice) > 1:
            raise UsageError(f"--policy names {choice} twice.")
    return choices


def router_of(name: str, seed: int) -> Router:
    if name not in ROUTERS:
        raise UsageError(f"There is no routing {name!r}; known are {', '.join(ROUTERS)}.")
    return ROUTERS[name](random.Random(f"{seed}/routing"))


def check_nodes(nodes: Sequence[Node]) -> Sequence[Node]:
    if not nodes:
        raise UsageError("A simulation needs at least one node.")
    for node in nodes:
        if not (node.memory_mb > 0 and node.cores > 0 and node.starts_at_once >= 1):
            raise UsageError(
                f"{node} is no node: memory and cores must be above 0, starts at least 1."
            )
    return nodes


def check_memory(engine: Engine) -> None:
    """Raises UsageError where no function fits anywhere: nothing could be simulated."""
    if len(engine.never_fit()) == len(engine.workload.models):
        least_mb = min(map(engine.world.needs_mb, range(len(engine.workload.models))))
        most_mb = max(node.memory_mb for node in engine.world.nodes)
        raise UsageError(
            f"No function fits into {most_mb:,.0f} MB, which is the memory of the largest node; "
            f"the smallest needs {least_mb:,.0f} MB: raise --memory."
        )


@contextmanager
def _collecting_less() -> Iterator[None]:
    """The run makes few cycles and keeps much: looking for garbage all the time is of no use."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
