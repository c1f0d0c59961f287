"""The report of simulated policies, side by side: page, JSON and folders.

Each policy has a folder of its own besides, with the report that a replay makes.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from faasd import __version__
from loadgen.errors import LoadgenError
from loadgen.report import folder
from loadgen.report.charts import (
    Point,
    Series,
    cdf,
    horizontal_stacks,
    legend,
    scatter,
    stacked_bars,
    timeline,
)
from loadgen.report.page import histogram, ms, nothing, page, percent, table
from loadgen.report.scales import count_label, ms_label, s_label
from loadgen.report.summary import Summary
from loadgen.results import PHASES, START_KINDS
from loadgen.session import Outcome as Replayed
from loadgen.simulation.outcome import Outcome
from loadgen.traces.model import Trace

COLOURS = 12
KINDS = START_KINDS
END = (
    "Latency counts from arrival. Figures of latency are those of calls that were served. Loaded: the share "
    "of them that found libraries and model in memory. Memory is what all places held over time, those that "
    "serve included; loader CPU is what loads ahead of calls took. docs/simulation.md says what is modelled."
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was simulated and how, and what came of it by policy."""

    trace: Trace
    settings: dict[str, Any]
    outcomes: Sequence[Outcome]


_LATENCIES = ("mean", "p50", "p95", "p99", "loading")


def _cells(one: Outcome) -> list[str]:
    latency, total = one.figures.latency_ms, one.figures
    return [
        *map(ms, (latency.mean, latency.p50, latency.p95, latency.p99, one.loading_ms.mean)),
        f"{one.preload_rate:.1%}",
        count_label(one.memory_mb_s / 1000),
        count_label(one.loader_cpu_s),
        f"{total.sent - total.succeeded:,}",
    ]


def present(outcomes: Sequence[Outcome]) -> list[str]:
    found = {kind for one in outcomes for kind in one.figures.start_kinds}
    return [kind for kind in KINDS if kind in found]


# Files


def write(at: Path, comparison: Comparison) -> None:
    """report.html and report.json, and a folder for each policy."""
    for one in comparison.outcomes:
        inner = at / slug(one.policy)
        folder.prepare(inner)
        folder.write(inner, summary_of(one, comparison), as_replayed(one))
    try:
        (at / "report.json").write_text(
            json.dumps(to_json(comparison), indent=2) + "\n", encoding="utf-8"
        )
        (at / "report.html").write_text(render(comparison), encoding="utf-8")
    except OSError as error:
        raise LoadgenError(f"The report in {at} is incomplete ({error.strerror}).") from None


def slug(policy: str) -> str:
    """A policy's choice as the name of a folder."""
    return re.sub(r"[^\w.=-]+", "_", policy).strip("_") or "_"


def to_json(comparison: Comparison) -> dict[str, Any]:
    return {
        **_settings(comparison),
        "policies": [
            {**one.row(), **dataclasses.asdict(one.figures)} for one in comparison.outcomes
        ],
    }


def _settings(comparison: Comparison) -> dict[str, Any]:
    trace = comparison.trace
    return {
        "trace": {
            "file": str(trace.path),
            "format": trace.format,
            "functions": len(trace.functions),
            "span_s": trace.span_s,
        },
        **comparison.settings,
        "versions": {"faasd": __version__, "python": platform.python_version()},
    }


def summary_of(one: Outcome, comparison: Comparison) -> Summary:
    """What a replay's report says, of a simulated policy."""
    span_s = one.ended_at or 1.0
    settings = _settings(comparison)
    return Summary(
        total=one.figures,
        endpoints=one.functions,
        settings={
            **settings,
            "policy": one.policy,
            "url": f"{len(one.nodes)} simulated nodes with policy {one.policy}",
            "speed": 1.0,
            "held_back": 0,
            "stopped_by": None,
            "mapping": {a.function: a.endpoint for a in one.workload.mapping},
        },
        duration_s=one.ended_at,
        offered_rps=one.figures.sent / span_s,
        succeeded_rps=one.figures.succeeded / span_s,
    )


def as_replayed(one: Outcome) -> Replayed:
    names = one.workload.names
    return Replayed(
        record=one.recorder,
        functions=names,
        endpoints=names,
        mapping=one.workload.mapping,
        duration_s=one.ended_at,
        sending_s=one.workload.span_s,
        held_back=0,
        stopped_by=None,
    )


# The page


def render(comparison: Comparison) -> str:
    outcomes = comparison.outcomes
    trace, settings = comparison.trace, comparison.settings
    first = outcomes[0]
    memory_mb = sum(node.memory_mb for node in first.nodes)
    slowest = min(outcomes, key=lambda one: one.calls_per_s)
    return page(
        f"Simulation of {trace.path.name}",
        about=[
            f"{trace.format}, {len(trace.functions)} functions",
            f"profiles {settings['profiles']}",
            f"law {settings['law']}, seed {settings['seed']}",
            f"routing {settings['routing']}",
            f"faasd {__version__}",
        ],
        tiles=[
            ("calls", f"{len(first.workload):,}", f"in {s_label(first.workload.span_s)}"),
            ("policies", f"{len(outcomes)}", f"slowest {slowest.calls_per_s:,.0f} calls/s"),
            ("nodes", f"{len(first.nodes)}", f"{first.nodes[0].cores:g} cores each"),
            ("memory", f"{memory_mb / 1000:,.1f} GB", "of all nodes"),
        ],
        sections={
            "Policies": _table(comparison),
            "Latency": _latency(outcomes),
            "Memory against latency": _pareto(outcomes),
            "Start kinds over time": _starts(outcomes),
            "Memory over time": _memory(outcomes),
            "Where the time goes": _phases(outcomes),
        },
        end=END,
    )


def _css(place: int) -> str:
    return f"s{place % COLOURS + 1}"


def _table(comparison: Comparison) -> str:
    outcomes = comparison.outcomes
    kinds = present(outcomes)
    figures = table(
        ("policy", *_LATENCIES, "loaded", "GB·s", "loader CPU s", "dropped"),
        [[one.policy, *_cells(one)] for one in outcomes],
    )
    starts = table(
        ("starts", *kinds, "loads ahead", "peak GB"),
        [
            [
                one.policy,
                *(percent(one.figures.start_kinds.get(k, 0), one.figures.sent) for k in kinds),
                f"{one.loads:,}",
                f"{one.peak_mb / 1000:,.1f}",
            ]
            for one in outcomes
        ],
    )
    links = " · ".join(
        f'<a href="{slug(one.policy)}/report.html">{escape(one.policy)}</a>' for one in outcomes
    )
    return f"{figures}<br>{starts}<p>In full: {links}</p>"


def _latency(outcomes: Sequence[Outcome]) -> str:
    curves = []
    for place, one in enumerate(outcomes):
        rows = one.recorder
        good = (row for row, code in enumerate(rows.code) if not code)
        values = sorted(map(rows.latency_ms, good))
        if values:
            curves.append(Series(one.policy, _css(place), values))
    if not curves:
        return nothing("No call was served, so there are no latencies.")
    return legend([(curve.name, curve.css) for curve in curves]) + cdf(curves)


def _pareto(outcomes: Sequence[Outcome]) -> str:
    points = [
        Point(
            one.policy,
            _css(place),
            one.memory_mb_s / 1000,
            one.figures.latency_ms.mean,
            [f"{count_label(one.memory_mb_s / 1000)} GB·s", ms(one.figures.latency_ms.mean)],
        )
        for place, one in enumerate(outcomes)
        if one.figures.latency_ms.mean is not None
    ]
    if not points:
        return nothing("No call was served, so there is nothing to weigh.")
    chart = scatter(points, "memory held, GB·s", ms_label, "Mean latency against memory held")
    return chart + "<p>Mean latency by memory held; less is better of both. Joined: the front.</p>"


def _starts(outcomes: Sequence[Outcome]) -> str:
    kinds = present(outcomes)
    if not kinds:
        return nothing("There were no calls.")
    charts = [legend([(kind, f"start-{kind}") for kind in kinds])]
    for one in outcomes:
        width_s = one.bin_s
        bins = max(1, int(one.workload.span_s / width_s) + 1)
        counted: Counter[str] = Counter(one.recorder.start)
        series = [
            Series(kind, f"start-{kind}", _per_bin(one, kind, width_s, bins))
            for kind in kinds
            if counted[kind]
        ]
        charts.append(f"<h3>{escape(one.policy)}</h3>")
        charts.append(stacked_bars(series, width_s, f"Start kinds of {one.policy} over time"))
    return "".join(charts) + f"<p>Calls per {s_label(outcomes[0].bin_s)} by their arrival.</p>"


def _per_bin(one: Outcome, kind: str, width_s: float, bins: int) -> list[float]:
    pairs = zip(one.workload.times_s, one.recorder.start, strict=True)
    return histogram((at for at, start in pairs if start == kind), width_s, bins)


def _memory(outcomes: Sequence[Outcome]) -> str:
    bins = max(1, *(len(one.memory_bins_mb) for one in outcomes))
    series = [
        Series(
            one.policy,
            _css(place),
            [mb / 1000 for mb in one.memory_bins_mb] + [0.0] * (bins - len(one.memory_bins_mb)),
        )
        for place, one in enumerate(outcomes)
    ]
    return (
        legend([(one.name, one.css) for one in series])
        + timeline(series, outcomes[0].bin_s, "Memory over time")
        + "<p>GB, mean of each bin over all nodes.</p>"
    )


def _phases(outcomes: Sequence[Outcome]) -> str:
    told = [one for one in outcomes if one.figures.succeeded]
    if not told:
        return nothing("No call was served.")
    series = [
        Series(phase, f"phase-{phase}", [one.figures.phases_ms[phase].mean or 0.0 for one in told])
        for phase in PHASES
    ]
    return legend([(one.name, one.css) for one in series]) + horizontal_stacks(
        [one.policy for one in told], series, "Mean phases of each policy"
    )
