import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from faasd.blobs import BlobStore
from faasd.invocation import ArtifactRef, Revision
from faasd.spec import FunctionSpec
from tests.platform import pack
from worker.files import RevisionFiles
from worker.layers import Layers
from worker.service import no_progress


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


class Source:
    """The controller's blobs on the same machine."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def local(self, sha256: str) -> Path | None:
        return self._blobs.path(sha256)

    def read(self, sha256: str) -> AsyncIterator[bytes]:
        return self._blobs.read(sha256)


async def _placed_revision(folder: Path) -> tuple[RevisionFiles, Revision]:
    blobs = BlobStore(folder / "controller")
    blobs.open()
    archive = pack(
        {"handler.py": "def handle(event, context): return 1", "data.txt": "x", "deep/er.txt": "y"}
    )
    sha256 = await blobs.put(_chunks(archive), sha256=None, max_mb=1)
    layers = Layers(folder / "worker" / "layers", timeout_s=1)
    files = RevisionFiles(folder / "worker", Source(blobs), layers)
    files.open()
    weights = await blobs.put(_chunks(b"weights"), sha256=None, max_mb=1)
    spec = FunctionSpec(name="fn")
    revision = Revision(
        "default/fn", "0123456789ab", spec, sha256, {"model": ArtifactRef(weights, "model.bin")}
    )
    await files.place(revision, no_progress)
    return files, revision


def test_a_revision_is_forgotten_with_its_folder(tmp_path: Path) -> None:
    async def run() -> list[Path]:
        files, revision = await _placed_revision(tmp_path)
        await files.forget(revision)
        return list((tmp_path / "worker" / "revisions").iterdir())

    assert asyncio.run(run()) == []


def test_a_revision_placed_while_it_is_being_forgotten_is_whole(tmp_path: Path) -> None:
    async def run() -> list[str]:
        files, revision = await _placed_revision(tmp_path)
        _, placed = await asyncio.gather(files.forget(revision), files.place(revision, no_progress))
        return sorted(path.name for path in Path(placed.code).iterdir() if path.is_file())

    assert asyncio.run(run()) == ["data.txt", "handler.py"]


def test_users_of_sandboxes_can_read_all_of_a_revision_and_write_nothing(tmp_path: Path) -> None:
    """Whatever the worker creates files as by default."""
    before = os.umask(0o077)
    try:
        asyncio.run(_placed_revision(tmp_path))
    finally:
        os.umask(before)

    (folder,) = (tmp_path / "worker" / "revisions").iterdir()
    places = [folder, *folder.rglob("*")]
    modes = {path.name: path.stat().st_mode & 0o7777 for path in places if path.is_file()}
    (compiled,) = (name for name in modes if name.endswith(".pyc"))
    assert {path.stat().st_mode & 0o7777 for path in places if path.is_dir()} == {0o755}
    assert modes == {
        "handler.py": 0o644,
        "data.txt": 0o644,
        "er.txt": 0o644,
        compiled: 0o644,
        "model.bin": 0o444,
    }
