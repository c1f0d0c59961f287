"""The command line: what is printed, written and returned."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.cli import main

Write = Callable[[str, str], Path]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["loadgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_synth_writes_what_inspect_reads(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    options = ("--functions", 6, "--duration", 60, "--rate", 5, "--shape", "azure", "--seed", 1)

    assert run("synth", "--out", out, *options)[0] == 0
    code, printed, _ = run("inspect", out, "--json")

    assert code == 0
    assert json.loads(printed)["format"] == "invocations"
    assert json.loads(printed)["invocations"] == 300
    assert len(json.loads(printed)["functions"]) == 6


def test_inspect_prints_a_table_and_keeps_to_the_window(run: Run, write: Write) -> None:
    trace = write("t.csv", "HashFunction,1,2\nhot,9,1\ncold,1,0\n")

    code, printed, _ = run("inspect", trace, "--duration", 60, "--functions", 1)

    assert code == 0
    assert "9 invocations of 1 functions in 60.0 s" in printed
    assert "hot" in printed


def test_a_malformed_trace_fails_with_one_line(run: Run, write: Write) -> None:
    trace = write("t.csv", "func_name,invoke_time_ms\na,later\n")

    code, printed, said = run("inspect", trace)

    assert (code, printed) == (1, "")
    assert said == (
        f"loadgen: {trace}, line 2: invoke_time_ms is 'later'; expected a number of at least 0.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "missing.csv"),
        ("replay", "missing.csv", "--report", "r"),
        ("replay", "missing.csv"),
        ("synth", "--out", "x.csv", "--shape", "square"),
        ("synth", "--out", "x.csv", "--functions", 100, "--duration", 1, "--rate", 1),
        ("inspect", "missing.csv", "--format", "parquet"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(run: Run, arguments: tuple[object, ...]) -> None:
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("option", "value"), [("--url", "here"), ("--map", "x"), ("--duration", 0.5)]
)
def test_replay_refuses_bad_options_before_anything_is_sent(
    run: Run, write: Write, tmp_path: Path, option: str, value: object
) -> None:
    trace = write("t.csv", "func_name,invoke_time_ms\na,900\n")

    code, _, said = run("replay", trace, "--report", tmp_path / "r", option, value)

    assert code == 2
    assert said.startswith("loadgen: ")


def test_an_unreachable_platform_fails_with_the_remedy(
    run: Run, write: Write, tmp_path: Path, unused_port: int
) -> None:
    trace = write("t.csv", "func_name,invoke_time_ms\na,0\n")

    code, _, said = run(
        "replay", trace, "--report", tmp_path / "r", "--url", f"http://127.0.0.1:{unused_port}"
    )

    assert code == 1
    assert "cannot be reached" in said
    assert "faasd up" in said
    assert "Traceback" not in said
