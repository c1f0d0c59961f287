"""Requests per second of one service, as whole numbers separated by blanks: `52 55 48 55 ...`.

Read from a text file, or from the first file inside a tar archive (compressed or not). Only as much is read as
the cut needs. The whole file is one function, named for the file.
"""

from __future__ import annotations

import io
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from loadgen.errors import TraceError
from loadgen.traces.model import Cells, Counts, Trace, TraceFunction
from loadgen.traces.rows import readable

NAME = "counts"
SECOND_S = 1.0
CHUNK = 1 << 16
_TABS_TO_SPACES = bytes.maketrans(b"\t", b" ")


def recognises(path: Path) -> bool:
    """Whether the first line begins with nothing but digits and blanks, perhaps in an archive."""
    with readable(path), _open(path) as file:
        head = file.read(512).partition(b"\n")[0]
    return bool(head.strip()) and all(letter in b"0123456789 \t\r" for letter in head)


def read(path: Path, cut_s: float) -> Trace:
    bins, counts = array("I"), array("I")
    seconds = 0
    for line, number, token in _tokens(path):
        if seconds * SECOND_S >= cut_s:
            break
        if not token.isdigit():
            shown = token.decode("utf-8", "replace")
            raise TraceError(
                path, f"number {number} is {shown!r}; expected a whole number.", line=line
            )
        if count := int(token):
            bins.append(seconds)
            counts.append(count)
        seconds += 1
    if not counts:
        raise TraceError(path, "holds no requests; expected counts per second above 0.")
    function = TraceFunction(path.name.split(".")[0], sum(counts))
    return Trace(
        path=path,
        format=NAME,
        functions=(function,),
        events=Counts(SECOND_S, (Cells(bins, counts),)),
        span_s=min(seconds * SECOND_S, cut_s),
        cut_s=cut_s,
    )


def _tokens(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Each number with its line and its place on the line. A line may be longer than memory should hold."""
    line, number, rest = 1, 0, b""
    with readable(path), _open(path) as file:
        while chunk := file.read(CHUNK):
            spaced = chunk.translate(_TABS_TO_SPACES, b"\r").replace(b"\n", b" \n ")
            *whole, rest = (rest + spaced).split(b" ")
            for token in whole:
                if token == b"\n":
                    line, number = line + 1, 0
                elif token:
                    number += 1
                    yield line, number, token
    if rest:
        yield line, number + 1, rest


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if not _is_tar(path):
        with path.open("rb") as file:
            yield file
        return
    try:
        # A stream, because seeking in a compressed archive means reading it from the start again.
        with tarfile.open(path, "r|*") as archive:
            yield _first_file(path, archive)
    except (tarfile.TarError, EOFError) as error:
        raise TraceError(path, f"is a broken archive ({error}).") from None


def _is_tar(path: Path) -> bool:
    return path.suffix in {".tar", ".tgz", ".tbz2", ".txz"} or ".tar." in path.name


def _first_file(path: Path, archive: tarfile.TarFile) -> IO[bytes]:
    for member in archive:
        # Archives made on a Mac carry a "._NAME" of attributes before each file.
        if member.isfile() and not PurePosixPath(member.name).name.startswith("._"):
            return archive.extractfile(member) or io.BytesIO()
    raise TraceError(path, "holds no file; expected one with the counts.")
