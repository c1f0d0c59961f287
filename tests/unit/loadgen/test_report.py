"""The report's page and figures, for runs from nothing to many."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
from array import array
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from yarl import URL

from loadgen.arrivals import Law
from loadgen.mapping import Assignment
from loadgen.report import folder
from loadgen.report.html import render
from loadgen.report.scales import bin_width_s, linear_ticks, log_ticks, time_ticks
from loadgen.report.summary import summarise
from loadgen.results import NO_PHASES, START_KINDS, Recorder, Reply
from loadgen.session import Outcome, Plan
from loadgen.traces.model import Instants, Trace, TraceFunction

VOID = {"meta", "br", "link", "img", "input"}


class Balanced(HTMLParser):
    """Fails on an end tag that closes something else than what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def plan() -> Plan:
    functions = (TraceFunction("<f>", 2), TraceFunction("g", 1))
    events = Instants(array("d", [0, 1, 2]), array("I", [0, 0, 1]))
    return Plan(
        trace=Trace(Path("folder/t.csv"), "invocations", functions, events, 10.0),
        url=URL("http://127.0.0.1:8080"),
        speed=2.0,
        law=Law.UNIFORM,
        seed=3,
        timeout_s=60,
        max_outstanding=10,
        override={},
        payloads={},
        api_key="secret",
    )


def outcome(
    replies: Sequence[Reply | None], *, stopped_by: signal.Signals | None = None
) -> Outcome:
    record = Recorder()
    for number, reply in enumerate(replies):
        place = number % 2
        row = record.begin(
            intended_s=number * 0.01, sent_s=number * 0.01, function=place, endpoint=place
        )
        if reply is not None:
            record.finish(row, reply, finished_s=number * 0.01 + 0.002 * (number + 1))
    return Outcome(
        record=record,
        functions=["<f>", "g"],
        endpoints=["<a>", "b"],
        mapping=[Assignment("<f>", 2, "<a>", "in turn"), Assignment("g", 1, "b", "in turn")],
        duration_s=5.0,
        sending_s=4.0,
        held_back=0,
        stopped_by=stopped_by,
    )


RUNS = {
    "nothing sent": outcome([]),
    "nothing answered": outcome([None, None]),
    "nothing succeeded": outcome([Reply("connection_error")] * 3),
    "one success": outcome([Reply("", 200, "cold", (0.1, 100, 900, 400, 3))]),
    "no headers": outcome([Reply("", 200)] * 5),
    "many": outcome(
        [Reply("", 200, START_KINDS[i % 5], (0.1, 0, 0, 0, i)) for i in range(3000)]
        + [Reply("queue_full", 429)]
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(run: Outcome) -> None:
    page = render(summarise(plan(), run), run)
    parser = Balanced()
    parser.feed(page)
    parser.close()

    assert parser.open == []
    assert not re.search(r"https?://", page)
    assert not re.search(r"<script[^>]+src|<link|@import|url\(", page)
    assert not re.search(r"\bnan\b|\binf\b|None(?!:)", page)
    assert "$" not in re.sub(r"\$\{button", "", page)


def test_the_page_escapes_names_and_keeps_the_key_to_itself() -> None:
    run = RUNS["many"]
    page = render(summarise(plan(), run), run)

    assert "<a>" not in page
    assert "&lt;a&gt;" in page
    assert "secret" not in page


def test_the_folder_holds_figures_rows_and_page(tmp_path: Path) -> None:
    run = RUNS["many"]
    folder.prepare(tmp_path / "new" / "report")
    folder.write(tmp_path / "new" / "report", summarise(plan(), run), run)

    report = json.loads((tmp_path / "new/report/report.json").read_text())
    with (tmp_path / "new/report/invocations.csv").open() as file:
        rows = list(csv.DictReader(file))

    assert report["sent"] == len(rows) == 3001
    assert report["failed"] == {"queue_full": 1}
    assert report["functions"]["b"]["sent"] == 1500
    assert report["mapping"] == {"<f>": "<a>", "g": "b"}
    assert (report["speed"], report["seed"], report["law"]) == (2.0, 3, "uniform")
    assert set(report["phases_ms"]) == {"queue", "sandbox", "libs", "load", "exec"}
    assert set(report["latency_ms"]) >= {"mean", "p50", "p95", "p99", "max"}
    assert rows[0]["function"] == "<f>"
    assert rows[0]["latency_ms"] == "2.000"
    assert rows[-1]["code"] == "queue_full"
    assert rows[-1]["exec_ms"] == ""
    assert "secret" not in (tmp_path / "new/report/report.json").read_text()


def test_the_offered_rate_is_over_the_trace_unless_it_was_stopped() -> None:
    replies: list[Reply | None] = [Reply("", 200, "warm", NO_PHASES)] * 10

    assert summarise(plan(), outcome(replies)).offered_rps == pytest.approx(2.0)
    stopped = outcome(replies, stopped_by=signal.SIGINT)
    assert summarise(plan(), stopped).offered_rps == pytest.approx(2.5)


@pytest.mark.parametrize("high", [0.0, 0.3, 1, 7, 10, 99, 12345.6])
def test_linear_ticks_are_few_and_reach_the_top(high: float) -> None:
    ticks = linear_ticks(high)

    assert ticks[0] == 0
    assert ticks[-1] >= high * 0.999999
    assert 2 <= len(ticks) <= 7
    assert all(tick == int(tick) for tick in linear_ticks(high, whole=True))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (0.9, 1.1), (3, 4), (0.02, 50_000), (9, 11)])
def test_log_ticks_enclose_the_values(low: float, high: float) -> None:
    ticks = log_ticks(low, high)

    assert len(ticks) >= 2
    assert ticks == sorted(ticks)
    assert ticks[0] <= low
    assert ticks[-1] >= high


@pytest.mark.parametrize("span_s", [0.05, 1, 59, 3600, 86_400, 30 * 86_400])
def test_bins_and_time_ticks_are_few_whatever_the_span(span_s: float) -> None:
    assert math.ceil(span_s / bin_width_s(span_s)) <= 100
    assert 1 <= len(time_ticks(span_s)) <= 11
