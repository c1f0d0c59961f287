"""Bodies that come in chunks (RFC 9112, section 7.1), decoded as strictly as they are specified.

Two parties that find the end of a body in different places are how requests are smuggled. What is
odd is refused here, never guessed at, and trailers are read only to be dropped.
"""

from __future__ import annotations

import re

from faasd.errors import BadRequest
from faasd.spool import Growing

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SIZE = re.compile(
    rb"0*([0-9A-Fa-f]{1,16})(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|"
    rb'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'
    rb"))?)*"
)
# As most are: what this matches, _SIZE does.
_BARE_SIZE = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,6})\r\n")
_TRAILER = re.compile(rb"(" + _TOKEN + rb"):[\t -~\x80-\xff]*")
# What a line may begin with, as far as it has come.
_BEGUN = re.compile(rb"[\t -~\x80-\xff]*\r?")
# What says where a body ends is not said behind it.
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

_LONGEST_LINE = 4096
_LONGEST_TRAILERS = 8192
_MOST_TRAILERS = 64
# What sizes and extensions may take beyond twice the data, and so much for each chunk.
_MOST_EXCESS = 16_384
_FOR_EACH = 16

_IN_SIZE, _IN_DATA, _BEHIND_DATA, _IN_TRAILERS, _OVER = range(5)


class ChunkedBody:
    """One body as its bytes come, pure. It stops where it would grow past `limit`, which whoever
    feeds it may raise.
    """

    __slots__ = ("_excess", "_kept", "_left", "_state", "_trailers", "announced", "body",
                 "limit")  # fmt: skip

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.announced = 0
        """Bytes of the body that have come, or will with the chunk that has begun."""
        self.body = Growing()
        self._state = _IN_SIZE
        self._left = 0
        self._kept = b""
        self._excess = 0
        self._trailers: list[int] = []

    @property
    def is_too_large(self) -> bool:
        return self.announced > self.limit

    def feed(self, data: bytes | bytearray) -> bytes | None:
        """What is behind the body, once its end has come; nothing more may be fed then.

        Raises BadRequest, after which the end of the body cannot be known.
        """
        if self._kept:
            data, self._kept = self._kept + data, b""
        at = 0
        while self._state != _OVER:
            if self._state == _IN_DATA:
                if self.is_too_large:
                    break
                at = self._take_data(data, at)
                if self._left:
                    return None
            elif self._state == _BEHIND_DATA:
                mark = data[at : at + 2]
                if mark != b"\r\n"[: len(mark)]:
                    raise _broken("A chunk does not end where its size says")
                if len(mark) < 2:
                    break
                at += 2
                self._state = _IN_SIZE
            else:
                if self._state == _IN_SIZE and not self._excess:
                    at = self._take_whole(data, at)
                end = data.find(b"\r\n", at, at + _LONGEST_LINE)
                if end < 0:
                    self._check_begun(data, at)
                    break
                if self._state == _IN_SIZE:
                    self._take_size(data, at, end)
                else:
                    self._take_trailer(data, at, end)
                at = end + 2
        if self._state == _OVER:
            return bytes(data[at:])
        self._kept = bytes(data[at:])
        return None

    def _take_whole(self, data: bytes | bytearray, at: int) -> int:
        """Chunks that are here whole and have no extensions: as the other ways do, but in half the
        time, since a body of many small ones holds everybody up.
        """
        view = memoryview(data)
        while said := _BARE_SIZE.match(data, at):
            begin = said.end()
            size = int(said[1], 16)
            end = begin + size
            if self.announced + size > self.limit or data[end : end + 2] != b"\r\n":
                break
            self.announced += size
            self.body.add(view[begin:end])
            at = end + 2
        return at

    def _take_data(self, data: bytes | bytearray, at: int) -> int:
        piece = memoryview(data)[at : at + self._left]
        self.body.add(piece)
        self._left -= len(piece)
        if not self._left:
            self._state = _BEHIND_DATA
        return at + len(piece)

    def _take_size(self, data: bytes | bytearray, at: int, end: int) -> None:
        said = _SIZE.fullmatch(data, at, end)
        if said is None:
            raise _broken("A chunk has no size")
        size = self._left = int(said[1], 16)
        # Else data could be spread so thin that reading it costs more than it is worth.
        self._excess = max(0, self._excess + end - at - _FOR_EACH - 2 * size)
        if self._excess > _MOST_EXCESS:
            raise _broken("The chunks have too many extensions")
        self.announced += size
        self._state = _IN_DATA if size else _IN_TRAILERS

    def _take_trailer(self, data: bytes | bytearray, at: int, end: int) -> None:
        if at == end:
            self._state = _OVER
            return
        said = _TRAILER.fullmatch(data, at, end)
        if said is None or said[1].lower() in _FRAMING:
            raise _broken("A trailer is none")
        self._trailers.append(end - at)
        if len(self._trailers) > _MOST_TRAILERS or sum(self._trailers) > _LONGEST_TRAILERS:
            raise _broken("There are too many trailers")

    def _check_begun(self, data: bytes | bytearray, at: int) -> None:
        """What cannot become a line any more is not waited for."""
        if len(data) - at >= _LONGEST_LINE or not _BEGUN.fullmatch(data, at):
            raise _broken("A line among the chunks is none")


def _broken(what: str) -> BadRequest:
    return BadRequest(
        f"{what}.", remedy="Send chunks as RFC 9112 describes them, or the body with its length."
    )
