"""Faults from outside, on real engines: whatever is killed, stalls or runs out, every request is
accounted for, service comes back by itself, and nothing is left.

The engine itself is only ever killed or stopped as a second one of the tests' own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from tests.docker.engine import RUN, DockerPlatform, EngineError, docker, running
from tests.integration.test_faults import BUSY, Load
from tests.platform import command_name, eventually, parent_of, refused

WHO = """
import os, time
def handle(event, context):
    time.sleep((event or {}).get("sleep_s", 0))
    return {"n": event.get("n"), "container": os.uname().nodename, "pid": os.getpid()}
"""


@pytest.fixture
def platform(tmp_path: Path, runtime_images: dict[str, str]) -> Iterator[DockerPlatform]:
    del runtime_images
    with DockerPlatform(tmp_path) as up:
        yield up


def zygote(platform: DockerPlatform) -> dict[str, Any]:
    """The container of the node's zygote server for Python, once there is one."""
    wanted = {"node": platform.node, "role": "zygote", "runtime": "python"}
    (found,) = eventually(lambda: running(**wanted))
    return found


def pid_of(container: dict[str, Any]) -> int:
    return int(container["State"]["Pid"])


def used(platform: DockerPlatform) -> set[str]:
    """The containers that the worker has claimed."""
    folder = platform.data / "worker" / "zygotes"
    return {path.stem for path in folder.glob("*.used")}


def containers(platform: DockerPlatform, role: str = "bare") -> set[str]:
    found = docker(
        *("container", "ls", "--all", "--quiet", "--no-trunc"),
        f"--filter=label=faasd.node={platform.node}",
        f"--filter=label=faasd.role={role}",
    )
    return set(found.split())


def children_of(parent: int) -> list[int]:
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in found if parent_of(pid) == parent]


def template(platform: DockerPlatform) -> int:
    """The only template's process: a child of the zygote server, whatever namespace it is in."""
    (found,) = [
        pid for pid in children_of(pid_of(zygote(platform))) if command_name(pid).startswith("fn:")
    ]
    return found


def first_process(platform: DockerPlatform) -> int:
    """Of the container that the only function runs in."""
    (claimed,) = used(platform)
    return int(docker("inspect", "--format", "{{.State.Pid}}", claimed))


VICTIMS: dict[str, Callable[[DockerPlatform], int]] = {
    "instance": lambda platform: children_of(template(platform))[0],
    "template": template,
    "first process": first_process,
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_killing_a_process_of_a_sandbox_loses_no_request(
    platform: DockerPlatform, victim: str
) -> None:
    """Each request ends in a reply or in an error that names what happened."""
    platform.must_deploy("busy", BUSY, limits={"max_instances": 2})

    with Load(platform, "/invoke/busy") as load:
        for _ in range(2):
            load.reaches(20)
            os.kill(VICTIMS[victim](platform), signal.SIGKILL)
        load.reaches(20)

    assert sum(load.outcomes.values()) == load.sent
    assert set(load.outcomes) <= {"ok", "instance_died"}, load.outcomes
    assert load.outcomes["instance_died"] <= 2 * 2
    assert eventually(lambda: len(containers(platform)) == 2), "more than one in use, one ready"


def test_killing_the_zygote_server_ends_nothing_that_runs(platform: DockerPlatform) -> None:
    """Templates and calls go on, in the same processes; the next start has a new server."""
    platform.must_deploy("stays", WHO, limits={"max_instances": 1})
    before = platform.post("/invoke/stays", {}).json()
    killed = zygote(platform)

    with ThreadPoolExecutor(1) as caller:
        under_way = caller.submit(platform.post, "/invoke/stays", {"sleep_s": 1.0})
        assert eventually(lambda: busy(platform, "stays") == 1)
        os.kill(pid_of(killed), signal.SIGKILL)
        platform.must_deploy("next", WHO)

    assert under_way.result().json()["pid"] == before["pid"]
    assert platform.post("/invoke/stays", {}).json() == before
    assert platform.post("/invoke/next", {}).status == 200
    assert eventually(lambda: len(containers(platform, "zygote")) == 1)
    assert killed["Id"] not in containers(platform, "zygote")


def busy(platform: DockerPlatform, name: str) -> int:
    """How many instances of a function are at work."""
    functions = platform.get("/v1/workers").json()["workers"][0]["functions"]
    return sum(int(one["busy"]) for one in functions if one["function"] == f"default/{name}")


def test_a_template_that_outlived_its_zygote_server_is_forked_and_ended_as_ever(
    platform: DockerPlatform,
) -> None:
    """It has another parent then, and nobody else's processes may be taken for its own."""
    platform.must_deploy("orphan", WHO, limits={"max_instances": 2}, scaling={"keep_alive": 0.0})
    container = platform.post("/invoke/orphan", {}).json()["container"]
    os.kill(pid_of(zygote(platform)), signal.SIGKILL)

    again = platform.post("/invoke/orphan", {})
    assert platform.request("DELETE", "/v1/functions/orphan").status in (200, 204)

    assert (again.headers["faasd-start"], again.json()["container"]) == ("fork", container)
    assert eventually(lambda: not any(one.startswith(container) for one in containers(platform)))


def test_a_stalled_zygote_server_delays_starts_and_nothing_else(platform: DockerPlatform) -> None:
    platform.must_deploy("stays", WHO, limits={"max_instances": 1})
    gone = platform.must_deploy("goes", WHO) and platform.post("/invoke/goes", {}).json()
    stalled = pid_of(zygote(platform))

    os.kill(stalled, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as caller:
            waits = caller.submit(platform.deploy, "next", WHO)
            assert platform.post("/invoke/stays", {}).status == 200
            assert platform.request("DELETE", "/v1/functions/goes").status in (200, 204)
            # Its processes are the stalled server's children, and yet nobody has to collect them.
            assert eventually(
                lambda: not any(one.startswith(gone["container"]) for one in containers(platform))
            )
            assert not waits.done()
            os.kill(stalled, signal.SIGCONT)
            assert waits.result().status == 201
    finally:
        os.kill(stalled, signal.SIGCONT)


@pytest.mark.parametrize("after", [0, 1, 3], ids=lambda count: f"when it has made {count}")
def test_a_worker_ended_while_it_makes_sandboxes_leaves_none(
    tmp_path: Path, runtime_images: dict[str, str], after: int
) -> None:
    """What the engine was asked for a moment ago is waited for, and removed."""
    del runtime_images
    with DockerPlatform(tmp_path, env={"FAASD_WORKER_BARE_LEAST": "6"}) as platform:
        assert eventually(lambda: len(containers(platform)) >= after)


def test_a_killed_worker_goes_on_with_what_nobody_used(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    """Zygote server and bare sandboxes serve the next life; what a function was in does not."""
    del runtime_images
    platform = DockerPlatform(tmp_path)
    platform.start()
    try:
        platform.must_deploy("busy", BUSY, limits={"max_instances": 2})
        with Load(platform, "/invoke/busy") as load:
            load.reaches(20)
            assert eventually(lambda: len(containers(platform)) == 2)
            server, claimed = zygote(platform)["Id"], used(platform)
            platform.kill()
            assert eventually(lambda: load.outcomes["connection_error"] > 0)
        assert sum(load.outcomes.values()) == load.sent
        assert set(load.outcomes) <= {"ok", "connection_error"}
        (unused,) = containers(platform) - claimed

        with platform:
            assert platform.post("/invoke/busy", {"n": 1}).status == 200
            assert used(platform) == {unused}
            assert zygote(platform)["Id"] == server
            assert eventually(lambda: not claimed & containers(platform))
            assert len(list((platform.data / "worker" / "sandboxes").iterdir())) == 1
    finally:
        platform.stop()


def test_a_restarted_worker_replaces_a_server_that_runs_other_code(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    """An upgrade of faasd does not go on with the runtime of before."""
    del runtime_images
    platform = DockerPlatform(tmp_path)
    platform.start()
    try:
        platform.must_deploy("who", WHO)
        former = zygote(platform)["Id"]
        platform.kill()
        docker("container", "kill", former)

        with platform:
            assert platform.post("/invoke/who", {}).status == 200
            assert containers(platform, "zygote") == {zygote(platform)["Id"]}
            assert zygote(platform)["Id"] != former
    finally:
        platform.stop()


class Image:
    """The runtime's image under a name of the test's own; with `programs`, only those on PATH."""

    def __init__(self, folder: Path, name: str, programs: dict[str, str] | None = None) -> None:
        self.prefix = f"{RUN}-{name}-"
        self.name = f"{self.prefix}python:latest"
        self._folder = folder / name
        self._programs = programs

    def make(self) -> None:
        if self._programs is None:
            docker("tag", "faasd-runtime-python:latest", self.name)
            return
        self._folder.mkdir(exist_ok=True)
        links = " && ".join(f"/bin/ln -s {at} /only/{one}" for one, at in self._programs.items())
        (self._folder / "Dockerfile").write_text(
            f"FROM faasd-runtime-python\nRUN /bin/mkdir /only && {links}\nENV PATH=/only\n"
        )
        docker("build", "--quiet", "--tag", self.name, str(self._folder))

    def remove(self) -> None:
        with contextlib.suppress(EngineError):
            docker("image", "rm", "--force", self.name)

    def __enter__(self) -> Self:
        self.make()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()

    @property
    def env(self) -> dict[str, str]:
        return {"FAASD_WORKER_DOCKER_IMAGE_PREFIX": self.prefix}


def test_an_image_that_was_removed_ends_nothing_and_is_missed_by_name(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    del runtime_images
    with Image(tmp_path, "removed") as image, DockerPlatform(tmp_path, env=image.env) as platform:
        platform.must_deploy("stays", WHO, scaling={"keep_alive": 0.0})
        image.remove()

        missed = platform.deploy("next", WHO)
        problem = refused(missed, 422, "deploy_failed", image.name)
        assert "docker pull" in problem["remedy"]
        assert platform.post("/invoke/stays", {}).status == 200

        image.make()
        assert platform.deploy("next", WHO).status == 201


@pytest.mark.parametrize(
    ("programs", "word"),
    [
        ({"sleep": "/bin/sleep"}, '"python3": executable file not found'),
        ({"sleep": "/bin/sleep", "python3": "/bin/true"}, "ended as soon as it was started"),
        ({"python3": "/opt/venv/bin/python3"}, "with status 127"),
        ({"sleep": "/bin/true", "python3": "/opt/venv/bin/python3"}, "with status 0"),
    ],
    ids=["no python", "python that ends at once", "no sleep", "sleep that ends at once"],
)
def test_an_image_that_is_no_runtime_is_refused_with_what_it_lacks(
    tmp_path: Path, runtime_images: dict[str, str], programs: dict[str, str], word: str
) -> None:
    """And soon: a broken image is not tried again and again."""
    del runtime_images
    with (
        Image(tmp_path, "broken", programs) as image,
        DockerPlatform(tmp_path, env=image.env) as platform,
    ):
        problem = refused(platform.deploy("who", WHO), 422, "deploy_failed", image.name, word)

        assert "python3" in problem["remedy"]
        assert platform.get("/readyz").status == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", str(folder)]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_refuses_what_is_new_and_serves_what_is_there(
    small_disk: Path, runtime_images: dict[str, str]
) -> None:
    """An upload that does not fit, then not a byte left: errors that say so, until there is room."""
    del runtime_images
    with DockerPlatform(small_disk, env={"FAASD_WORKER_BARE_LEAST": "2"}) as platform:
        platform.must_deploy("stays", WHO)
        large = platform.request("PUT", f"/v1/artifacts/{'0' * 64}", bytes(30 << 20))
        refused(large, 507, "storage_full", "disk is full")
        assert not list((platform.data / "artifacts" / "incoming").iterdir())
        platform.must_deploy("fits", WHO)

        filler = small_disk / "filler"
        fill(filler)
        platform.log.clear()
        assert platform.post("/invoke/stays", {}).status == 200
        refused(platform.deploy("next", WHO), 507, "storage_full", "disk is full")

        filler.unlink()
        assert platform.deploy("next", WHO).status == 201
        assert platform.post("/invoke/next", {}).status == 200


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


class SecondEngine:
    """An engine beside the machine's own, with folders, control groups and network of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cgroups = f"faasd-{RUN}"
        self.data, self.run = folder / "data", folder / "run"
        self.host = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers."""
        # After kill -9 a containerd that nobody has collected yet would be taken for a live one.
        (self.run / "containerd" / "containerd.pid").unlink(missing_ok=True)
        (self._folder / "docker.pid").unlink(missing_ok=True)
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    # An engine without a bridge takes away the one of the machine's own engine.
                    *("unshare", "--net", "dockerd", "--host", self.host),
                    *("--data-root", str(self.data)),
                    *("--exec-root", str(self.run), "--pidfile", str(self._folder / "docker.pid")),
                    *("--bridge", "none", "--iptables=false", "--ip-forward=false"),
                    *("--ip-masq=false", "--cgroup-parent", f"/{self.cgroups}", *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        assert eventually(self.answers), (self._folder / "log").read_text()[-2000:]

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            told = (self._folder / "log").read_text().splitlines()[-1:]
            pytest.skip(f"a second engine cannot be run here: {told}")
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.settimeout(5)
            probe.connect(self.host.removeprefix("unix://"))
            probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return probe.recv(12).endswith(b"200")
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if str(self._folder) in line]

    def groups(self) -> list[Path]:
        """The control groups of its containers, whatever version the machine has."""
        return [path for folder in self._parents() for path in folder.iterdir() if path.is_dir()]

    def _parents(self) -> list[Path]:
        root = Path("/sys/fs/cgroup")
        return [*root.glob(self.cgroups), *root.glob(f"*/{self.cgroups}")]

    def network_namespaces(self) -> list[str]:
        """Those that are alive; the engine removes the empty files of others once a minute."""
        return [line for line in self.mounts() if f"{self.run}/netns/" in line]

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
        for line in reversed(self.mounts()):
            subprocess.run(["umount", "--lazy", line.split()[4]], check=False)
        # An engine that was killed may leave groups of containers that it had not yet put away.
        for group in [*self.groups(), *self._parents()]:
            group.rmdir()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="module")
def second(
    tmp_path_factory: pytest.TempPathFactory, runtime_images: dict[str, str]
) -> Iterator[SecondEngine]:
    """A second engine with the runtime's image, which `docker` and faasd use in these tests."""
    if not shutil.which("dockerd") or not shutil.which("unshare") or os.geteuid() != 0:
        pytest.skip("a second engine needs dockerd, unshare and root")
    found = SecondEngine(tmp_path_factory.mktemp("second"))
    found.start()
    try:
        with subprocess.Popen(
            ["docker", "save", runtime_images["python"]], stdout=subprocess.PIPE
        ) as saved:
            command = ["docker", "--host", found.host, "load"]
            subprocess.run(command, stdin=saved.stdout, check=True, capture_output=True)
        yield found
    finally:
        found.close()


@pytest.fixture
def on_second(
    second: SecondEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerPlatform]:
    monkeypatch.setenv("DOCKER_HOST", second.host)
    env = {"FAASD_WORKER_DOCKER_TIMEOUT_S": "3", "FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S": "0"}
    with DockerPlatform(tmp_path, env=env) as up:
        yield up
    assert docker("container", "ls", "--all", "--quiet") == ""


@pytest.mark.parametrize("survive", [True, False], ids=["containers live on", "containers die"])
def test_killing_the_engine_loses_no_request_and_it_heals(
    second: SecondEngine, on_second: DockerPlatform, survive: bool
) -> None:
    """A warm function, and one that is started anew all the time, while the engine comes and goes."""
    second.kill()
    second.start(*(["--live-restore"] if survive else []))
    platform = on_second
    platform.must_deploy("warm", BUSY, limits={"max_instances": 2}, scaling={"min_instances": 1})
    platform.must_deploy("cold", BUSY, scaling={"keep_alive": 0.0})
    eventually(lambda: len(containers(platform)) >= 2)

    with (
        Load(platform, "/invoke/warm", callers=2) as warm,
        Load(platform, "/invoke/cold", callers=1) as cold,
    ):
        warm.reaches(20)
        cold.reaches(2)
        second.kill()
        # What runs is no business of the engine's.
        warm.reaches(20)
        assert eventually(lambda: cold.outcomes["unavailable"] > 0)
        second.start(*(["--live-restore"] if survive else []))
        warm.reaches(20)
        cold.reaches(2)

    assert sum(warm.outcomes.values()) == warm.sent
    assert sum(cold.outcomes.values()) == cold.sent
    expected = {"ok"} if survive else {"ok", "instance_died", "unavailable"}
    assert set(warm.outcomes) <= expected, warm.outcomes
    assert set(cold.outcomes) <= {"ok", "instance_died", "unavailable"}, cold.outcomes
    assert settled(platform), containers(platform)


def settled(platform: DockerPlatform) -> bool:
    """Whether there are in the end: one zygote, the one warm sandbox, and one that is ready."""
    return eventually(
        lambda: (
            len(containers(platform, "zygote")) == 1
            and len(used(platform)) == 1
            and used(platform) <= containers(platform)
            and len(containers(platform)) == 2
        ),
        patience_s=60,
    )


def test_an_engine_that_stalls_loses_no_request_and_leaves_nothing(
    second: SecondEngine, on_second: DockerPlatform
) -> None:
    """What is warm is served; what has to be started fails in time, and works again."""
    platform = on_second
    platform.must_deploy("warm", BUSY, limits={"max_instances": 2}, scaling={"min_instances": 1})
    platform.must_deploy("cold", BUSY, scaling={"keep_alive": 0.0})

    with (
        Load(platform, "/invoke/warm", callers=2) as warm,
        Load(platform, "/invoke/cold", callers=1) as cold,
    ):
        cold.reaches(2)
        with second.stalled():
            warm.reaches(20)
            assert eventually(lambda: cold.outcomes["unavailable"] > 0)
        cold.reaches(2)

    assert sum(warm.outcomes.values()) == warm.sent
    assert sum(cold.outcomes.values()) == cold.sent
    assert set(warm.outcomes) == {"ok"}, warm.outcomes
    assert set(cold.outcomes) <= {"ok", "unavailable"}, cold.outcomes
    assert settled(platform), containers(platform)


@pytest.mark.parametrize("then", ["goes on", "ends"])
def test_a_sandbox_that_the_engine_makes_too_late_is_removed(
    second: SecondEngine, on_second: DockerPlatform, then: str
) -> None:
    """It was asked for while the engine hung, and given up on: nobody knows of it."""
    platform = on_second
    platform.must_deploy("warm", BUSY, scaling={"min_instances": 1})
    (ready,) = eventually(lambda: containers(platform) - used(platform))
    process = int(docker("inspect", "--format", "{{.State.Pid}}", ready))

    with second.stalled():
        os.kill(process, signal.SIGKILL)
        assert eventually(lambda: gave_up_making(platform))
    assert eventually(never_started)

    if then == "goes on":
        assert eventually(lambda: not never_started())
        assert settled(platform), containers(platform)


def gave_up_making(platform: DockerPlatform) -> bool:
    told = [one for one in platform.log if one["event"] == "bare.failed"]
    return any("did not answer" in one["detail"] and "creating" in one["detail"] for one in told)


def never_started() -> str:
    return docker("container", "ls", "--all", "--quiet", "--filter=status=created")


def test_two_hundred_sandboxes_leave_nothing_behind(
    second: SecondEngine, on_second: DockerPlatform
) -> None:
    """Each made, claimed, used once and removed: the node is afterwards what it was before."""
    platform = on_second
    names = [f"once{number}" for number in range(4)]
    for name in names:
        platform.must_deploy(name, WHO, scaling={"keep_alive": 0.0})

    def use_up(name: str, count: int) -> int:
        """Invoke a function until so many containers have served it; how many did."""
        seen: set[str] = set()
        while len(seen) < count:
            answer = platform.post(f"/invoke/{name}", {})
            assert answer.status == 200, answer.body
            seen.add(answer.json()["container"])
        return len(seen)

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda name: use_up(name, 2), names))
        before = at_rest(second, platform)
        assert sum(callers.map(lambda name: use_up(name, 50), names)) == 200

    assert eventually(lambda: not more(before, at_rest(second, platform)), patience_s=60), more(
        before, at_rest(second, platform)
    )


def more(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more of than before. Connections to the engine are kept for a while."""
    slack = {"descriptors": 10}
    return {
        what: (before[what], count)
        for what, count in after.items()
        if count > before[what] + slack.get(what, 0)
    }


def at_rest(second: SecondEngine, platform: DockerPlatform) -> dict[str, int]:
    """What there is of everything, once nothing is in use and the pool is at its least."""
    eventually(lambda: not used(platform) and len(containers(platform)) == 1, patience_s=60)
    assert platform.process is not None
    assert second.process is not None
    ours = {platform.process.pid, second.process.pid, pid_of(zygote(platform))}
    worker = platform.data / "worker"
    return {
        "containers": len(docker("container", "ls", "--all", "--quiet").split()),
        "mounts": len(second.mounts()),
        "groups": len(second.groups()),
        "network namespaces": len(second.network_namespaces()),
        "descriptors": descriptors(platform.process.pid),
        "descriptors of the zygote": descriptors(pid_of(zygote(platform))),
        "zombies": len([pid for pid in _zombies() if parent_of(pid) in ours]),
        "markers": len(used(platform)),
        "folders": len(list((worker / "sandboxes").iterdir())),
    }


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _zombies() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    found.append(int(entry.name))
    return found
