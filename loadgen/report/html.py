"""report.html: one page that needs nothing else, made from the summary and the rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from loadgen.report.charts import (
    Series,
    cdf,
    horizontal_stacks,
    legend,
    stacked_bars,
    timeline,
)
from loadgen.report.page import Tile, folded, histogram, ms, nothing, page, percent, table
from loadgen.report.scales import bin_width_s, s_label
from loadgen.report.summary import Summary
from loadgen.results import PHASES, START_KINDS, Figures, Recorder
from loadgen.session import Outcome

MOST_CURVES = 8
MOST_STACKS = 30
END = (
    "Latency counts from the instant a request was intended to be sent, so waiting behind a stall is part "
    "of it. Figures of latency and phases are those of successes. Percentiles are exact, nearest-rank. "
    "Send lag is how late the generator itself was: if it is not small against the latencies, the "
    "generator could not keep up."
)


def render(summary: Summary, outcome: Outcome) -> str:
    return page(
        f"Replay of {summary.settings['trace']['file'].rsplit('/', 1)[-1]}",
        about=_about(summary),
        tiles=_headline(summary),
        sections={
            "Latency": _latency(summary, outcome),
            "Start kinds": _starts(outcome),
            "Throughput": _load(outcome),
            "Where the time goes": _phases(summary),
            "Functions": _functions_table(summary),
            "Failures": _failures(summary),
            "Mapping": folded("Mapping of trace functions", _mapping(outcome)),
        },
        end=END,
    )


def _about(summary: Summary) -> list[str]:
    settings = summary.settings
    trace = settings["trace"]
    facts = [
        f"{trace['format']}, {trace['functions']} functions",
        f"{s_label(trace['span_s'])} at speed {settings['speed']:g}",
        f"law {settings['law']}, seed {settings['seed']}",
        f"against {settings['url'].split('://')[-1]}",
        f"faasd {settings['versions']['faasd']}",
    ]
    if settings["stopped_by"]:
        facts.append(f"stopped by {settings['stopped_by']}")
    return facts


def _headline(summary: Summary) -> list[Tile]:
    total = summary.total
    failed = total.sent - total.succeeded
    reached = total.sent - total.start_kinds.get("none", 0)
    cold = total.start_kinds.get("cold", 0)
    return [
        ("sent", f"{total.sent:,}", f"{summary.offered_rps:,.1f}/s offered"),
        ("succeeded", f"{total.succeeded:,}", f"{summary.succeeded_rps:,.1f}/s"),
        ("failed", f"{failed:,}", percent(failed, total.sent)),
        ("latency p50", ms(total.latency_ms.p50), f"mean {ms(total.latency_ms.mean)}"),
        ("latency p99", ms(total.latency_ms.p99), f"max {ms(total.latency_ms.max)}"),
        (
            "cold starts",
            f"{cold:,}",
            f"{percent(cold, reached)} of starts" if reached else "no starts",
        ),
        ("send lag p99", ms(total.send_lag_ms.p99), f"max {ms(total.send_lag_ms.max)}"),
    ]


def _latency(summary: Summary, outcome: Outcome) -> str:
    record = outcome.record
    good = [row for row in range(len(record)) if not record.code[row]]
    if not good:
        return nothing("No request succeeded, so there are no latencies.")
    curves = [Series("all", "all", sorted(record.latency_ms(row) for row in good))]
    by_requests = sorted(summary.endpoints, key=lambda name: -summary.endpoints[name].succeeded)
    shown = [name for name in by_requests if summary.endpoints[name].succeeded][:MOST_CURVES]
    place = {name: index for index, name in enumerate(outcome.endpoints)}
    for number, name in enumerate(shown if len(summary.endpoints) > 1 else [], start=1):
        rows = (row for row in good if record.endpoint[row] == place[name])
        curves.append(Series(name, f"s{number}", sorted(map(record.latency_ms, rows))))
    note = ""
    if len(by_requests) > MOST_CURVES:
        note = f"<p>The {MOST_CURVES} functions with most requests; the table has all.</p>"
    return legend([(curve.name, curve.css) for curve in curves]) + cdf(curves) + note


def _starts(outcome: Outcome) -> str:
    record = outcome.record
    if not len(record):
        return nothing("Nothing was sent.")
    width_s, bins = _bins(outcome)
    present = Counter(record.start)
    kinds = [kind for kind in START_KINDS if present[kind]]
    kinds += sorted(present.keys() - set(kinds))
    series = []
    for kind in kinds:
        sent = (
            at for at, start in zip(record.intended_s, record.start, strict=True) if start == kind
        )
        css = f"start-{kind}" if kind in START_KINDS else "start-none"
        series.append(Series(kind, css, histogram(sent, width_s, bins)))
    chart = stacked_bars(series, width_s, "Start kinds over time")
    return (
        legend([(one.name, one.css) for one in series])
        + chart
        + f"<p>Requests per {s_label(width_s)} by their intended time; none: no instance was "
        "reached, or the response did not say.</p>"
    )


def _load(outcome: Outcome) -> str:
    record = outcome.record
    if not len(record):
        return nothing("Nothing was sent.")
    width_s, bins = _bins(outcome)
    sent = histogram(record.sent_s, width_s, bins)
    good = histogram(_ends(record, failed=False), width_s, bins)
    bad = histogram(_ends(record, failed=True), width_s, bins)
    rates = [
        Series("sent", "s1", [count / width_s for count in sent]),
        Series("succeeded", "s2", [count / width_s for count in good]),
        Series("failed", "s8", [count / width_s for count in bad]),
    ]
    outstanding = [Series("outstanding", "s7", _outstanding(record, width_s, bins))]
    return (
        legend([(one.name, one.css) for one in rates])
        + timeline(rates, width_s, "Requests a second over time")
        + f"<p>Per second, in bins of {s_label(width_s)}.</p><h3>Outstanding</h3>"
        + timeline(outstanding, width_s, "Outstanding requests over time", filled=True)
        + "<p>Sent and not yet answered: the most at once in each bin.</p>"
    )


def _phases(summary: Summary) -> str:
    told = {
        name: [figures.phases_ms[phase].mean or 0.0 for phase in PHASES]
        for name, figures in summary.endpoints.items()
        if any(figures.phases_ms[phase].count for phase in PHASES)
    }
    if not told or not any(map(any, told.values())):
        return nothing("No response told its phases (Server-Timing).")
    names = sorted(told, key=lambda name: -sum(told[name]))[:MOST_STACKS]
    series = [
        Series(phase, f"phase-{phase}", [told[name][place] for name in names])
        for place, phase in enumerate(PHASES)
    ]
    return legend([(one.name, one.css) for one in series]) + horizontal_stacks(
        names, series, "Mean phases of each function"
    )


def _functions_table(summary: Summary) -> str:
    parts = [*summary.endpoints.items(), ("all", summary.total)]
    kinds = list(summary.total.start_kinds)
    latencies = table(
        ("latency", "requests", "failed", "mean", "p50", "p95", "p99", "max"),
        [_latency_row(name, figures) for name, figures in parts],
    )
    starts = table(
        ("starts and mean phases", *kinds, *PHASES),
        [_starts_row(name, figures, kinds) for name, figures in parts],
    )
    return f"{latencies}<br>{starts}"


def _latency_row(name: str, figures: Figures) -> list[str]:
    latency = figures.latency_ms
    return [
        name,
        f"{figures.sent:,}",
        f"{figures.sent - figures.succeeded:,}",
        *map(ms, (latency.mean, latency.p50, latency.p95, latency.p99, latency.max)),
    ]


def _starts_row(name: str, figures: Figures, kinds: Sequence[str]) -> list[str]:
    return [
        name,
        *(f"{figures.start_kinds.get(kind, 0):,}" for kind in kinds),
        *(ms(figures.phases_ms[phase].mean) for phase in PHASES),
    ]


def _failures(summary: Summary) -> str:
    total = summary.total
    if not total.failed:
        return nothing("None: every request that was sent succeeded.")
    rows = []
    for code, count in total.failed.items():
        where = Counter(
            {n: f.failed[code] for n, f in summary.endpoints.items() if code in f.failed}
        )
        told = ", ".join(f"{name} ({number:,})" for name, number in where.most_common(6))
        more = ", ..." if len(where) > 6 else ""
        rows.append([code, f"{count:,}", percent(count, total.sent), told + more])
    return table(("code", "requests", "of sent", "functions"), rows, words=("functions",))


def _mapping(outcome: Outcome) -> str:
    rows = [[a.function, f"{a.invocations:,}", a.endpoint, a.reason] for a in outcome.mapping]
    head = ("trace function", "invocations", "endpoint", "because")
    return table(head, rows, words=("endpoint", "because"))


def _bins(outcome: Outcome) -> tuple[float, int]:
    record = outcome.record
    last = max(record.sent_s)
    ended = [at for at in record.finished_s if not math.isnan(at)]
    span_s = max([last, *ended, 0.05])
    width_s = bin_width_s(span_s)
    return width_s, max(1, math.ceil(span_s / width_s))


def _ends(record: Recorder, *, failed: bool) -> Iterable[float]:
    for code, end in zip(record.code, record.finished_s, strict=True):
        if bool(code) is failed and not math.isnan(end):
            yield end


def _outstanding(record: Recorder, width_s: float, bins: int) -> list[float]:
    """The most requests that were under way at one time, for each bin."""
    changes = [(at, 1) for at in record.sent_s]
    changes += [(at, -1) for at in record.finished_s if not math.isnan(at)]
    changes.sort()
    peaks, level, current = [0.0] * bins, 0, 0
    for at, change in changes:
        reached = min(bins - 1, int(at / width_s))
        for place in range(current + 1, reached + 1):
            peaks[place] = level
        current = reached
        level += change
        peaks[current] = max(peaks[current], level)
    peaks[current + 1 :] = [float(level)] * (bins - current - 1)
    return peaks
