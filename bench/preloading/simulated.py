"""Table B: 1,000 functions, 125 copies of each of InstaInfer's eight models, simulated for four hours.

50 are hot (a call every six seconds), 150 medium (one a minute), 800 rare (one an hour), each by chance.
Every policy is given the same calls with the same run times, in two models of memory: `processes`, where an
instance is a whole process of InstaInfer's sizes, and `forks`, where it is a fork of a template, as here.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from bench.measure import row
from loadgen.simulation import Node, Outcome, simulate
from loadgen.simulation.api import workload_of
from loadgen.simulation.model import Model
from loadgen.simulation.workload import Workload
from loadgen.traces.model import Instants, Trace, TraceFunction

CLASSES = {"hot": (50, 6.0), "medium": (150, 60.0), "rare": (800, 3600.0)}
"""How many functions, and the mean gap between the calls of each, in seconds."""

ROWS = (
    ("processes", "fixed:keeps=sandbox"),
    ("processes", "fixed"),
    ("processes", "instainfer"),
    ("processes", "worth"),
    ("forks", "fixed"),
    ("forks", "instainfer"),
    ("forks", "worth"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("simulated")
    group.add_argument("--hours", type=float, default=4)
    group.add_argument("--nodes", default="6", help="of 16 GB and 16 cores; several by commas")
    group.add_argument("--rows", help="only those whose model/policy has one of these, by commas")
    group.add_argument("--seed", type=int, default=0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    trace = thousand(options.hours * 3600, options.seed)
    row(f"{len(trace.functions)} functions", *HEADER)
    figures: dict[str, Any] = {}
    for count in map(int, options.nodes.split(",")):
        for model, policy in chosen(options.rows):
            outcome = simulate(
                workload(trace, model, options.seed),
                policy=policy,
                nodes=[Node(16_384, cores=16)] * count,
            )
            row(f"{model}/{policy}", str(count), *cells(outcome))
            figures[f"{model}/{policy}/{count}"] = {**outcome.row(), "classes": rates(outcome)}
    return figures


def chosen(text: str | None) -> Iterator[tuple[str, str]]:
    wanted = text.split(",") if text else [""]
    for model, policy in ROWS:
        if any(one in f"{model}/{policy}" for one in wanted):
            yield model, policy


HEADER = (
    "nodes",
    "hot",
    "medium",
    "rare",
    "mean ms",
    "p99 ms",
    "load ms",
    "GB held",
    "loader CPU s",
    "dropped",
    "took s",
)


def cells(outcome: Outcome) -> list[str]:
    total, latency = outcome.figures, outcome.figures.latency_ms
    return [
        *(f"{rate:.1%}" for rate in rates(outcome).values()),
        f"{latency.mean or 0:,.0f}",
        f"{latency.p99 or 0:,.0f}",
        f"{outcome.loading_ms.mean or 0:,.0f}",
        f"{outcome.memory_mb_s / outcome.ended_at / 1024:,.0f}",
        f"{outcome.loader_cpu_s:,.0f}",
        f"{total.sent - total.succeeded:,}",
        f"{outcome.took_s:,.0f}",
    ]


def rates(outcome: Outcome) -> dict[str, float]:
    """By class: the share of its calls that found everything loaded."""
    found, first = {}, 0
    for name, (count, _) in CLASSES.items():
        found[name] = outcome.rate_of(range(first, first + count))
        first += count
    return found


def thousand(span_s: float, seed: int) -> Trace:
    rng = Random(f"{seed}/thousand")
    gaps_s = [gap_s for count, gap_s in CLASSES.values() for _ in range(count)]
    calls: list[tuple[float, int]] = []
    for function, gap_s in enumerate(gaps_s):
        at = rng.expovariate(1 / gap_s)
        while at < span_s:
            calls.append((at, function))
            at += rng.expovariate(1 / gap_s)
    calls.sort()
    return Trace(
        path=Path("thousand"),
        format="invocations",
        functions=tuple(TraceFunction(f"f{function:03}", 1) for function in range(len(gaps_s))),
        events=Instants(
            array("d", (at for at, _ in calls)), array("I", (function for _, function in calls))
        ),
        span_s=span_s,
    )


def workload(trace: Trace, model: str, seed: int) -> Workload:
    """The models are dealt out in turn; each copy has weights of its own."""
    drawn = workload_of(trace, model, seed=seed)
    return replace(drawn, models=_own_weights(drawn.models))


def _own_weights(models: Sequence[Model]) -> tuple[Model, ...]:
    own: list[Model] = []
    for place, model in enumerate(models):
        stages = tuple(
            replace(stage, shared=tuple((f"{key} {place}", mb) for key, mb in stage.shared))
            for stage in model.profile.stages
        )
        own.append(replace(model, profile=replace(model.profile, stages=stages)))
    return tuple(own)
