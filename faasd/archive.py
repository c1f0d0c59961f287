"""Code archives: looked through before anything of them is believed, unpacked without trust.

A code archive is a gzip-compressed tar of regular files and folders, all below its root.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from faasd.errors import InvalidArchive

MAX_MEMBERS = 20_000
LONGEST_PATH = 1000
_CHUNK = 1 << 20


class _Bounded:
    """A reader that refuses to inflate past a limit: the answer to archive bombs."""

    def __init__(self, raw: gzip.GzipFile, limit: int) -> None:
        self._raw = raw
        self._limit = limit
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size if size >= 0 else _CHUNK)
        self._read += len(data)
        if self._read > self._limit:
            raise InvalidArchive(
                f"The code archive unpacks to more than {self._limit // (1 << 20)} MB.",
                remedy="Deploy large files as [artifacts], or raise the controller's code_max_mb.",
            )
        return data


def check(path: Path, *, max_mb: float) -> list[str]:
    """The names of the files in a code archive. Raises InvalidArchive for anything hostile."""
    with _opened(path, max_mb) as archive:
        return [member.name for member in _members(archive) if member.isreg()]


def unpack(path: Path, target: Path, *, max_mb: float) -> None:
    """Unpack a code archive below `target`, which must not exist. Raises InvalidArchive."""
    target.mkdir(parents=True)
    with _opened(path, max_mb) as archive:
        for member in _members(archive):
            _place(archive, member, target)


@contextlib.contextmanager
def _opened(path: Path, max_mb: float) -> Iterator[tarfile.TarFile]:
    """The archive, to be read once from its front; what is wrong with it becomes InvalidArchive."""
    try:
        with path.open("rb") as packed, gzip.open(packed) as inflated:
            archive = tarfile.open(fileobj=_bounded(inflated, max_mb), mode="r|")  # noqa: SIM115
            with archive:
                yield archive
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise InvalidArchive(f"The code is not a tar.gz archive: {error}.") from None


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    place = target / member.name
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    if content is None:
        raise InvalidArchive(f"The archive's member {member.name!r} has no content.")
    mode = 0o755 if member.mode & 0o100 else 0o644
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        shutil.copyfileobj(content, out, _CHUNK)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    files: set[str] = set()
    folders = {"."}
    for member in archive:
        _inspect(member)
        name = os.path.normpath(member.name)
        parents = {str(parent) for parent in PurePosixPath(name).parents}
        clashes = name in files or (name in folders and not member.isdir())
        if clashes or parents & files:
            raise InvalidArchive(
                f"The archive holds {member.name!r} twice, or both a file and a folder of that name."
            )
        (folders if member.isdir() else files).add(name)
        folders |= parents
        if len(files) + len(folders) > MAX_MEMBERS:
            raise InvalidArchive(f"The archive has more than {MAX_MEMBERS} files and folders.")
        yield member


def _bounded(inflated: gzip.GzipFile, max_mb: float) -> Any:
    """A file as far as tarfile's stream mode needs one."""
    return _Bounded(inflated, int(max_mb * (1 << 20)))


def _inspect(member: tarfile.TarInfo) -> None:
    name = member.name
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
        raise InvalidArchive(f"The archive's member {name[:200]!r} points outside its folder.")
    if len(name) > LONGEST_PATH or any(len(os.fsencode(p)) > 255 for p in name.split("/")):
        raise InvalidArchive(f"The archive's member {name[:80]!r}... has too long a name.")
    if member.issparse():
        # Its holes are not in the archive: it inflates without being read.
        raise InvalidArchive(f"The archive's member {name[:200]!r} is a sparse file.")
    if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device or pipe"
        raise InvalidArchive(f"The archive's member {name[:200]!r} is {kind}.")
