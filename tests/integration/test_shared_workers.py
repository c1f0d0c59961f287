"""Two controllers, each with a data folder of its own, and two workers that serve both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.integration.test_faults import BUSY, Load
from tests.platform import Api, Daemon, _free_port, eventually, marked_processes

WHOSE = """
def handle(event, context):
    return {whose!r}
"""


class Front(Api):
    """One of the controllers."""

    def __init__(self, folder: Path, name: str, env: dict[str, str]) -> None:
        http_port, cluster_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{http_port}"
        self.address = f"127.0.0.1:{cluster_port}"
        command = ["controller", "--port", str(http_port), "--cluster-port", str(cluster_port)]
        self.daemon = Daemon([*command, "--data", str(folder / name)], folder, env)

    def start(self) -> None:
        self.daemon.start("controller.listening")

    def up(self) -> list[str]:
        found = self.get("/v1/workers").json()["workers"]
        return sorted(one["id"] for one in found if one["status"] == "up")


class Shared:
    """All four: one worker is told of the controllers by flags, the other by its environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        env = {"FAASD_CLUSTER_SECRET": "a secret of the tests"}
        self.first, self.second = (Front(folder, name, env) for name in ("c1", "c2"))
        addresses = [front.address for front in (self.first, self.second)]
        flags = [word for address in addresses for word in ("--controller", address)]
        told = {**env, "FAASD_WORKER_CONTROLLERS": ",".join(addresses)}
        self.workers = {
            "w1": Daemon(["worker", *flags, *self._named("w1")], folder, env),
            "w2": Daemon(["worker", *self._named("w2")], folder, told),
        }

    def _named(self, name: str) -> list[str]:
        return ["--id", name, "--data", str(self._folder / name)]

    def __enter__(self) -> Self:
        for front in (self.first, self.second):
            front.start()
        for worker in self.workers.values():
            worker.start("controller.joined")
        for front in (self.first, self.second):
            assert eventually(lambda front=front: front.up() == ["w1", "w2"])  # type: ignore[misc]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.terminate()
        for front in (self.first, self.second):
            front.daemon.terminate()
        assert eventually(lambda: not self.pids()), f"left: {self.pids()}"

    def pids(self) -> set[int]:
        """Every process of the workers' sandboxes."""
        folders = [self._folder / name / "sandboxes" for name in self.workers]
        return {pid for folder in folders for pid in marked_processes(folder)}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    with Shared(tmp_path) as running:
        yield running


def test_each_controller_has_its_functions_on_all_workers(shared: Shared) -> None:
    """Names are each controller's own: the same one may stand for other code."""
    for front, whose in ((shared.first, "first"), (shared.second, "second")):
        front.must_deploy("whose", WHOSE.format(whose=whose))
        front.must_deploy(f"only-{whose}", WHOSE.format(whose=whose))

    for front, whose in ((shared.first, "first"), (shared.second, "second")):
        for name in ("whose", f"only-{whose}"):
            answers = [front.post(f"/invoke/{name}") for _ in range(4)]
            assert {answer.body.decode() for answer in answers} == {whose}
    assert shared.first.post("/invoke/only-second").status == 404


def test_killing_one_controller_is_not_noticed_by_callers_of_the_other(shared: Shared) -> None:
    for front in (shared.first, shared.second):
        front.must_deploy("busy", BUSY, limits={"max_instances": 2})

    with (
        Load(shared.first, "/invoke/busy", 2) as lost,
        Load(shared.second, "/invoke/busy", 2) as kept,
    ):
        lost.reaches(10)
        kept.reaches(10)
        shared.first.daemon.kill()
        assert eventually(lambda: lost.outcomes["connection_error"] > 0)
        kept.reaches(50)
        shared.first.start()
        assert eventually(lambda: shared.first.up() == ["w1", "w2"])
        lost.reaches(10)
        kept.reaches(10)

    assert set(kept.outcomes) == {"ok"}
    assert sum(lost.outcomes.values()) == lost.sent
    assert set(lost.outcomes) <= {"ok", "connection_error", "unavailable", "worker_lost"}


def test_removing_a_function_from_one_controller_keeps_the_others(shared: Shared) -> None:
    """Deployed alike on both, it is one revision on a worker, with one template and set of files."""
    for front in (shared.first, shared.second):
        front.must_deploy("busy", BUSY)
    pids = {front.post("/invoke/busy", {"n": 1}).json()["pid"] for front in (shared.first,) * 8}

    assert shared.first.request("DELETE", "/v1/functions/busy").status == 204
    assert shared.first.post("/invoke/busy", {"n": 1}).status == 404

    answers = [shared.second.post("/invoke/busy", {"n": 1}) for _ in range(8)]
    assert {answer.status for answer in answers} == {200}
    assert pids & {answer.json()["pid"] for answer in answers}
    assert shared.second.request("DELETE", "/v1/functions/busy").status == 204
    assert eventually(lambda: not pids & shared.pids())


def test_one_controllers_restart_without_its_functions_takes_none_of_the_others(
    shared: Shared, tmp_path: Path
) -> None:
    """What it says it still wants when it is back concerns its own revisions only."""
    shared.first.must_deploy("whose", WHOSE.format(whose="first"))
    shared.second.must_deploy("whose", WHOSE.format(whose="second"))

    shared.first.daemon.kill()
    (tmp_path / "c1").rename(tmp_path / "lost")
    shared.first.start()
    assert eventually(lambda: shared.first.up() == ["w1", "w2"])

    assert shared.first.post("/invoke/whose").status == 404
    assert shared.second.post("/invoke/whose").body == b"second"
