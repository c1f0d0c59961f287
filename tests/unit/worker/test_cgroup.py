"""Limits and counters of a container's control group, in trees of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.sandboxes.docker.cgroup import Cgroup, Limits

PID = 4711
GROUP = "docker/0123abcd"
MB = 1 << 20


class Tree:
    """A group's files as the kernel would show them, and what /proc says of its member."""

    def __init__(self, folder: Path, membership: str, files: dict[str, str]) -> None:
        self.root = folder / "cgroup"
        self.proc = folder / "proc"
        for name, text in files.items():
            place = self.root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        (self.proc / str(PID)).mkdir(parents=True)
        (self.proc / str(PID) / "cgroup").write_text(membership)

    def group(self) -> Cgroup:
        return Cgroup(PID, self.root, self.proc)

    def __getitem__(self, name: str) -> str:
        return (self.root / name).read_text()


@pytest.fixture
def separate(tmp_path: Path) -> Tree:
    """Version 1: each controller has its own hierarchy, cpu and cpuacct share one."""
    membership = (
        f"12:pids:/{GROUP}\n9:memory:/{GROUP}\n4:cpu,cpuacct:/{GROUP}\n"
        f"1:name=systemd:/{GROUP}\n0::/{GROUP}\n"
    )
    return Tree(
        tmp_path,
        membership,
        {
            f"cpu/{GROUP}/cpu.cfs_quota_us": "-1\n",
            f"cpu/{GROUP}/cpu.shares": "1024\n",
            f"pids/{GROUP}/pids.max": "64\n",
            f"memory/{GROUP}/memory.limit_in_bytes": f"{64 * MB}\n",
            f"memory/{GROUP}/memory.memsw.limit_in_bytes": f"{64 * MB}\n",
            f"memory/{GROUP}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            f"memory/{GROUP}/memory.usage_in_bytes": f"{50 * MB}\n",
            f"memory/{GROUP}/memory.max_usage_in_bytes": f"{60 * MB}\n",
            f"memory/{GROUP}/memory.stat": f"inactive_file 7\ntotal_inactive_file {20 * MB}\n",
            f"memory/{GROUP}/cgroup.procs": "4711\n4712\n",
        },
    )


@pytest.fixture
def unified(tmp_path: Path) -> Tree:
    """Version 2: one hierarchy."""
    group = "system.slice/docker-0123abcd.scope"
    return Tree(
        tmp_path,
        f"0::/{group}\n",
        {
            f"{group}/cpu.max": "max 100000\n",
            f"{group}/cpu.weight": "100\n",
            f"{group}/pids.max": "64\n",
            f"{group}/memory.max": f"{64 * MB}\n",
            f"{group}/memory.swap.max": "max\n",
            f"{group}/memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\n",
            f"{group}/memory.current": f"{50 * MB}\n",
            f"{group}/memory.peak": f"{60 * MB}\n",
            f"{group}/memory.stat": f"anon 1\ninactive_file {20 * MB}\n",
            f"{group}/cgroup.procs": "4711\n4712\n",
        },
    )


@pytest.fixture(params=["separate", "unified"])
def either(request: pytest.FixtureRequest) -> Tree:
    tree: Tree = request.getfixturevalue(request.param)
    return tree


def test_limits_of_version_1_are_written_to_each_hierarchy(separate: Tree) -> None:
    separate.group().limit(Limits(memory_mb=512, cpus=1.5, pids=256))

    assert separate[f"cpu/{GROUP}/cpu.cfs_quota_us"] == "150000"
    assert separate[f"memory/{GROUP}/memory.limit_in_bytes"] == str(512 * MB)
    assert separate[f"memory/{GROUP}/memory.memsw.limit_in_bytes"] == str(512 * MB)
    assert separate[f"pids/{GROUP}/pids.max"] == "256"


def test_limits_of_version_2_are_written_and_swap_is_none(unified: Tree) -> None:
    unified.group().limit(Limits(memory_mb=512, cpus=0.25, pids=256))

    group = "system.slice/docker-0123abcd.scope"
    assert unified[f"{group}/cpu.max"] == "25000 100000"
    assert unified[f"{group}/memory.max"] == str(512 * MB)
    assert unified[f"{group}/memory.swap.max"] == "0"
    assert unified[f"{group}/pids.max"] == "256"


def test_the_smallest_share_of_a_core_is_one_that_the_kernel_takes(separate: Tree) -> None:
    separate.group().limit(Limits(memory_mb=512, cpus=0.001, pids=256))

    assert separate[f"cpu/{GROUP}/cpu.cfs_quota_us"] == "1000"


def weight(tree: Tree) -> int:
    [path] = [*tree.root.rglob("cpu.shares"), *tree.root.rglob("cpu.weight")]
    return int(path.read_text())


def test_processors_are_divided_in_proportion_to_what_was_asked_for(either: Tree) -> None:
    """What one core weighs is what the kernel gives to groups that nobody has weighed."""
    usual = weight(either)
    group = either.group()

    for cpus in (0.5, 1.0, 2.0, 16.0):
        group.limit(Limits(memory_mb=64, cpus=cpus, pids=64))
        assert weight(either) == cpus * usual


@pytest.mark.parametrize(("cpus", "bounds"), [(0.0001, {1, 2}), (4096.0, {10_000, 1 << 18})])
def test_a_weight_is_one_that_the_kernel_takes(either: Tree, cpus: float, bounds: set[int]) -> None:
    either.group().weigh(cpus)

    assert weight(either) in bounds


def test_the_weight_alone_leaves_the_limits_as_they_are(either: Tree) -> None:
    def limits() -> dict[Path, str]:
        files = [path for path in either.root.rglob("*.*") if path.is_file()]
        return {p: p.read_text() for p in files if p.name not in ("cpu.shares", "cpu.weight")}

    before = limits()
    either.group().weigh(3.0)

    assert limits() == before


def test_processors_are_weighed_even_where_memory_cannot_be_lowered(either: Tree) -> None:
    def busy(path: Path, text: str, encoding: str | None = None) -> int:
        if path.name.startswith("memory"):
            raise OSError(16, "Device or resource busy")
        return _only_what_exists(path, text, encoding)

    usual = weight(either)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_text", busy)
        with pytest.raises(OSError, match="busy"):
            either.group().limit(Limits(memory_mb=32, cpus=2.0, pids=77))

    assert weight(either) == 2 * usual


def test_a_kernel_without_accounting_of_swap_is_limited_all_the_same(either: Tree) -> None:
    for path in [*either.root.rglob("*memsw*"), *either.root.rglob("*swap*")]:
        # No file of a group can be made by writing to it.
        path.unlink()
        path.parent.chmod(0o555)
    group = either.group()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_text", _only_what_exists)
        group.limit(Limits(memory_mb=128, cpus=1.0, pids=32))

    assert group.memory_limit_mb() == 128


@pytest.mark.parametrize("size_mb", [32, 128])
def test_memory_is_raised_and_lowered_in_the_order_that_the_kernel_takes(
    separate: Tree, size_mb: int
) -> None:
    """Memory with swap may at no moment be below memory alone."""
    order: list[str] = []

    def written(path: Path, text: str, encoding: str | None = None) -> int:
        order.append(path.name)
        return _only_what_exists(path, text, encoding)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_text", written)
        separate.group().limit(Limits(memory_mb=size_mb, cpus=1.0, pids=32))

    memory = [name for name in order if name.startswith("memory")]
    with_swap_first = size_mb > 64
    assert memory == sorted(
        ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"], reverse=with_swap_first
    )


def test_processes_are_bounded_even_where_memory_cannot_be_lowered(either: Tree) -> None:
    """A limit below what is in use is refused by the kernel; the others hold."""

    def busy(path: Path, text: str, encoding: str | None = None) -> int:
        if path.name in ("memory.limit_in_bytes", "memory.max"):
            raise OSError(16, "Device or resource busy")
        return _only_what_exists(path, text, encoding)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_text", busy)
        with pytest.raises(OSError, match="busy"):
            either.group().limit(Limits(memory_mb=32, cpus=1.0, pids=77))

    (pids,) = either.root.rglob("pids.max")
    assert pids.read_text() == "77"


def test_counters_are_read(either: Tree) -> None:
    group = either.group()

    assert group.memory_kills() == 3
    assert group.memory_limit_mb() == 64
    assert group.memory_used_mb() == 30
    assert group.memory_peak_mb() == 60
    assert group.pids() == [4711, 4712]


def test_no_limit_is_an_infinite_one(unified: Tree) -> None:
    (unified.root / "system.slice/docker-0123abcd.scope/memory.max").write_text("max\n")

    assert unified.group().memory_limit_mb() == float("inf")


def test_a_group_that_is_gone_counts_nothing(either: Tree) -> None:
    group = either.group()
    for path in either.root.rglob("*.*"):
        if path.is_file():
            path.unlink()

    assert (group.memory_kills(), group.memory_peak_mb(), group.pids()) == (0, 0.0, [])
    with pytest.raises(OSError, match="memory"):
        group.memory_limit_mb()


def test_a_process_that_is_gone_has_no_group(either: Tree) -> None:
    (either.proc / str(PID) / "cgroup").unlink()

    with pytest.raises(FileNotFoundError):
        either.group()


@pytest.mark.parametrize(
    "membership", ["", f"9:memory:/{GROUP}\n4:cpu:/{GROUP}\n"], ids=["none at all", "no pids"]
)
def test_a_machine_without_a_controller_is_told_apart(separate: Tree, membership: str) -> None:
    (separate.proc / str(PID) / "cgroup").write_text(membership)

    with pytest.raises(OSError, match="control group"):
        separate.group()


def _only_what_exists(path: Path, text: str, encoding: str | None = None) -> int:
    """As writing to a file of a group: there is no making one."""
    with path.open("r+", encoding=encoding) as file:
        file.truncate()
        return file.write(text)


def test_a_group_named_by_a_path_that_leads_up_is_found_by_its_own_name(either: Tree) -> None:
    """As a worker reads it that has a cgroup namespace of its own."""
    membership = either.proc / str(PID) / "cgroup"
    text = membership.read_text()
    membership.write_text(
        text.replace(f":/{GROUP}", f":/../../{GROUP}").replace(":/system.slice/", ":/../")
    )

    group = either.group()

    assert group.memory_limit_mb() > 0
