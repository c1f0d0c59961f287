"""Process trees: what belongs to a server, what it used, and that nothing of it stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.processes import (
    TICKS_PER_S,
    Process,
    Tree,
    closure,
    cpu_s,
    parse_stat,
    snapshot,
    waited_s,
)

STAT = "{pid} ({name}) {state} {parent} 7 8 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 {started} 9 9"
SLEEP = "import time; time.sleep(600)"
# Detached as a daemon is: another session, and a parent that has ended.
DAEMON = f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.wait()
{SLEEP}
"""


def process(pid: int, parent: int, *, cpu_ticks: int = 0) -> Process:
    return Process(
        pid=pid, parent=parent, session=1, ended=False, cpu_ticks=cpu_ticks, started_ticks=0
    )


def stat(name: str, state: str = "S") -> str:
    return STAT.format(pid=42, name=name, state=state, parent=5, started=99)


@pytest.mark.parametrize("name", ["python", "a b", "odd) S 1 (name", "fn:x"])
def test_a_line_of_stat_is_read_whatever_the_name_is(name: str) -> None:
    found = parse_stat(stat(name))

    assert found == Process(
        pid=42, parent=5, session=8, ended=False, cpu_ticks=100, started_ticks=99
    )


def test_a_process_that_waits_to_be_collected_has_ended() -> None:
    assert parse_stat(stat("python", state="Z")).ended


def test_this_process_is_read_as_the_system_tells_it() -> None:
    found = snapshot()[os.getpid()]

    assert (found.parent, found.session) == (os.getppid(), os.getsid(0))


def test_a_closure_has_descendants_and_no_one_else() -> None:
    processes = {pid: process(pid, parent) for pid, parent in [(2, 1), (3, 2), (4, 3), (5, 1)]}

    assert closure(processes, [2]) == [2, 3, 4]
    assert closure(processes, [3, 4, 99]) == [3, 4]


@given(parents=st.lists(st.integers(0, 19), max_size=20), seeds=st.sets(st.integers(0, 19)))
def test_a_closure_ends_and_holds_every_child_of_its_members(
    parents: list[int], seeds: set[int]
) -> None:
    processes = {pid: process(pid, parent) for pid, parent in enumerate(parents)}

    found = set(closure(processes, seeds))

    assert {pid for pid in seeds if pid in processes} <= found
    assert all(one.pid in found for one in processes.values() if one.parent in found)


def test_the_time_of_a_child_that_ended_is_counted_with_its_parent() -> None:
    before = {1: process(1, 0, cpu_ticks=10), 2: process(2, 1, cpu_ticks=30)}
    after = {1: process(1, 0, cpu_ticks=10 + 45)}

    used_s = cpu_s(after, closure(after, [1])) - cpu_s(before, closure(before, [1]))

    assert used_s == pytest.approx(15 / TICKS_PER_S)


def test_a_tree_has_daemons_that_detached_themselves_and_ends_them(tmp_path: Path) -> None:
    written = tmp_path / "pid"
    tree = Tree()
    root = tree.start([sys.executable, "-c", DAEMON, str(written)], log=tmp_path / "log", env={})
    try:
        daemon = int(eventually(lambda: written.exists() and written.read_text()))

        assert {root.pid, daemon} <= set(tree.pids())
        assert snapshot()[daemon].session != root.pid
    finally:
        tree.end()

    assert tree.pids() == []
    assert daemon not in snapshot() or snapshot()[daemon].ended


def test_a_tree_that_ignores_the_polite_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.processes.GRACE_S", 0.1)
    ready = tmp_path / "ready"
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(%r, 'w')\n" + SLEEP
    tree = Tree()
    tree.start([sys.executable, "-c", code % str(ready)], log=tmp_path / "log", env={})
    eventually(ready.exists)

    tree.end()

    assert tree.pids() == []


def test_trees_do_not_count_one_anothers_processes(tmp_path: Path) -> None:
    trees = [Tree(), Tree()]
    try:
        for tree in trees:
            tree.start([sys.executable, "-c", SLEEP], log=tmp_path / "log", env={})

        first, second = (set(tree.pids()) for tree in trees)

        assert len(first) == len(second) == 1
        assert not first & second
    finally:
        for tree in trees:
            tree.end()


def test_processes_outside_are_counted_and_not_ended(tmp_path: Path) -> None:
    other = Tree()
    outside = other.start([sys.executable, "-c", SLEEP], log=tmp_path / "log", env={})
    try:
        tree = Tree(lambda: [outside.pid])

        counted = tree.pids()
        tree.end()

        assert counted == [outside.pid]
        assert outside.poll() is None
    finally:
        other.end()


def test_processes_that_share_a_processor_wait_for_it(tmp_path: Path) -> None:
    spin = f"import os\nos.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    tree = Tree()
    try:
        roots = [
            tree.start(
                [sys.executable, "-c", spin + "while True: pass"], log=tmp_path / "log", env={}
            )
            for _ in range(2)
        ]

        assert eventually(lambda: all(waited_s(root.pid) > 0.01 for root in roots))
    finally:
        tree.end()
    assert [waited_s(root.pid) for root in roots] == [0, 0]


def eventually(probe: Callable[[], object]) -> str:
    while not (found := probe()):
        pass
    return str(found)
