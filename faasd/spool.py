"""Large bodies: in a file in memory while they travel, so that no process holds them whole.

A descriptor passes between processes of one machine without its bytes; between machines they go
piece by piece.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from faasd.errors import HandlerError

PIECE = 1 << 18


class Spool:
    """A body in a file in memory, which lasts as long as this object. Owned by the event loop."""

    __slots__ = ("_size", "fd")

    def __init__(self, fd: int | None = None, size: int = 0) -> None:
        """Empty, or the first `size` bytes of a file whose descriptor is this object's from here."""
        self.fd = os.memfd_create("faasd-body", os.MFD_CLOEXEC) if fd is None else fd
        self._size = size

    def __repr__(self) -> str:
        return f"<Spool of {self._size} bytes>"

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.fd)

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Add to its end."""
        view = memoryview(piece)
        while view:
            written = os.pwrite(self.fd, view, self._size)
            self._size += written
            view = view[written:]

    def pieces(self) -> Iterator[bytes]:
        """All of it, in pieces of PIECE bytes at most. Raises HandlerError if it was cut short:
        the instance that wrote it holds it too.
        """
        at = 0
        while at < self._size:
            piece = os.pread(self.fd, min(PIECE, self._size - at), at)
            if not piece:
                raise HandlerError("The function cut a body short on its way.")
            at += len(piece)
            yield piece

    def whole(self) -> bytes:
        return b"".join(self.pieces())

    async def chunks(self) -> AsyncIterator[bytes]:
        """As `pieces`, for who reads asynchronously."""
        for piece in self.pieces():
            yield piece


Body = bytes | Spool


class Growing:
    """A body while it comes, whose size is not known: in memory while it is small, then in a file."""

    SMALL = 1 << 20

    __slots__ = ("_held", "_spool")

    def __init__(self) -> None:
        self._held = bytearray()
        self._spool: Spool | None = None

    def __len__(self) -> int:
        return len(self._held) + len(self._spool or b"")

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        self._held += piece
        if len(self._held) > (self.SMALL if self._spool is None else PIECE):
            self._write_out()

    def whole(self) -> Body:
        """All that came; nothing may be added then."""
        if self._spool is None:
            return bytes(self._held)
        self._write_out()
        return self._spool

    def _write_out(self) -> None:
        if self._spool is None:
            self._spool = Spool()
        self._spool.write(self._held)
        self._held = bytearray()


def whole(body: Body) -> bytes:
    return body if isinstance(body, bytes) else body.whole()


def pieces(body: Body) -> Iterator[bytes]:
    """All of a body, in pieces."""
    return iter((body,)) if isinstance(body, bytes) else body.pieces()
