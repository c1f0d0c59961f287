"""What functions print: read from pipes, attributed to requests, kept per function, followed live.

Bounded everywhere: bytes per request, length of a line, lines per function, lines waiting for a
slow follower. What is dropped is counted and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator

from faasd import clock
from faasd.invocation import LogLine

LONGEST_LINE = 16_384
_READ = 65_536
_MARK, _END_OF_MARK = "\x1e", "\x1f"

Emit = Callable[[str, str, str], None]


class LogBook:
    """The last lines of each function, and those who follow them. Owned by the event loop."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._kept: dict[str, deque[LogLine]] = {}
        self._followers: dict[str, set[asyncio.Queue[LogLine]]] = {}

    def add(
        self,
        function: str,
        revision: str,
        instance: str,
        request_id: str,
        stream: str,
        line: str,
    ) -> None:
        entry = LogLine(clock.wall(), function, revision, instance, request_id, stream, line)
        self._kept.setdefault(function, deque(maxlen=self._lines)).append(entry)
        for follower in self._followers.get(function, ()):
            with contextlib.suppress(asyncio.QueueFull):
                follower.put_nowait(entry)

    def tail(self, function: str, count: int) -> list[LogLine]:
        kept = self._kept.get(function, ())
        return list(kept)[-count:] if count > 0 else []

    def forget(self, function: str) -> None:
        self._kept.pop(function, None)

    async def follow(self, function: str, tail: int) -> AsyncIterator[LogLine]:
        """The last lines, then each further one; never ends by itself."""
        with self._following(function) as queue:
            for entry in self.tail(function, tail):
                yield entry
            while True:
                yield await queue.get()

    @contextlib.contextmanager
    def _following(self, function: str) -> Iterator[asyncio.Queue[LogLine]]:
        queue: asyncio.Queue[LogLine] = asyncio.Queue(maxsize=self._lines)
        self._followers.setdefault(function, set()).add(queue)
        try:
            yield queue
        finally:
            self._followers[function].discard(queue)
            if not self._followers[function]:
                del self._followers[function]


class OutputPipe:
    """The read end of a process's standard output or error, as lines with a request id."""

    def __init__(self, stream: str, emit: Emit, *, budget: int) -> None:
        """`emit` gets request id, stream and line; `budget` is the bytes kept per request.

        Before it reads because something came, it calls `before_reading`: the owner may learn
        that what came belongs to another request than it thought.
        """
        self._stream = stream
        self._emit = emit
        self._budget = budget
        self._left = {"": budget}
        self._dropped: Counter[str] = Counter()
        self._partial = b""
        self.request = ""
        """Whose output it is that is read from here on. Of what was read, `switch` makes an end."""
        self._touched = False
        self.before_reading: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self._open = True
        self._loop.add_reader(self.read_end, self._readable)

    def handed_over(self) -> None:
        """The write end is the child's alone now."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def switch(self, request_id: str) -> None:
        """What is read from here on belongs to `request_id`; see `drain`."""
        if self._touched:
            self._touched = False
            self._flush()
            self._say_dropped(self.request)
            self._left = {}
        self.request = request_id

    def expect(self, request_id: str) -> None:
        """Lines marked with this request belong to it from now on, beside those of others."""
        self._left[request_id] = self._budget

    def settle(self, request_id: str) -> None:
        """No more lines of this request are expected."""
        self.drain()
        for request in (request_id, ""):
            self._say_dropped(request)
        self._left.pop(request_id, None)
        self._left[""] = self._budget

    def drain(self) -> None:
        """Read what is in the pipe by now."""
        # A function that prints without end must not hold the loop: what it printed before its
        # reply is at most what a pipe holds.
        for _ in range(4):
            if not self._open or self._read_once() is not True:
                return

    def close(self) -> None:
        """Read what is left, then close. Safe to call twice."""
        if not self._open:
            return
        self.drain()
        self._flush()
        for request in list(self._dropped):
            self._say_dropped(request)
        self._open = False
        self._loop.remove_reader(self.read_end)
        os.close(self.read_end)
        self.handed_over()

    def _readable(self) -> None:
        if self.before_reading is not None:
            self.before_reading()
        if self._open and self._read_once() is False:
            self.close()

    def _read_once(self) -> bool | None:
        """True when something was read, None when nothing is there, False at the end."""
        try:
            data = os.read(self.read_end, _READ)
        except BlockingIOError:
            return None if self._open else False
        if not data:
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._touched = True
        if self.request and self._left.get(self.request, self._budget) <= 0:
            self._dropped[self.request] += len(data)
            return
        *lines, rest = (self._partial + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._partial = rest
        for line in lines:
            self._line(line)

    def _line(self, raw: bytes) -> None:
        line = raw[:LONGEST_LINE].decode("utf-8", "replace")
        request = self.request
        if line.startswith(_MARK):
            marked, _, line = line[1:].partition(_END_OF_MARK)
            # A function can print a mark too: it counts only for what is running.
            request = marked if marked in self._left else request
        left = self._left.get(request, self._budget) - len(raw) - 1
        self._left[request] = left
        if left <= 0:
            self._dropped[request] += len(raw)
            return
        self._emit(request, self._stream, line)

    def _flush(self) -> None:
        if self._partial:
            raw, self._partial = self._partial, b""
            self._line(raw)

    def _say_dropped(self, request: str) -> None:
        dropped = self._dropped.pop(request, 0)
        if dropped:
            kept_kb = self._budget // 1024
            self._emit(
                request,
                self._stream,
                f"[faasd dropped {dropped} bytes of output: {kept_kb} KB are kept per invocation]",
            )
