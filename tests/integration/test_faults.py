"""kill -9 in mid-load, one process at a time: every request is accounted for, nothing is left."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.platform import (
    Api,
    Cluster,
    Platform,
    command_name,
    eventually,
    marked_processes,
    parent_of,
)

BUSY = """
import os, time
def handle(event, context):
    time.sleep(event.get("sleep_s", 0.01))
    return {"n": event["n"], "pid": os.getpid()}
"""

WRITES = """
import os, time
def handle(event, context):
    time.sleep(0.02)
    with open(event["folder"] + "/" + str(event["n"]), "a") as out:
        out.write(f"{context.attempt}\\n")
    return event["n"]
"""


class Load:
    """Callers that send one request after another until told to stop, and count what came back."""

    def __init__(self, api: Api, path: str, callers: int = 6) -> None:
        self._api = api
        self._path = path
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        self._count = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a request got no answer"

    def _call(self) -> None:
        while not self._stop.is_set():
            with self._count:
                self.sent += 1
                number = self.sent
            outcome = self._one(number)
            with self._count:
                self.outcomes[outcome] += 1

    def _one(self, number: int) -> str:
        try:
            answer = self._api.post(self._path, {"n": number})
        except (OSError, http.client.HTTPException):
            return "connection_error"
        if answer.status == 200:
            assert answer.json()["n"] == number
            return "ok"
        return str(answer.json()["code"])

    def reaches(self, more: int) -> None:
        """Wait for so many more successes than there are now."""
        wanted = self.outcomes["ok"] + more
        assert eventually(lambda: self.outcomes["ok"] >= wanted), self.outcomes


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(tmp_path) as running:
        yield running


def tree(platform: Platform) -> tuple[int, int, list[int]]:
    """Zygote, template of the function and its instances."""
    pids = platform.pids()
    zygote = next(pid for pid in pids if command_name(pid) == "faasd-zygote")
    template = next(pid for pid in pids if parent_of(pid) == zygote)
    return zygote, template, [pid for pid in pids if parent_of(pid) == template]


VICTIMS: dict[str, Callable[[Platform], int]] = {
    "instance": lambda platform: tree(platform)[2][0],
    "template": lambda platform: tree(platform)[1],
    "zygote": lambda platform: tree(platform)[0],
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_killing_a_process_of_the_tree_loses_no_request(platform: Platform, victim: str) -> None:
    """Each request ends in a reply or in an error that names what happened."""
    platform.must_deploy("busy", BUSY, limits={"max_instances": 3})

    with Load(platform, "/invoke/busy") as load:
        for _ in range(3):
            load.reaches(20)
            os.kill(VICTIMS[victim](platform), signal.SIGKILL)
        load.reaches(20)

    assert sum(load.outcomes.values()) == load.sent
    assert set(load.outcomes) <= {"ok", "instance_died"}, load.outcomes
    assert load.outcomes["instance_died"] <= 3 * 3


def test_a_killed_platform_restarts_with_nothing_left_behind(tmp_path: Path) -> None:
    """After kill -9 of everything the next start has the functions, and none of the old mess."""
    platform = Platform(tmp_path)
    platform.start()
    platform.must_deploy("busy", BUSY, limits={"max_instances": 2})
    half = platform.data / "artifacts" / "incoming" / "half"
    building = platform.data / "worker" / "layers" / ".building-x"

    with Load(platform, "/invoke/busy") as load:
        load.reaches(20)
        old = platform.pids()
        platform.kill()
        assert eventually(lambda: load.outcomes["connection_error"] > 0)
    half.write_bytes(b"half an upload")
    building.mkdir()
    with platform:
        assert platform.post("/invoke/busy", {"n": 1}).json()["n"] == 1
        assert not set(old) & set(platform.pids())
        assert not half.exists()
        assert not building.exists()
        assert len(list((platform.data / "worker" / "sandboxes").iterdir())) == 1
    assert sum(load.outcomes.values()) == load.sent
    assert set(load.outcomes) <= {"ok", "connection_error"}


def test_children_of_a_function_do_not_outlive_a_killed_platform(tmp_path: Path) -> None:
    """Even a daemon that a function left, out of its session and group, is ended."""
    leaves = """
import os, time
def handle(event, context):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
    return "left"
"""
    platform = Platform(tmp_path)
    platform.start()
    platform.must_deploy("leaves", leaves)
    assert platform.post("/invoke/leaves", {}).body == b"left"
    before = platform.pids()

    platform.kill()
    with platform:
        assert eventually(lambda: not set(before) & set(platform.pids()))


def test_accepted_asynchronous_invocations_survive_the_death_of_everything(
    tmp_path: Path,
) -> None:
    """What was answered with 202 runs to its end after the restart, and can be asked for."""
    platform = Platform(tmp_path)
    platform.start()
    platform.must_deploy("writes", WRITES, limits={"max_instances": 2})
    marks = tmp_path / "marks"
    marks.mkdir()
    accepted = []
    for number in range(60):
        event = {"n": number, "folder": str(marks)}
        answer = platform.post("/invoke/writes?mode=async", event)
        assert answer.status == 202
        accepted.append((number, answer.json()["id"]))
    assert eventually(lambda: len(list(marks.iterdir())) > 5)

    platform.kill()
    with platform:
        for number, identity in accepted:

            def state(identity: str = identity) -> bool:
                shown = platform.get(f"/v1/invocations/{identity}").json()
                return bool(shown["status"] == "succeeded")

            assert eventually(state), number
            assert platform.get(f"/v1/invocations/{identity}/result").json() == number
    assert {int(mark.name) for mark in marks.iterdir()} == {number for number, _ in accepted}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


def test_killing_a_worker_loses_no_request_and_it_comes_back(cluster: Cluster) -> None:
    """What ran there fails with worker_lost; the other worker serves the rest."""
    cluster.must_deploy("busy", BUSY, limits={"max_instances": 2})

    with Load(cluster, "/invoke/busy") as load:
        load.reaches(30)
        left = set(cluster.pids("w1"))
        cluster.workers["w1"].kill()
        assert eventually(lambda: cluster.up() == ["w2"])
        load.reaches(30)
        cluster.workers["w1"].start("controller.joined")
        assert eventually(lambda: cluster.up() == ["w1", "w2"])
        load.reaches(30)

    assert sum(load.outcomes.values()) == load.sent
    assert set(load.outcomes) <= {"ok", "worker_lost"}, load.outcomes
    assert not left & set(cluster.pids("w1"))


def test_killing_the_controller_leaves_the_workers_warm(cluster: Cluster) -> None:
    """Callers see broken connections; the next controller finds workers with their templates."""
    cluster.must_deploy("busy", BUSY, limits={"max_instances": 2})
    identity = cluster.post("/invoke/busy?mode=async", {"n": 5, "sleep_s": 1.0}).json()["id"]
    templates = cluster.pids("w1") + cluster.pids("w2")

    with Load(cluster, "/invoke/busy") as load:
        load.reaches(30)
        cluster.controller.kill()
        assert eventually(lambda: load.outcomes["connection_error"] > 0)
        cluster.controller.start("controller.listening")
        assert eventually(lambda: cluster.up() == ["w1", "w2"])
        load.reaches(30)

    assert sum(load.outcomes.values()) == load.sent
    expected = {"ok", "connection_error", "unavailable", "worker_lost"}
    assert set(load.outcomes) <= expected, load.outcomes
    assert set(templates) & set(cluster.pids("w1") + cluster.pids("w2"))
    succeeded = "succeeded"
    assert eventually(
        lambda: cluster.get(f"/v1/invocations/{identity}").json()["status"] == succeeded
    )


def test_a_drained_worker_gets_nothing_more(cluster: Cluster) -> None:
    """Drain keeps what runs and sends the rest elsewhere."""
    cluster.must_deploy("busy", BUSY, limits={"max_instances": 2})

    assert cluster.post("/v1/workers/w1/drain").status == 202
    answers = [cluster.post("/invoke/busy", {"n": n}) for n in range(10)]

    assert {answer.headers["faasd-worker"] for answer in answers} == {"w2"}


def test_a_worker_with_a_wrong_secret_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """It keeps trying and says why; the cluster does not list it."""
    stranger = cluster._worker("w9")
    stranger._env["FAASD_CLUSTER_SECRET"] = "not the secret at all"

    entry = stranger.start("controller.refused")
    stranger.terminate()

    assert "secret" in entry["detail"]
    assert cluster.up() == ["w1", "w2"]
    assert not marked_processes(tmp_path / "w9" / "sandboxes")
