"""Every module can be imported first, and says what it owns."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("faasd", "controller", "worker", "functions", "loadgen")
NOT_OURS_TO_IMPORT = ("functions/examples/", "functions/images/")

# Forking after the outside libraries are there makes an import of ours alone cost milliseconds.
IMPORT_EACH_ALONE = """
import gc, importlib, os, sys, traceback

for name in sys.argv[2:]:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] in sys.argv[1].split(",")]:
    del sys.modules[name]
gc.freeze()
gc.disable()
failed = False
for line in sys.stdin:
    name = line.strip()
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            print("cannot be imported first:", name, flush=True)
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
"""
OUTSIDE = (
    "aiohttp.web",
    "asyncio",
    "compileall",
    "msgpack",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "rich.console",
    "sqlite3",
    "structlog",
    "tarfile",
    "tomllib",
    "typer",
    "uvloop",
)


def sources() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [
        path
        for path in found
        if not path.relative_to(ROOT).as_posix().startswith(NOT_OURS_TO_IMPORT)
    ]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_there_is_something_to_look_at() -> None:
    names = {name_of(path) for path in sources()}

    assert {"faasd", "worker.pool", "functions.runtime.codec", "loadgen.replay"} <= names


def test_every_module_can_be_imported_before_any_other_of_ours() -> None:
    names = [name_of(path) for path in sources() if path.stem != "__main__"]

    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH_ALONE, ",".join(PACKAGES), *OUTSIDE],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_every_module_says_what_it_owns(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))

    assert ast.get_docstring(tree) or not tree.body
