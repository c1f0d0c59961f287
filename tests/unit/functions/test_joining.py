"""What the zygote server believes of a request, before it uses its privileges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from functions.runtime import joining

CONTAINER = "0123456789abcdef" * 4
NO_ROOT = "entering a container needs root"


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the control groups are mounted."""
    monkeypatch.setattr(joining, "_CGROUPS", str(tmp_path))
    return tmp_path


def folders(root: Path, *lines: str) -> list[str]:
    found = joining.cgroup_folders(list(lines))
    return [str(Path(path).relative_to(root)) for path in found]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def mount(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir()


def test_the_unified_hierarchy_has_one_group(cgroups: Path) -> None:
    (cgroups / "cgroup.controllers").touch()

    assert folders(cgroups, "0::/system.slice/docker-1.scope") == ["system.slice/docker-1.scope"]


def test_separate_hierarchies_have_a_group_each(cgroups: Path) -> None:
    mount(cgroups, "memory", "pids", "systemd", "unified")

    assert folders(
        cgroups,
        "9:name=systemd:/docker/1",
        "8:pids:/docker/1",
        "4:memory:/docker/1",
        "0::/docker/1",
    ) == ["systemd/docker/1", "pids/docker/1", "memory/docker/1", "unified/docker/1"]


def test_controllers_that_share_a_hierarchy_share_a_group(cgroups: Path) -> None:
    mount(cgroups, "cpu,cpuacct")

    assert folders(cgroups, "3:cpu,cpuacct:/docker/1") == ["cpu,cpuacct/docker/1"]


def test_a_shared_hierarchy_is_found_by_either_name(cgroups: Path) -> None:
    mount(cgroups, "cpu")

    assert folders(cgroups, "3:cpuacct,cpu:/docker/1") == ["cpu/docker/1"]


def test_a_hierarchy_that_limits_is_never_left_out(cgroups: Path) -> None:
    mount(cgroups, "pids")

    with pytest.raises(joining.Refused, match="memory"):
        joining.cgroup_folders(["8:pids:/docker/1", "4:memory:/docker/1"])


def test_a_hierarchy_that_limits_nothing_here_may_be_missing(cgroups: Path) -> None:
    mount(cgroups, "memory")

    found = folders(
        cgroups, "4:memory:/docker/1", "7:rdma:/docker/1", "9:name=elogind:/1", "0::/docker/1"
    )

    assert found == ["memory/docker/1"]


def test_a_container_whose_group_is_nowhere_is_not_entered(cgroups: Path) -> None:
    assert list(cgroups.iterdir()) == []

    with pytest.raises(joining.Refused, match="no control group"):
        joining.cgroup_folders(["0::/system.slice/docker-1.scope"])


@pytest.mark.parametrize("name", ["", "abc", CONTAINER[:-1], CONTAINER[:-1] + "/", CONTAINER + "0"])
def test_a_container_is_named_in_full(name: str) -> None:
    with pytest.raises(joining.Refused, match="64 hexadecimal digits"):
        joining.Target(os.getpid(), name)


def test_a_process_of_no_container_is_refused_and_let_go() -> None:
    before = descriptors()

    with pytest.raises(joining.Refused, match=r"is not in container 0123456789ab"):
        joining.Target(os.getpid(), CONTAINER)

    assert descriptors() == before


def test_a_process_that_is_gone_is_an_error() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

    with pytest.raises(ProcessLookupError):
        joining.Target(child, CONTAINER)


@pytest.mark.parametrize(
    "place", ["/", "/etc", "/faasd", "/faasdx/code", "/faasd/../etc", "faasd/x"]
)
def test_files_are_mounted_below_one_folder_only(place: str) -> None:
    with pytest.raises(joining.Refused, match="no place for a function's files"):
        joining.open_mounts([["/tmp", place]])


@pytest.mark.parametrize("user", [0, 1, 999, -1])
def test_no_user_of_the_machine_is_taken_on(user: int) -> None:
    untouched = object.__new__(joining.Target)

    with pytest.raises(joining.Refused, match=f"user {user} is not one for functions"):
        joining.enter(untouched, [], user=user, tmp_mb=1, keep=set)


def test_an_unknown_kind_of_network_is_refused() -> None:
    untouched = object.__new__(joining.Target)

    with pytest.raises(joining.Refused, match="'host' is no kind of network"):
        joining.fence(untouched, "host", -1)


def test_what_is_mounted_is_a_copy_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    try:
        opened = joining.open_mounts([[str(tmp_path), "/faasd/code"]])
    except PermissionError:
        pytest.skip(NO_ROOT)

    ((folder, place),) = opened
    try:
        assert place == "/faasd/code"
        with pytest.raises(OSError, match="Read-only"):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
        file = os.open("file", os.O_RDONLY, dir_fd=folder)
        assert os.read(file, 100) == b"content"
        os.close(file)
    finally:
        os.close(folder)
    assert (tmp_path / "file").read_text() == "content"
