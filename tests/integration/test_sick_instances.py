"""An instance that an input broke for good, in real processes."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.platform import Platform, eventually

BREAKS = """
import os
broken = False
def handle(event, context):
    global broken
    broken = broken or bool(event.get("breaks"))
    if broken:
        raise RuntimeError("context is destroyed")
    return os.getpid()
"""

ALWAYS = """
import os
def handle(event, context):
    raise RuntimeError(str(os.getpid()))
"""


def ejected(platform: Platform, name: str) -> int:
    [worker] = platform.get("/v1/workers").json()["workers"]
    found = [one for one in worker["functions"] if one["function"] == f"default/{name}"]
    return int(found[0]["ejected"])


def test_a_broken_instance_is_replaced_by_a_fork_that_serves(tmp_path: Path) -> None:
    with Platform(tmp_path) as platform:
        platform.must_deploy("breaks", BREAKS, limits={"max_instances": 1})
        before = platform.post("/invoke/breaks", {}).json()

        platform.post("/invoke/breaks", {"breaks": True})
        failures = 1
        while (answer := platform.post("/invoke/breaks", {})).status != 200:
            failures += 1
            assert failures <= 20

        assert failures == 5
        assert answer.json() != before
        assert answer.headers["faasd-start"] == "fork"
        assert eventually(lambda: ejected(platform, "breaks") == 1)
        assert "instance.ejected" in [entry["event"] for entry in platform.log]
        metrics = platform.get("/metrics").body.decode()
        assert 'faasd_ejected_instances{function="default/breaks"' in metrics


def test_a_broken_one_among_busy_siblings_is_replaced_and_nothing_else_is_noticed(
    tmp_path: Path,
) -> None:
    """Short calls, which are sent ahead of their turn: none is lost with the instance."""
    with Platform(tmp_path) as platform:
        platform.must_deploy("breaks", BREAKS, limits={"max_instances": 2})
        call = functools.partial(platform.post, "/invoke/breaks")
        with ThreadPoolExecutor(8) as callers:
            assert {one.status for one in callers.map(call, [{}] * 400)} == {200}

            answers = list(callers.map(call, [{"breaks": True}, *[{}] * 2000]))
            assert eventually(lambda: ejected(platform, "breaks") == 1)
            after = list(callers.map(call, [{}] * 400))

        failed = [one.json()["code"] for one in answers if one.status != 200]
        assert set(failed) == {"handler_error"}
        assert 5 <= len(failed) < 100
        assert {one.status for one in after} == {200}


def test_a_function_that_always_fails_is_restarted_once(tmp_path: Path) -> None:
    with Platform(tmp_path) as platform:
        platform.must_deploy("always", ALWAYS, limits={"max_instances": 1})

        details = [platform.post("/invoke/always", {}).json()["detail"] for _ in range(60)]

        assert len(set(details)) == 2
