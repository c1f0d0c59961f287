"""docker-compose.yml on a real engine: the cluster comes up, serves, heals, and leaves nothing."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docker.engine import ROOT, RUN, EngineError, docker, inspect, running
from tests.platform import Api, eventually

WORKERS = ("worker-1", "worker-2")
WHERE = "def handle(event, context):\n    import os\n    return os.getuid()\n"


class Compose(Api):
    """The cluster as one compose project, on a free port, with secrets of its own."""

    def __init__(self, command: list[str]) -> None:
        self.key = secrets.token_hex(32)
        self.project = f"{RUN}-compose"
        self._command = command
        self._env = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.project,
            "FAASD_ADMIN_KEY": self.key,
            "FAASD_CLUSTER_SECRET": secrets.token_hex(32),
            "FAASD_PORT": "0",
        }

    def __call__(self, *arguments: str) -> str:
        """What `docker-compose ARGUMENTS` prints."""
        ended = subprocess.run(
            [*self._command, "--file", str(ROOT / "docker-compose.yml"), *arguments],
            env=self._env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        return ended.stdout

    def find(self) -> None:
        """Ask the engine which port the controller got."""
        self.url = f"http://{self('port', 'controller', '8080').strip()}"

    def container(self, service: str) -> dict[str, Any]:
        return inspect("container", self("ps", "--quiet", service).strip())[0]

    def home(self, worker: str) -> str:
        """What labels the containers that a worker of this project has made, as its log says."""

        def printed() -> str:
            return docker("logs", self.container(worker)["Id"], errors=True)

        def found() -> str:
            entries = [json.loads(line) for line in printed().splitlines() if line.startswith("{")]
            return next((one["home"] for one in entries if one["event"] == "docker.found"), "")

        home = eventually(found)
        assert home, f"{worker} did not find the engine: {printed()[-2000:]}"
        return home

    def up(self) -> list[str]:
        """The workers that the controller may send invocations to."""
        found = self.get("/v1/workers").json()["workers"]
        return sorted(one["id"] for one in found if one["status"] == "up")

    def all_up(self) -> bool:
        return self.up() == list(WORKERS)


@pytest.fixture(scope="module")
def compose(daemon_image: str) -> Iterator[Compose]:
    cluster = Compose(_command())
    homes: list[str] = []
    try:
        cluster("up", "--detach")
        homes += [cluster.home(worker) for worker in WORKERS]
        cluster.find()
        assert eventually(cluster.all_up), cluster("logs", "--tail", "20")
        yield cluster
    finally:
        cluster("down", "--volumes", "--timeout", "60")
        left = [one for home in homes for one in _made_by(home)]
        if left:
            docker("container", "rm", "--force", *left)
    assert not left
    assert cluster.project not in docker("volume", "ls") + docker("network", "ls")


def _command() -> list[str]:
    """Compose as it is installed here: the engine's plugin, or the program of its own."""
    try:
        docker("compose", "version")
    except EngineError:
        if shutil.which("docker-compose") is None:
            pytest.skip("neither `docker compose` nor docker-compose is installed")
        return ["docker-compose"]
    return ["docker", "compose"]


def _made_by(home: str) -> list[str]:
    return docker(
        "container", "ls", "--all", "--quiet", f"--filter=label=faasd.home={home}"
    ).split()


def test_every_service_gets_healthy_with_no_right_but_those_named(compose: Compose) -> None:
    for service in ("controller", *WORKERS):
        container = compose.container(service)
        host = container["HostConfig"]

        def healthy(service: str = service) -> bool:
            return bool(compose.container(service)["State"]["Health"]["Status"] == "healthy")

        assert eventually(healthy), container["State"]
        assert (host["Privileged"], host["ReadonlyRootfs"]) == (False, True)
        assert host["CapDrop"] == ["ALL"]
        assert "SYS_ADMIN" not in (host["CapAdd"] or [])


def test_the_key_of_the_environment_is_needed_and_known(compose: Compose) -> None:
    assert compose.get("/v1/functions").status == 200
    assert compose.get("/v1/functions", Authorization="Bearer another").status == 401


def test_a_function_is_deployed_and_served_from_a_container(compose: Compose) -> None:
    compose.must_deploy("where", WHERE)

    answer = compose.post("/invoke/where", {})

    assert answer.status == 200, answer.body
    assert answer.json() >= 1 << 20
    served_by = compose.home(answer.headers["faasd-worker"])
    assert running(home=served_by, role="zygote")
    assert running(home=served_by, role="bare")


def test_a_worker_is_taken_away_and_comes_back(compose: Compose) -> None:
    compose.must_deploy("stays", WHERE)
    left_over = compose.home("worker-2")

    compose("stop", "worker-2")

    assert _made_by(left_over) == []
    assert eventually(lambda: compose.up() == ["worker-1"])
    assert compose.post("/invoke/stays", {}).headers["faasd-worker"] == "worker-1"
    compose("start", "worker-2")
    assert eventually(compose.all_up)


def test_a_worker_that_was_killed_goes_on_with_its_containers(compose: Compose) -> None:
    home = compose.home("worker-1")
    before = {one["Id"] for one in running(home=home, role="zygote")}
    assert before

    docker("kill", "--signal", "KILL", compose.container("worker-1")["Id"])
    assert eventually(lambda: compose.up() == ["worker-2"])
    compose("start", "worker-1")

    assert eventually(compose.all_up)
    assert {one["Id"] for one in running(home=home, role="zygote")} == before


def test_the_controller_comes_back_with_its_functions_and_its_key(compose: Compose) -> None:
    compose.must_deploy("remembered", WHERE)

    compose("restart", "controller")
    compose.find()

    assert eventually(lambda: answers(compose) and compose.all_up())
    assert compose.post("/invoke/remembered", {}).status == 200


def answers(compose: Compose) -> bool:
    try:
        return compose.get("/readyz").status == 200
    except OSError:
        return False
