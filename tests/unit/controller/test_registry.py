"""The registry as it is after a start, and what it costs to know functions that nobody calls."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

from controller.registry import Registry
from controller.store.sqlite import SqliteStore
from controller.workers import Workers
from faasd.blobs import BlobStore
from faasd.invocation import Revision
from faasd.spec import validate_spec
from tests.loops import in_loop

FUNCTIONS = 64
MOST_KB = 4.0


def revision(number: int) -> Revision:
    spec = validate_spec({"name": f"idle-{number}", "resources": {"memory_mb": 128}})
    return Revision(f"default/idle-{number}", f"{number:012x}", spec, f"{number:064x}", {})


async def opened(folder: Path, store: SqliteStore) -> Registry:
    registry = Registry(
        store, BlobStore(folder / "artifacts"), Workers(), code_max_mb=1, deploy_timeout_s=1
    )
    await registry.open()
    return registry


@in_loop
async def test_a_function_that_nobody_calls_takes_a_few_kilobytes(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "faasd.db")
    await store.open()
    for number in range(FUNCTIONS):
        await store.activate(revision(number), float(number))
    # What is made once, for the first that is read, is not theirs.
    await opened(tmp_path, store)
    gc.collect()

    tracemalloc.start()
    try:
        registry = await opened(tmp_path, store)
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await store.aclose()

    assert len(registry.list("default")) == FUNCTIONS
    assert taken / FUNCTIONS / 1024 < MOST_KB


@in_loop
async def test_the_active_revision_of_a_function_is_the_one_of_its_history(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "faasd.db")
    await store.open()
    await store.activate(revision(0), 1.0)

    function = (await opened(tmp_path, store)).get("default/idle-0")
    await store.aclose()

    assert function.history[0].revision is function.active
