"""A folder of content-addressed files: streamed in, verified, hard-linked out.

A file appears under its SHA-256 only once it is whole: it is written beside and renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from faasd import clock
from faasd.errors import BadRequest, BodyTooLarge, DigestMismatch

_CHUNK = 1 << 18
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise BadRequest(
            f"{text[:80]!r} is not a SHA-256.", remedy="Use 64 lower-case hexadecimal digits."
        )
    return text


class BlobStore:
    """Safe for several tasks and processes at once: equal content, equal file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"

    def open(self) -> None:
        """Make the folders and drop what was left half written."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    async def put(self, chunks: AsyncIterator[bytes], *, sha256: str | None, max_mb: float) -> str:
        """Store a stream; its digest. Raises DigestMismatch or BodyTooLarge and keeps nothing."""
        left = max_mb * (1 << 20)
        digest = hashlib.sha256()
        temporary = self._incoming / secrets.token_hex(8)
        try:
            with temporary.open("xb") as out:
                async for chunk in chunks:
                    left -= len(chunk)
                    if left < 0:
                        raise BodyTooLarge(
                            f"The upload has more than {max_mb:g} MB.",
                            remedy="Raise artifact_max_mb or code_max_mb of the controller.",
                        )
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                await asyncio.to_thread(os.fsync, out.fileno())
            found = digest.hexdigest()
            if sha256 is not None and found != sha256:
                raise DigestMismatch(f"The upload's SHA-256 is {found}, not {sha256}.")
            temporary.chmod(0o444)
            place = self.path(found)
            place.parent.mkdir(exist_ok=True)
            temporary.replace(place)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        return found

    def adopt(self, source: Path, sha256: str) -> None:
        """Take over a verified file of another store by hard link where that is possible."""
        place = self.path(sha256)
        if place.exists():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._incoming / secrets.token_hex(8)
        link_or_copy(source, temporary)
        temporary.replace(place)

    async def read(self, sha256: str) -> AsyncIterator[bytes]:
        with self.path(sha256).open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def keep_only(self, wanted: set[str], *, younger_than_s: float = 0.0) -> int:
        """Remove every blob that is neither in `wanted` nor young; how many there were."""
        removed = 0
        for path in self._folder.glob("??/*"):
            age_s = clock.wall() - path.stat().st_mtime
            if path.name not in wanted and age_s >= younger_than_s:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the file; a copy where the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
        target.chmod(0o444)
