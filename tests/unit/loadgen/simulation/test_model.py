"""Profiles: references, files, what is wrong with them, the steps of starts and the run times."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from faasd.policies.preloading.levels import Level
from loadgen.errors import UsageError
from loadgen.simulation import Node, simulate
from loadgen.simulation.model import LIBS, LOAD, REFERENCES, SANDBOX, Step, parse, read_profiles
from loadgen.simulation.workload import Workload
from tests.unit.loadgen.simulation.worlds import process, workload

Write = Callable[[str, str], Path]


@pytest.mark.parametrize("name", REFERENCES)
def test_the_references_have_the_eight_models(name: str) -> None:
    models = read_profiles(name)

    assert len(models) == 8
    assert all(0.2 <= one.profile.exec_s <= 0.7 for one in models.values())
    for one in models.values():
        steps = one.steps(one.profile.floor.level, Level.INSTANCE)
        assert sum(step.waits_s + step.computes_s for step in steps) == pytest.approx(
            one.profile.load_s(Level.INSTANCE)
        )


def test_processes_are_instainfers_sizes_and_add_up_to_its_sum() -> None:
    models = read_profiles("processes")

    assert sum(one.profile.stages[-1].private_mb for one in models.values()) == 8792


def test_a_start_waits_for_half_of_a_sandbox_and_computes_the_rest() -> None:
    assert process().steps(Level.ABSENT, Level.INSTANCE) == (
        Step(SANDBOX, 0.25, 0.25),
        Step(LIBS, 0.0, 1.0),
        Step(LOAD, 0.0, 2.0),
    )


def test_forks_own_their_weights_unless_they_say_with_whom_they_share_them() -> None:
    figures = {
        "kind": "forks",
        "floor_s": 0,
        "import_s": 0,
        "load_s": 1,
        "exec_s": 1,
        "template_mb": 1,
        "weights_mb": 100,
    }

    models = parse({"common": figures, "functions": {"a": {}, "b": {"weights": "base"}}}, "x")

    shared = [one.profile.stage(Level.RESIDENT).shared for one in models.values()]
    assert shared == [(("a", 100),), (("base", 100),)]


def test_levels_may_be_given_one_by_one(write: Write) -> None:
    path = write(
        "p.json",
        json.dumps(
            {
                "functions": {
                    "f": {
                        "kind": "stages",
                        "exec_s": 0.5,
                        "exec_cv": 0,
                        "stages": [
                            {"level": "absent", "start_s": 2.0},
                            {
                                "level": "instance",
                                "start_s": 0.0,
                                "private_mb": 50,
                                "load_s": 2.0,
                                "load_cpu_s": 1.0,
                            },
                        ],
                    }
                }
            }
        ),
    )

    model = read_profiles(str(path))["f"]

    assert model.steps(Level.ABSENT, Level.INSTANCE) == (Step(LOAD, 1.0, 1.0),)
    assert (model.profile.exec_s, model.profile.stages[-1].private_mb) == (0.5, 50)


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ({}, "has no functions; expected"),
        ({"f": 3}, "function 'f': expected an object of figures."),
        ({"f": {}}, "kind is None; expected processes, forks, stages."),
        ({"f": {"kind": "processes"}}, "missing 5 required keyword-only arguments"),
        ({"f": {"kind": "forks", "speed": 1}}, "unexpected keyword argument 'speed'"),
        ({"f": {"kind": "forks", "load_s": -1}}, "load_s is -1; expected a number of at least 0."),
        ({"f": {"kind": "forks", "exec_s": 0}}, "exec_s is 0; expected seconds above 0."),
        ({"f": {"kind": "forks", "most": 0.5}}, "most is 0.5; expected a whole number"),
        (
            {"f": {"kind": "forks", "law": "zipf"}},
            "law is 'zipf'; expected lognormal, exponential.",
        ),
        (
            {"f": {"kind": "stages", "exec_s": 1, "stages": [{"level": "warm", "start_s": 0}]}},
            "level is 'warm'; expected absent, sandbox,",
        ),
        ({"f": {"kind": "stages", "exec_s": 1, "stages": []}}, "stages must rise from a floor"),
        ({"f": {"kind": "stages", "exec_s": 1}}, "stages"),
        ({"f": {"kind": "forks", "load_s": "long"}}, "load_s is 'long'; expected a number"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(functions: object, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse({"functions": functions}, "p.json")

    assert str(raised.value).startswith("p.json")
    assert said in str(raised.value)


def test_a_file_that_is_no_json_is_said_to_be_none(write: Write) -> None:
    with pytest.raises(UsageError, match="are not JSON"):
        read_profiles(str(write("p.json", "{")))


@pytest.mark.parametrize(
    ("law", "cv"), [("lognormal", 0.3), ("lognormal", 2.0), ("exponential", 1)]
)
def test_run_times_have_the_mean_and_the_variation_of_the_profile(law: str, cv: float) -> None:
    draw, rng = process(exec_cv=cv, law=law).draw(), random.Random(1)

    drawn = [draw(rng) for _ in range(200_000)]

    assert fmean(drawn) == pytest.approx(1.0, rel=0.03)
    assert pstdev(drawn) / fmean(drawn) == pytest.approx(cv, rel=0.1)


def test_the_api_takes_a_file_and_says_what_came_of_it(write: Write) -> None:
    trace = write("t.csv", "func_name,invoke_time_ms\na,0\nb,10\na,20000\n")

    outcome = simulate(trace, policy="fixed", nodes=[Node(8000, cores=4)] * 2, seed=1)

    assert outcome.figures.sent == 3
    assert outcome.row()["policy"] == "fixed"
    assert repr(outcome).startswith("<Outcome of fixed: 3 calls, mean ")


@pytest.mark.parametrize("times", [[1.0, 0.5], [-1.0, 0.0], [0.0, math.nan]])
def test_time_that_goes_back_is_refused_with_where_it_did(times: list[float]) -> None:
    drawn: Workload = workload([process()], [(at, 0) for at in times])

    with pytest.raises(UsageError, match=r"Time goes back: call . comes at .* sort the calls"):
        simulate(drawn)


@pytest.mark.parametrize("nodes", [[], [Node(0.0)], [Node(100.0, cores=0)]])
def test_nodes_that_are_none_are_refused(nodes: list[Node]) -> None:
    with pytest.raises(UsageError, match="node"):
        simulate(workload([process()], [(0.0, 0)]), nodes=nodes)
