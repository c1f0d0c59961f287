"""Tables for the terminal: a trace's figures, the mapping, the results of replays and simulations."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from loadgen.inspection import TraceFigures
from loadgen.mapping import RULE, Assignment
from loadgen.report.comparison import present
from loadgen.report.scales import count_label
from loadgen.report.summary import Summary
from loadgen.results import Distribution, Figures
from loadgen.simulation.outcome import Outcome

MAPPING_ROWS = 40
LONGEST_NAME = 40


def mapping_table(mapping: Sequence[Assignment]) -> Table:
    table = Table(box=SIMPLE, title="Mapping", caption=RULE, title_justify="left")
    for name in ("trace function", "endpoint", "because"):
        table.add_column(name, overflow="fold")
    table.add_column("invocations", justify="right")
    for assignment in mapping[:MAPPING_ROWS]:
        table.add_row(
            _name(assignment.function),
            escape(assignment.endpoint),
            assignment.reason,
            f"{assignment.invocations:,}",
        )
    if len(mapping) > MAPPING_ROWS:
        table.add_row(f"and {len(mapping) - MAPPING_ROWS} more", "", "", "")
    return table


def trace_table(figures: TraceFigures) -> Table:
    table = Table(
        box=SIMPLE,
        caption=f"gap: mean between invocations; CV: of the {figures.cv_of}; ms: p50 of the duration",
    )
    table.add_column("function", overflow="fold", min_width=16)
    for name in ("count", "share", "gap s", "CV", "ms", "MB"):
        table.add_column(name, justify="right")
    for function in figures.functions:
        table.add_row(
            _name(function.name),
            f"{function.invocations:,}",
            f"{function.share:.1%}",
            number(function.mean_interarrival_s, 3),
            number(function.cv, 2),
            number(function.duration_ms_p50, 1),
            number(function.memory_mb, 0),
        )
    return table


def result_table(summary: Summary) -> Table:
    table = Table(
        box=SIMPLE,
        caption="ms, of successes: latency p50, p95, p99 from the intended send time; means of load and exec",
    )
    table.add_column("function", overflow="fold", min_width=16)
    for name in ("sent", "failed", "p50", "p95", "p99", "load", "exec"):
        table.add_column(name, justify="right")
    for name, figures in summary.endpoints.items():
        table.add_row(*_cells(name, figures))
    if len(summary.endpoints) != 1:
        table.add_section()
        table.add_row(*_cells("all", summary.total))
    return table


def starts_table(summary: Summary) -> Table:
    table = Table(box=SIMPLE, caption="What requests found; none: no instance was reached.")
    table.add_column("starts", overflow="fold", min_width=16)
    for kind in summary.total.start_kinds:
        table.add_column(kind, justify="right")
    for name, figures in summary.endpoints.items():
        table.add_row(
            escape(name),
            *(f"{figures.start_kinds.get(kind, 0):,}" for kind in summary.total.start_kinds),
        )
    return table


def comparison_table(outcomes: Sequence[Outcome]) -> Table:
    told = Table(
        box=SIMPLE,
        caption="ms; load: mean wait for libraries and model; loaded: calls that found both; "
        "CPU s: of loads ahead",
    )
    told.add_column("policy", overflow="fold", min_width=12)
    for name in ("mean", "p50", "p95", "p99", "load", "loaded", "GB·s", "CPU s", "dropped"):
        told.add_column(name, justify="right")
    for one in outcomes:
        latency, total = one.figures.latency_ms, one.figures
        told.add_row(
            escape(one.policy),
            *map(_ms, (latency.mean, latency.p50, latency.p95, latency.p99, one.loading_ms.mean)),
            f"{one.preload_rate:.1%}",
            count_label(one.memory_mb_s / 1000),
            count_label(one.loader_cpu_s),
            f"{total.sent - total.succeeded:,}",
        )
    return told


def kinds_table(outcomes: Sequence[Outcome]) -> Table:
    kinds = present(outcomes)
    told = Table(box=SIMPLE, caption="What calls found; none: they were dropped.")
    told.add_column("starts", overflow="fold", min_width=10)
    for kind in kinds:
        told.add_column(kind, justify="right")
    for one in outcomes:
        counts = one.figures.start_kinds
        told.add_row(escape(one.policy), *(f"{counts.get(kind, 0):,}" for kind in kinds))
    return told


def _name(name: str) -> str:
    """Two hashes joined do not fit on a terminal; --json and the report have them whole."""
    half = LONGEST_NAME // 2
    return escape(name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}")


def failures_line(figures: Figures) -> str:
    return "  ".join(f"{code} {count:,}" for code, count in figures.failed.items())


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _cells(name: str, figures: Figures) -> list[str]:
    latency = figures.latency_ms
    return [
        escape(name),
        f"{figures.sent:,}",
        f"{figures.sent - figures.succeeded:,}",
        *(_ms(value) for value in (latency.p50, latency.p95, latency.p99)),
        _mean(figures.phases_ms["load"]),
        _mean(figures.phases_ms["exec"]),
    ]


def _mean(values: Distribution) -> str:
    return _ms(values.mean)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return number(value, 2 if value < 10 else 1 if value < 100 else 0)
