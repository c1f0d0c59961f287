"""Deploys that roll over, bursts, scaling to zero and back, memory budgets: on real processes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.platform import Platform, command_name, eventually

VERSION = """
import time
def load(context):
    time.sleep(0.1)
def handle(event, context):
    time.sleep(0.005)
    return {version}
"""

PID = """
import os, time
def load(context):
    time.sleep(0.2)
def handle(event, context):
    time.sleep(0.02)
    return os.getpid()
"""

HOLDS = """
def load(context):
    return bytearray(60 << 20)
def handle(event, context):
    return len(context.state)
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("pools")) as running:
        yield running


def processes_of(platform: Platform, name: str) -> list[int]:
    return [pid for pid in platform.pids() if command_name(pid) == f"fn:{name}"[:15]]


def test_deploys_and_rollback_under_load_drop_no_request(platform: Platform) -> None:
    """Every caller gets an answer of one revision or the next, and the old one drains away."""
    first = platform.must_deploy("rolls", VERSION.format(version=1))["revision"]
    answers: Counter[int] = Counter()
    failures: list[bytes] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            answer = platform.post("/invoke/rolls", {})
            if answer.status == 200:
                answers[answer.json()] += 1
            else:
                failures.append(answer.body)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for version in (2, 3):
            platform.must_deploy("rolls", VERSION.format(version=version))
            assert eventually(lambda version=version: answers[version] > 20)  # type: ignore[misc]
        back = platform.request(
            "POST", "/v1/functions/rolls/rollback", f'{{"revision": "{first}"}}'
        )
        assert back.json()["revision"] == first
        before = answers[1]
        assert eventually(lambda: answers[1] > before + 20)
    finally:
        stop.set()
        for caller in callers:
            caller.join(30)

    assert not failures
    assert set(answers) == {1, 2, 3}
    reports = platform.get("/v1/workers").json()["workers"][0]["functions"]
    assert [one["revision"] for one in reports if one["function"] == "default/rolls"] == [first]


def test_a_bad_deploy_leaves_the_old_revision_serving(platform: Platform) -> None:
    """The author sees the traceback of his own code; callers see nothing."""
    platform.must_deploy("careful", VERSION.format(version=1))

    refused = platform.deploy("careful", "import json\nraise RuntimeError('not yet')\n")

    assert refused.status == 422
    assert refused.json()["code"] == "deploy_failed"
    assert "not yet" in refused.json()["traceback"]
    assert platform.post("/invoke/careful", {}).json() == 1


def test_a_refused_deploy_shows_what_the_code_printed(platform: Platform) -> None:
    """Its logs cannot be asked for, since there is no such function."""
    code = "import os\nprint('looking for weights')\nos._exit(3)\n"

    refused = platform.deploy("silent", code)

    assert refused.status == 422
    assert refused.json()["output"] == "looking for weights"
    assert platform.get("/v1/functions/silent/logs").status == 404


def test_a_burst_on_a_cold_function_starts_no_more_than_may_be(platform: Platform) -> None:
    """64 callers at once, two instances at most, nobody left out, and the start is paid once."""
    platform.must_deploy("burst", PID, limits={"max_instances": 2}, scaling={"keep_alive": 0.0})
    assert eventually(lambda: len(processes_of(platform, "burst")) == 1)

    with ThreadPoolExecutor(64) as callers:
        answers = list(callers.map(lambda _: platform.post("/invoke/burst", {}), range(64)))

    assert {answer.status for answer in answers} == {200}
    assert len({answer.json() for answer in answers}) <= 2


def test_concurrency_scales_out_and_back_to_the_template(platform: Platform) -> None:
    """As many instances as callers, up to the limit; none when nobody calls."""
    platform.must_deploy(
        "wide",
        "import time\ndef handle(event, context):\n    time.sleep(0.5)\n",
        limits={"max_instances": 3},
        scaling={"keep_alive": 0.2},
    )

    with ThreadPoolExecutor(5) as callers:
        running = [callers.submit(platform.post, "/invoke/wide", {}) for _ in range(5)]
        assert eventually(lambda: len(processes_of(platform, "wide")) == 1 + 3)
        assert {call.result().status for call in running} == {200}

    assert eventually(lambda: len(processes_of(platform, "wide")) == 1)


def test_scale_to_zero_leaves_no_process_and_the_next_call_waits(tmp_path: Path) -> None:
    """A request to a function that is not there at all is served, and says what it cost."""
    with Platform(tmp_path, env={"FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S": "0"}) as platform:
        platform.must_deploy("zero", PID, scaling={"keep_alive": 0.0})
        assert eventually(lambda: not processes_of(platform, "zero"))

        answer = platform.post("/invoke/zero", {})

        assert answer.status == 200
        assert answer.headers["faasd-start"] == "pooled"
        phases = dict(
            part.strip().split(";dur=") for part in answer.headers["server-timing"].split(",")
        )
        assert float(phases["load"]) >= 200
        assert eventually(lambda: not processes_of(platform, "zero"))


def test_a_minimum_of_instances_is_kept_without_calls(platform: Platform) -> None:
    """They are there before anybody calls, and come back when one is killed."""
    import os
    import signal

    platform.must_deploy("kept", PID, scaling={"min_instances": 2, "keep_alive": 0.0})
    assert eventually(lambda: len(processes_of(platform, "kept")) == 1 + 2)

    instance = max(processes_of(platform, "kept"))
    os.kill(instance, signal.SIGKILL)

    assert eventually(
        lambda: (
            len(processes_of(platform, "kept")) == 1 + 2
            and instance not in processes_of(platform, "kept")
        )
    )


def test_a_memory_budget_evicts_the_least_recently_used(tmp_path: Path) -> None:
    """Three functions of 60 MB within 150 MB: all are served, the longest unused gives way."""
    with Platform(tmp_path, env={"FAASD_WORKER_MEMORY_BUDGET_MB": "150"}) as platform:
        for name in ("one", "two", "three"):
            platform.must_deploy(name, HOLDS, resources={"memory_mb": 100})
            assert platform.post(f"/invoke/{name}", {}).json() == 60 << 20

        assert eventually(lambda: not processes_of(platform, "one"))
        assert processes_of(platform, "three")
        again = platform.post("/invoke/one", {})

        assert again.status == 200
        assert again.headers["faasd-start"] == "pooled"


def test_an_admin_key_made_in_the_data_folder_opens_other_addresses(tmp_path: Path) -> None:
    """Beyond loopback a key is a must; the first one is made beside the controller."""
    import subprocess
    import sys

    made = subprocess.run(
        [sys.executable, "-m", "faasd", "keys", "bootstrap", "--data", str(tmp_path / "data")],
        capture_output=True,
        check=True,
        text=True,
    )
    with Platform(tmp_path) as platform:
        assert platform.get("/v1/functions").status == 401
        authorized = {"Authorization": f"Bearer {made.stdout.strip()}"}
        assert platform.request("GET", "/v1/functions", headers=authorized).status == 200


def test_a_page_of_another_site_cannot_call_the_platform_without_a_key(
    platform: Platform,
) -> None:
    """Neither across origins nor by a name that was made to point here."""
    for header in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        answer = platform.request("GET", "/v1/functions", headers=header)
        assert answer.status == 403
        assert "evil.example" in answer.json()["detail"]
    assert platform.request("GET", "/v1/functions", headers={"Host": "localhost"}).status == 200


def test_a_follower_of_logs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The platform ends at once, however long the wait for running requests may be."""
    with Platform(tmp_path, env={"FAASD_SHUTDOWN_GRACE_S": "600"}) as platform:
        platform.must_deploy("quiet", VERSION.format(version=1))
        with platform.open_connection() as connection:
            connection.request("GET", "/v1/functions/quiet/logs?follow=1")
            assert connection.getresponse().status == 200
            platform.stop()
