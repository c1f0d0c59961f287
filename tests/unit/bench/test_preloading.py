"""The simulated thousand functions: their calls, their weights, and a short run of the command."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from bench.preloading import simulated
from bench.preloading.__main__ import main
from faasd.policies.preloading.levels import Level
from loadgen.traces.model import Instants


def test_the_classes_are_called_as_often_as_they_say() -> None:
    trace = simulated.thousand(3600.0, seed=1)

    assert isinstance(trace.events, Instants)
    calls = Counter(
        "hot" if function < 50 else "medium" if function < 200 else "rare"
        for function in trace.events.functions
    )
    assert calls["hot"] == pytest.approx(50 * 600, rel=0.05)
    assert calls["medium"] == pytest.approx(150 * 60, rel=0.05)
    assert calls["rare"] == pytest.approx(800, rel=0.15)


def test_copies_of_a_model_share_no_weights() -> None:
    drawn = simulated.workload(simulated.thousand(60.0, seed=1), "forks", 1)

    keys = [key for one in drawn.models for key, _ in one.profile.stage(Level.RESIDENT).shared]
    assert len(keys) == len(set(keys)) == 1000


def test_the_command_prints_a_row_for_each_and_ends_with_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--hours", "0.02", "--nodes", "1,2", "--rows", "forks/fixed,processes/fixed"]
    monkeypatch.setattr(sys, "argv", ["bench.preloading", *options])

    main()

    *_, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last.removeprefix("RESULT "))["simulated"]
    rows = {"forks/fixed", "processes/fixed", "processes/fixed:keeps=sandbox"}
    assert set(found) == {f"{one}/{nodes}" for one in rows for nodes in (1, 2)}
    assert set(found["forks/fixed/2"]["classes"]) == {"hot", "medium", "rare"}
