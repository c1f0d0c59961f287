import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from faasd.blobs import BlobStore
from faasd.invocation import Revision
from faasd.spec import FunctionSpec
from tests.platform import pack
from worker.files import RevisionFiles
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
    archive = pack({"handler.py": "def handle(event, context): return 1", "data.txt": "x"})
    sha256 = await blobs.put(_chunks(archive), sha256=None, max_mb=1)
    files = RevisionFiles(folder / "worker", Source(blobs), layer_timeout_s=1)
    files.open()
    revision = Revision("default/fn", "0123456789ab", FunctionSpec(name="fn"), sha256, {})
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
