"""`loadgen simulate`: what is printed, written and returned; and its report."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loadgen.cli import main
from loadgen.report.charts import Point, front

Run = Callable[..., tuple[int, str, str]]

ROWS = "".join(f"{'hot' if n % 4 else 'rare'},{n * 500}\n" for n in range(60))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["loadgen", "simulate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def trace(write: Callable[[str, str], Path]) -> Path:
    return write("t.csv", f"func_name,invoke_time_ms\n{ROWS}")


class Page(HTMLParser):
    """Whether every element is closed, and the text of the headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"h2", "h3"}:
            self.headings.append(data)


def test_it_works_without_a_profile_file_and_compares_policies_side_by_side(
    run: Run, trace: Path
) -> None:
    code, printed, _ = run(trace, "--policy", "worth,none,fixed:idle_s=5,keeps=sandbox")

    assert code == 0
    for policy in ("worth:", "none:", "fixed:idle_s=5,keeps=sandbox:"):
        assert f"{policy} 60 calls in" in printed
    assert "pooled" in printed


def test_json_has_the_columns_of_a_replay_and_those_of_policies(run: Run, trace: Path) -> None:
    code, printed, said = run(trace, "--policy", "fixed,none", "--json", "--seed", 3)

    found = json.loads(printed)
    fixed, nothing = found["policies"]
    assert code == 0
    assert "60 calls" in said
    assert (found["seed"], found["nodes"]) == (3, 1)
    assert fixed["sent"] == fixed["succeeded"] == 60
    assert {"latency_ms", "phases_ms", "start_kinds", "send_lag_ms"} <= fixed.keys()
    assert fixed["preload_rate"] > nothing["preload_rate"]
    assert fixed["memory_mb_s"] > nothing["memory_mb_s"] > 0
    assert fixed["latency_ms"]["mean"] < nothing["latency_ms"]["mean"]


def test_the_same_seed_prints_the_same_figures(run: Run, trace: Path) -> None:
    def figures(seed: int) -> object:
        found = json.loads(run(trace, "--json", "--seed", seed)[1])["policies"][0]
        return found.pop("calls_simulated_per_s") and found

    assert figures(1) == figures(1) != figures(2)


def test_the_report_is_a_page_of_all_policies_and_a_folder_for_each(
    run: Run, trace: Path, tmp_path: Path
) -> None:
    report = tmp_path / "r"

    code, printed, _ = run(trace, "--policy", "worth,fixed:idle_s=5", "--report", report)

    assert code == 0
    assert f"report: {report / 'report.html'}" in printed
    page = Page((report / "report.html").read_text())
    assert page.open == []
    assert page.headings == [
        "Policies",
        "Latency",
        "Memory against latency",
        "Start kinds over time",
        "worth",
        "fixed:idle_s=5",
        "Memory over time",
        "Where the time goes",
    ]
    assert len(json.loads((report / "report.json").read_text())["policies"]) == 2
    with (report / "fixed_idle_s=5" / "invocations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {row["start"] for row in rows} <= {"warm", "fork", "pooled"}
    assert Page((report / "worth" / "report.html").read_text()).open == []


def test_all_calls_dropped_is_a_failure_that_still_reports(
    run: Run, trace: Path, tmp_path: Path
) -> None:
    code, printed, _ = run(
        trace, "--policy", "none", "--timeout", 0.001, "--report", tmp_path / "r"
    )

    assert code == 1
    assert "dropped: deadline_exceeded 60" in printed
    assert Page((tmp_path / "r/report.html").read_text()).open == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--policy", "nope"), "there is no policy 'nope'; choose one of worth, none,"),
        (("--policy", ","), "--policy names no policy."),
        (("--policy", "fixed,fixed"), "--policy names fixed twice."),
        (("--policy", "fixed:idle=3"), "fixed has no option 'idle=3'; its options: idle_s"),
        (("--memory", 5), "No function fits into 5 MB"),
        (("--memory", 5), "the smallest needs 255 MB: raise --memory."),
        (("--routing", "psychic"), "There is no routing 'psychic'; known are auto"),
        (("--profiles", "no.json"), "There is no profile file no.json; name one, or a reference"),
        (("--map", "cold=alexnet"), "--map names 'cold', which is not in the replayed part"),
        (("--map", "hot=lenet"), "--map sends 'hot' to 'lenet', which is not deployed"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_a_sentence(
    run: Run, trace: Path, options: tuple[object, ...], said: str
) -> None:
    code, printed, error = run(trace, *options)

    assert (code, printed) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_a_trace_that_is_out_of_order_or_has_gaps_is_simulated(
    run: Run, write: Callable[[str, str], Path]
) -> None:
    trace = write("t.csv", "func_name,invoke_time_ms\na,900000\na,5\nb,100000000\na,6\n")

    code, printed, _ = run(trace, "--policy", "worth,histogram,instainfer")

    assert code == 0
    assert printed.count("4 calls in") == 3


def test_the_front_is_what_none_beats_in_both() -> None:
    points = [
        Point(f"{x} {y}", "s1", x, y, ()) for x, y in [(3, 1), (1, 5), (2, 6), (2, 2), (4, 1)]
    ]

    assert [(one.x, one.y) for one in front(points)] == [(1, 5), (2, 2), (3, 1)]
