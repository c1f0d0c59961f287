"""What a hostile function tries against others, the node and the machine: all of it fails."""

from __future__ import annotations

import platform as machines
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from functions.runtime import seccomp
from tests.docker.engine import DockerPlatform, EngineError, docker, running
from tests.docker.tenant import Tenant, mask
from tests.platform import eventually

# Names and values that no file or memory holds but the victim's.
NAME = "aardvark-" + secrets.token_hex(6)
NAMESPACE = "badger-" + secrets.token_hex(6)
CODE, TOKEN, MODEL = ("okapi-" + secrets.token_hex(12) for _ in range(3))
VICTIM = f"""
import os, socket
CODE = {CODE!r}
listening = socket.socket(socket.AF_UNIX)
listening.bind("\\0victim")
listening.listen()

def load(context):
    with open(context.artifacts["model"]) as file:
        return file.read()

def handle(event, context):
    return {{
        "secrets": [CODE, context.env["TOKEN"], context.state],
        "uid": os.getuid(),
        "container": os.uname().nodename,
    }}
"""
CLONE_NEW = {
    "mount": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
CLOUD = ("169.254.169.254", 80)
ROOTS = ("/faasd", "/tmp", "/run", "/var", "/etc", "/home", "/root", "/mnt", "/opt", "/srv", "/dev")


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, runtime_images: dict[str, str]
) -> Iterator[DockerPlatform]:
    del runtime_images
    with DockerPlatform(tmp_path_factory.mktemp("attacks")) as started:
        yield started


@pytest.fixture(scope="module")
def victim(platform: DockerPlatform) -> Tenant:
    """Another namespace's function, with something to steal in each place there is."""
    tenant = Tenant(platform.url, NAMESPACE)
    tenant.must_deploy_with_model(NAME, VICTIM, MODEL, env={"TOKEN": TOKEN})
    assert tenant.post(f"/invoke/{NAME}").json()["secrets"] == [CODE, TOKEN, MODEL]
    return tenant


@pytest.fixture(scope="module")
def mallory(platform: DockerPlatform, victim: Tenant) -> Tenant:
    """A hostile function, forked after the victim's from the same zygote."""
    del victim
    tenant = Tenant(platform.url, "mallory")
    tenant.must_deploy_hostile("mallory")
    return tenant


def undone(outcomes: dict[str, str], *refusals: str) -> dict[str, str]:
    """What was tried and did not end in one of these errors."""
    return {name: how for name, how in outcomes.items() if how not in refusals}


def number_of(call: tuple[int, int]) -> int:
    return call[{"x86_64": 0, "aarch64": 1}[machines.machine()]]


def test_a_function_holds_no_privilege_and_cannot_gain_one(mallory: Tenant) -> None:
    status = mallory.attack("status")

    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
    raising = "not allowed to raise maximum limit"
    assert undone(mallory.attack("becomes_root"), "EPERM", "EACCES", raising) == {}
    assert mallory.attack("gives_capabilities") == "EPERM"


def test_each_namespace_has_a_user_of_its_own(mallory: Tenant, victim: Tenant) -> None:
    own = mallory.attack("status")["Uid"].split()
    other = victim.post(f"/invoke/{NAME}").json()["uid"]

    assert len(set(own)) == 1
    assert int(own[0]) >= 1 << 20
    assert other >= 1 << 20
    assert int(own[0]) != other


def test_a_setuid_program_of_the_image_runs_as_the_function(mallory: Tenant) -> None:
    programs = mallory.attack("setuid_programs")
    own = mallory.attack("status")["Uid"].split()[0]

    assert programs, "the image has none: nothing is tried"
    for program in programs:
        assert mallory.attack("users_of", program) == [own, own], program
    assert mallory.attack("runs", "/usr/bin/mount", "-t", "tmpfs", "none", "/tmp") != 0


def test_a_function_finds_nothing_of_anothers_in_files(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    for secret in (CODE, TOKEN, MODEL, NAME, NAMESPACE):
        assert mallory.attack("in_files", mask(secret), *ROOTS) == [], secret

    paths = [str(platform.data), "/var/lib/docker", "/proc/1/root", "/proc/1/cwd"]
    paths += ["/proc/1/environ", "/proc/1/mem", "/faasd/run", "/faasd/runtime", "/root"]
    assert undone(mallory.attack("reads", *paths), "ENOENT", "EACCES") == {}


def test_a_function_finds_nothing_of_anothers_in_its_memory(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    """It is a copy of a zygote that has been asked for the victim's sandbox before."""
    assert mallory.attack("in_memory", mask("a function's own code has this in it")) == 0
    assert mallory.attack("in_memory", mask("Every socket that was inherited")) > 0

    for secret in (CODE, TOKEN, MODEL, NAME, NAMESPACE):
        assert mallory.attack("in_memory", mask(secret)) == 0, secret
    del platform


def test_a_function_of_the_same_namespace_is_as_far_away(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    sibling = Tenant(platform.url, mallory.namespace)
    secret = "numbat-" + secrets.token_hex(12)
    sibling.must_deploy_with_model("sibling", VICTIM, secret, env={"TOKEN": secret})

    answer = sibling.post("/invoke/sibling").json()

    assert str(answer["uid"]) == mallory.attack("status")["Uid"].split()[0]
    assert mallory.attack("in_files", mask(secret), *ROOTS, "/proc") == []
    assert mallory.attack("connects_unix", "@victim") == {"@victim": "ECONNREFUSED"}


def test_a_function_sees_its_own_processes_and_two_of_the_engine(mallory: Tenant) -> None:
    own = mallory.attack("status")["Uid"].split()[0]

    seen = mallory.attack("processes")

    assert sorted(seen.values()) == sorted(
        ["0 docker-init", "0 sleep", f"{own} fn:mallory", f"{own} fn:mallory"]
    )


def test_an_image_of_the_users_has_no_process_of_root(mallory: Tenant) -> None:
    """What such an image calls Python is not ours, and is started before anything else."""
    image = "faasd-runtime-python:latest"
    mallory.must_deploy_hostile("imaged", image=image)
    own = mallory.attack("status", function="imaged")

    seen = mallory.attack("processes", function="imaged")

    assert {text.split()[0] for text in seen.values()} == {own["Uid"].split()[0]}
    assert (own["CapBnd"], own["NoNewPrivs"], own["Seccomp"]) == ("0" * 16, "1", "2")
    wanted = {name: number_of(call) for name, call in seccomp.DENIED.items()}
    assert undone(mallory.attack("calls", wanted, function="imaged"), "EPERM") == {}


def test_a_function_signals_nothing_but_its_own_processes(mallory: Tenant) -> None:
    own = mallory.attack("who")

    assert mallory.attack("signalled", 70_000) == sorted(own.values())
    assert mallory.attack("sends_signal", 1, 9) == "EPERM"


def test_neither_template_nor_init_can_be_looked_into(mallory: Tenant) -> None:
    for pid in (mallory.attack("template"), 1):
        assert undone(mallory.attack("looks_into", pid), "EACCES", "EPERM") == {}, pid


def test_a_second_instance_cannot_be_looked_into(platform: DockerPlatform, victim: Tenant) -> None:
    """One function's instances trust one another, and are closed to one another all the same."""
    del victim
    tenant = Tenant(platform.url, "siblings")
    tenant.must_deploy_hostile("two", scaling={"min_instances": 2}, limits={"max_instances": 2})
    looked = tenant.attack("looks_into_others", function="two")

    assert len({name.split()[0] for name in looked}) == 2
    assert undone(looked, "EACCES", "EPERM") == {}


def test_every_call_that_the_filter_names_is_refused(mallory: Tenant) -> None:
    wanted = {name: number_of(call) for name, call in seccomp.DENIED.items()}

    assert undone(mallory.attack("calls", wanted), "EPERM") == {}


def test_no_namespace_can_be_made(mallory: Tenant) -> None:
    assert set(mallory.attack("clones", *CLONE_NEW.values())) == {"EPERM"}
    assert mallory.attack("clones", 0) == ["done"]
    assert mallory.attack("call", 435) == "ENOSYS"


def test_nothing_can_be_mounted_or_made_a_device(mallory: Tenant) -> None:
    assert undone(mallory.attack("remounts"), "EPERM") == {}
    assert undone(mallory.attack("devices"), "EPERM", "EACCES", "EROFS") == {}


def test_a_function_writes_to_its_own_tmp_alone(mallory: Tenant) -> None:
    """Beside it there are the devices of every program, and message queues of the sandbox's own."""
    devices = ["full", "null", "pts/ptmx", "random", "tty", "urandom", "zero"]
    queues = ["mqueue"]

    found = mallory.attack("writable")

    assert {path for path in found if not path.startswith("/tmp")} == {
        f"/dev/{name}" for name in devices + queues
    }


def test_the_machines_settings_cannot_be_written(mallory: Tenant) -> None:
    assert mallory.attack("openable", "/proc/sys", "/sys", "/proc/irq", "/proc/bus") == []
    paths = [
        *("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"),
        *("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/release_agent"),
        *("/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/cgroup.procs"),
        *(
            "/sys/fs/cgroup/pids/cgroup.procs",
            "/sys/fs/cgroup/memory.max",
            "/sys/kernel/uevent_helper",
        ),
        *(
            "/etc/passwd",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/etc/ld.so.preload",
            "/faasd/code/handler.py",
        ),
        *(
            "/faasd/sandbox/sandbox.json",
            "/faasd/new",
            "/dev/new",
            "/proc/self/exe",
            "/usr/bin/python3",
        ),
        *("/proc/1/oom_score_adj", "/proc/1/mem", "/proc/kcore", "/dev/kmsg", "/dev/mem"),
    ]
    assert (
        undone(mallory.attack("writes", *paths), "EACCES", "EPERM", "EROFS", "ENOENT", "ETXTBSY")
        == {}
    )


def test_the_kernels_own_memory_and_log_cannot_be_read(mallory: Tenant) -> None:
    paths = ["/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/proc/kpagecount", "/dev/vda"]

    assert undone(mallory.attack("reads", *paths), "EACCES", "EPERM", "ENOENT", "EIO") == {}


def test_there_is_no_network_but_the_sandboxs_own(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    port = int(platform.url.rpartition(":")[2])
    hosts = ["127.0.0.1", "::1", *machine_addresses()]

    assert mallory.attack("interfaces") == ["lo"]
    places = [CLOUD, ("1.1.1.1", 53), *((host, port) for host in hosts)]
    assert (
        undone(mallory.attack("connects", *places), "ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL")
        == {}
    )


def test_only_the_usual_kinds_of_socket_can_be_made(mallory: Tenant) -> None:
    refusals = ("EPERM", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")

    assert undone(mallory.attack("sockets"), *refusals) == {}
    assert undone(mallory.attack("ordinary_sockets"), "done") == {}


def test_a_family_of_sockets_that_no_namespace_holds_is_refused_by_name(mallory: Tenant) -> None:
    """Such as those between a virtual machine and its host."""
    outcomes = mallory.attack("sockets")

    assert {outcomes[name] for name in ("vsock", "alg", "xdp", "packet")} == {"EAFNOSUPPORT"}


def test_no_socket_of_the_machine_or_another_sandbox_is_in_reach(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    name = f"@faasd-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + name[1:])
        listening.listen()
        zygote = str(platform.data / "worker" / "zygotes" / "python.sock")
        paths = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"]

        outcomes = mallory.attack(
            "connects_unix", name, "@victim", zygote, "/faasd/run/python.sock", *paths
        )

    assert undone(outcomes, "ECONNREFUSED", "ENOENT") == {}


def test_descriptors_are_the_streams_a_watch_on_them_one_socket_to_the_worker_and_its_mark(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    found = mallory.attack("descriptors")

    kinds = sorted(target.partition("[")[0] for target in found.values())
    mark = "/memfd:faasd-mark (deleted)"
    assert kinds == ["/dev/null", mark, "anon_inode:", "pipe:", "pipe:", "socket:"]
    # The worker is outside of what the sandbox can name: process 0.
    assert mallory.attack("peers") == [[socket.AF_UNIX, 0, 0]]
    del platform


def test_environment_and_arguments_show_nothing_of_the_worker(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    seen = mallory.attack("surroundings")

    shown = str(seen)
    for word in ("zygote", "--listen", "/faasd/run", str(platform.data), platform.node, "FAASD_"):
        assert word not in shown, word
    assert set(seen["environment"]) >= {"PATH", "HOME", "TMPDIR"}
    assert set(seen["environ"]) == {"EACCES"}
    assert seen["initial"] == ""


def test_nothing_of_the_sandbox_is_special_to_the_engine(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    """What the containers were given, as the engine itself tells."""
    del mallory
    for container in eventually(lambda: containers(platform)):
        host = container["HostConfig"]
        assert not host["Privileged"]
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"]
        assert "no-new-privileges" in host["SecurityOpt"]
        if container["Config"]["Labels"]["faasd.role"] == "bare":
            assert not host["CapAdd"]
            assert (host["NetworkMode"], host["PidMode"], container["Mounts"]) == ("none", "", [])
        assert "docker.sock" not in str(container["Mounts"])


def test_the_zygotes_socket_is_for_its_own_user_alone(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    del mallory
    folder = platform.data / "worker" / "zygotes"

    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "python.sock").stat().st_mode & 0o777 == 0o600
    assert (platform.data / "worker" / "sandboxes").stat().st_mode & 0o777 == 0o700


def containers(platform: DockerPlatform) -> list[dict[str, Any]]:
    """Those of the node; none when one of them went away meanwhile."""
    try:
        return running(node=platform.node)
    except EngineError:
        return []


def machine_addresses() -> list[str]:
    """The addresses of this machine, the engine's bridge among them."""
    fields = docker(
        "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"
    )
    # An engine that has just made its bridge does not say its address yet.
    gateway = [fields.strip()] if fields.strip() else []
    return [*gateway, *socket.gethostbyname_ex(socket.gethostname())[2]]
