"""Huge pages before the forks: nothing changes but how much a fork has to copy."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import mmap, os, re
from functions.runtime import process

memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE)
for start in range(0, len(memory), 4096):
    memory[start] = start // 4096 % 251
process.gather_pages()

def rollup(field):
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(field + r":\\s+(\\d+)", file.read()).group(1))

print(rollup("AnonHugePages"))
child = os.fork()
if child == 0:
    before = rollup("Private_Dirty")
    memory[5 << 20] = 7
    print(rollup("Private_Dirty") - before, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(all(memory[start] == start // 4096 % 251 for start in range(0, len(memory), 4096)))
"""


@pytest.fixture(scope="module")
def told() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-u", "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_what_was_written_before_stays(told: list[str]) -> None:
    assert told[2] == "True"


def test_memory_lies_in_huge_pages_where_the_kernel_can(told: list[str]) -> None:
    if int(told[0]) == 0:
        pytest.skip("this kernel does not gather pages on demand")

    assert int(told[0]) >= 12 << 10


def test_a_child_that_writes_to_one_copies_little_of_it(told: list[str]) -> None:
    # A huge page has 2,048 KB; asking what was copied takes some memory itself.
    assert int(told[1]) <= 1024
