"""A revision's files on a node: fetched, verified, unpacked once, shared by all its sandboxes."""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from faasd import archive
from faasd.blobs import BlobStore, link_or_copy
from faasd.errors import DeployFailed, FaasdError, NotFound, Unavailable, WorkerLost
from faasd.invocation import Revision
from worker.layers import Layers, make_readable
from worker.sandbox import Placed, Progress

_LARGEST_MB = 1 << 20


class ArtifactSource(Protocol):
    """Where a worker gets content-addressed files from: a controller."""

    def local(self, sha256: str) -> Path | None:
        """The file itself when it lies on this machine, to be linked, not copied."""
        ...

    def read(self, sha256: str) -> AsyncIterator[bytes]: ...


class RevisionFiles:
    """Places revisions below one folder. Owned by the event loop."""

    def __init__(
        self, folder: Path, sources: Callable[[str], Sequence[ArtifactSource]], layers: Layers
    ) -> None:
        """`sources` are asked for the files of a revision, by its key, one after another."""
        self._folder = folder / "revisions"
        self._blobs = BlobStore(folder / "artifacts")
        self._layers = layers
        self._sources = sources
        self._placing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*.placing"):
            shutil.rmtree(left, ignore_errors=True)
        self._blobs.open()
        self._layers.open()

    async def place(self, revision: Revision, progress: Progress) -> Placed:
        """Have everything the revision needs on this node. Raises DeployFailed."""
        # Two sandboxes of one revision must not unpack into each other.
        async with self._placing.setdefault(revision.key, asyncio.Lock()):
            folder = self._folder / _folder_name(revision)
            if not folder.exists():
                await self._fetch(revision, progress)
                await asyncio.to_thread(self._unpack, revision, folder)
        code = folder / "code"
        layer = await self._layer(revision, code, progress)
        return Placed(
            code=str(code),
            path=[str(layer)] if layer else [],
            artifacts={
                name: str(folder / "artifacts" / name / Path(ref.filename).name)
                for name, ref in revision.artifacts.items()
            },
        )

    async def forget(self, revision: Revision) -> None:
        """Remove a revision's folder; its blobs stay until `prune`."""
        folder = self._folder / _folder_name(revision)
        left = folder.with_suffix(f".{secrets.token_hex(4)}.placing")
        # Out of the way before anything is awaited: the revision may be placed again meanwhile.
        with contextlib.suppress(FileNotFoundError):
            folder.rename(left)
        await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)

    def prune(self, wanted: set[str]) -> None:
        """Drop the blobs that no revision here needs."""
        self._blobs.keep_only(wanted)

    async def _fetch(self, revision: Revision, progress: Progress) -> None:
        wanted = {revision.code_sha256, *(ref.sha256 for ref in revision.artifacts.values())}
        for sha256 in sorted(wanted):
            if self._blobs.has(sha256):
                continue
            sources = self._sources(revision.key)
            local = next(filter(None, (source.local(sha256) for source in sources)), None)
            if local is not None:
                await asyncio.to_thread(self._blobs.adopt, local, sha256)
                continue
            progress("fetch", f"fetching {sha256[:12]}")
            await self._read(sha256, sources)

    async def _read(self, sha256: str, sources: Sequence[ArtifactSource]) -> None:
        failure: FaasdError = Unavailable("The revision was retired while it was fetched.")
        for source in sources:
            try:
                await self._blobs.put(source.read(sha256), sha256=sha256, max_mb=_LARGEST_MB)
            except (WorkerLost, NotFound) as error:
                failure = error
            else:
                return
        raise failure

    def _unpack(self, revision: Revision, folder: Path) -> None:
        temporary = folder.with_suffix(".placing")
        shutil.rmtree(temporary, ignore_errors=True)
        archive.unpack(
            self._blobs.path(revision.code_sha256), temporary / "code", max_mb=_LARGEST_MB
        )
        # Templates import it again and again, and may not write beside it.
        compileall.compile_dir(temporary / "code", ddir=folder / "code", quiet=2, workers=1)
        for name, ref in revision.artifacts.items():
            place = temporary / "artifacts" / name / Path(ref.filename).name
            place.parent.mkdir(parents=True)
            link_or_copy(self._blobs.path(ref.sha256), place)
        make_readable(temporary)
        temporary.replace(folder)

    async def _layer(self, revision: Revision, code: Path, progress: Progress) -> Path | None:
        name = revision.spec.requirements
        if name is None:
            return None
        try:
            text = await asyncio.to_thread((code / name).read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DeployFailed(
                f"The requirements file {name!r} could not be read: {error}.",
                remedy="Put it into the function's folder, or remove the key requirements.",
            ) from None
        return await self._layers.ensure(text, revision.spec.runtime, progress)


def _folder_name(revision: Revision) -> str:
    # Namespaces may hold functions of equal name and content, hence equal revisions.
    return revision.key.replace("/", "~")
