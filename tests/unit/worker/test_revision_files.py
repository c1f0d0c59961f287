import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faasd.blobs import BlobStore
from faasd.errors import FaasdError, NotFound, Unavailable, WorkerLost
from faasd.invocation import ArtifactRef, Revision
from faasd.spec import FunctionSpec
from tests.platform import pack
from worker.files import RevisionFiles
from worker.layers import Layers
from worker.sandbox import Placed
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
    files = RevisionFiles(folder / "worker", lambda _key: [Source(blobs)], layers)
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


class Remote:
    """A controller elsewhere: what it has not, or is not there to give, another may have."""

    def __init__(self, files: dict[str, bytes] | FaasdError) -> None:
        self.files = files
        self.asked: list[str] = []

    def local(self, sha256: str) -> Path | None:
        return None

    async def read(self, sha256: str) -> AsyncIterator[bytes]:
        self.asked.append(sha256)
        if isinstance(self.files, FaasdError):
            raise self.files
        yield self.files[sha256][:3]
        yield self.files[sha256][3:]


async def _placed_from(folder: Path, *sources: Remote) -> Placed:
    revision = Revision("default/fn", "r1", FunctionSpec(name="fn"), SHA256, {})
    layers = Layers(folder / "layers", timeout_s=1)
    files = RevisionFiles(folder, lambda key: sources if key == revision.key else (), layers)
    files.open()
    return await files.place(revision, no_progress)


ARCHIVE = pack({"handler.py": "def handle(event, context): return 1"})
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


@pytest.mark.parametrize("fault", [WorkerLost("It is gone."), NotFound("There is none.")])
def test_a_file_is_read_from_the_first_controller_that_gives_it(
    tmp_path: Path, fault: FaasdError
) -> None:
    absent, present, unasked = Remote(fault), Remote({SHA256: ARCHIVE}), Remote(fault)

    placed = asyncio.run(_placed_from(tmp_path, absent, present, unasked))

    assert (Path(placed.code) / "handler.py").exists()
    assert (absent.asked, present.asked, unasked.asked) == ([SHA256], [SHA256], [])


def test_a_file_that_no_controller_gives_fails_with_what_the_last_said(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost):
        asyncio.run(_placed_from(tmp_path, Remote(NotFound("None.")), Remote(WorkerLost("Gone."))))


def test_a_revision_that_nobody_wants_any_more_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="retired"):
        asyncio.run(_placed_from(tmp_path))
