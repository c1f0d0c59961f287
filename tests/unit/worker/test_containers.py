"""What the engine is told of a container's processors."""

from __future__ import annotations

import os

import pytest

from tests.unit.worker.nodes import revision
from worker.sandboxes.docker import containers


@pytest.mark.parametrize("cpus", [0.5, 1.0])
def test_quota_and_weight_are_in_proportion_to_the_cores_asked_for(cpus: float) -> None:
    told = containers.processors(cpus)

    assert told == {"NanoCpus": cpus * 1e9, "CpuShares": cpus * 1024}


def test_a_quota_of_more_than_the_machine_has_is_not_asked_for() -> None:
    """The engine would refuse it, and with it all that it is told at the same time."""
    cores = os.cpu_count() or 1

    told = containers.processors(4.0 * cores)

    assert told == {"NanoCpus": cores * 10**9, "CpuShares": 4096 * cores}


def test_a_program_of_its_own_has_its_part_of_the_processors_from_the_start() -> None:
    resources = {"cpus": 0.5}
    program = revision("web", contract="http", image="web", resources=resources)

    config = containers.program("web", {}, program, network="none", binds=[], environment={})

    host = config["HostConfig"]
    assert (host["NanoCpus"], host["CpuShares"]) == (5 * 10**8, 512)
