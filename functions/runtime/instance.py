"""The instance: serves invocations on one data socket until it is closed.

Frames (see `frames`), worker to instance:

    ["call", [[id, meta, body], ...]]    several at once only when the function batches
    ["cancel", id]                       the caller of a call is gone; async instances only
    ["mark"]                             sync ones only, first of all: see below
    ["go"]                               answers "printed"

and back:

    ["attached", {"attach_ms"}] | ["refused", {...}]          once
    ["result", id, status, content type, headers, exec ms, body]
    ["start", id, status, content type, headers, if any]  ["chunk", id, body]  ["end", id, exec ms]
    ["error", id, problem, exec ms]
    ["printed"]                          output lies in the pipes, or it streamed; it waits for "go"

A body of `frames.LARGE` bytes or more is its size, and a file in memory beside the frame, or the
one that came with its call. `meta` is [request id, content type, headers, attempt, seconds to the
deadline or None, whether its caller takes events]; a problem is {"code", "message", "type",
"traceback"}.

A sync instance may be sent further calls ahead of their turn; it answers in order. SIGUSR1 raises
InvocationCancelled in the handler, if its call is the one whose number stands in the file that came
with "mark" (8 bytes, big-endian): what lies in the socket ahead of a frame would hide it.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections import deque
from typing import Any

from . import codec, concurrent, frames, process, report
from .context import Context, InvocationCancelled
from .function import Function


def main(function: Function, fds: list[int], env: dict[str, str] | None = None) -> None:
    """Never returns. `env` is what this instance has beside the template's environment."""
    data, stdout, stderr = fds[:3]
    watch = process.OutputWatch(fds[3] if len(fds) > 3 else None)
    os.environ.update(env or {})
    process.redirect(stdout, stderr)
    link = frames.FrameStream(socket.socket(fileno=data))
    link.sock.setblocking(True)
    try:
        started = time.monotonic()
        _settle(function)
        serial = Serial(function, link, watch)
        link.write(["attached", {"attach_ms": (time.monotonic() - started) * 1000}])
        if function.style == "async":
            concurrent.serve(function, link)
        else:
            serial.serve()
    except frames.Closed:
        pass
    except BaseException as error:  # user code in attach(); the worker is told and decides
        _try_to_say(link, error)
    process.flush_output()
    process.kill_children(keep=set(), patience_s=0.5)
    os._exit(0)


def _try_to_say(link: frames.FrameStream, error: BaseException) -> None:
    refusal = report.describe(error)
    refusal["phase"] = "attach"
    try:
        link.write(["refused", refusal])
    except (frames.Closed, OSError):
        return


def _settle(function: Function) -> None:
    """Undo what a fork shares wrongly: random states and thread counts; then attach."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()
        torch.set_num_threads(max(1, round(function.config["cpus"])))
    function.attach(Context.without_call(function.config, function.state))
    process.trim_heap()


class Serial:
    """One invocation, or one batch of them, at a time; blocks in recv between them."""

    def __init__(
        self, function: Function, link: frames.FrameStream, watch: process.OutputWatch
    ) -> None:
        self._watch = watch
        self._pid = os.getpid()
        self._function = function
        self._link = link
        self._waiting: deque[list[Any]] = deque()
        self._files: dict[int, int] = {}
        self._call = 0
        self._mark = -1
        self._signalled = False
        self._streamed = False
        self._running = False
        self._writing = False
        self._cancelled = False
        if function.style != "async":
            signal.signal(signal.SIGUSR1, self._on_cancel)

    def serve(self) -> None:
        batched = self._function.config["batch"] > 1
        while True:
            frame = self._waiting.popleft() if self._waiting else self._link.read()
            if frame[0] == "mark":
                self._mark = self._link.file()
                continue
            if frame[0] != "call":
                continue
            started = time.perf_counter()
            self._cancelled = False
            calls = frame[1]
            for call in calls:
                if type(call[2]) is int:
                    self._files[call[0]] = self._link.file()
            if batched:
                self._batch(calls, started)
            else:
                self._single(calls[0], started)
            while self._files:
                os.close(self._files.popitem()[1])

    def _on_cancel(self, _signum: int, _frame: Any) -> None:
        # The call that is meant may not have begun; or it was answered while the signal was on its
        # way, and the next one, sent ahead, has begun.
        if not self._running:
            self._signalled = True
        elif self._is_meant():
            self._stop()

    def _is_meant(self) -> bool:
        """Whether the call that runs is the one to be given up."""
        try:
            return int.from_bytes(os.pread(self._mark, 8, 0), "big") == self._call
        except OSError:  # user code may have closed it
            return False

    def _stop(self) -> None:
        self._cancelled = True
        if not self._writing:
            self._running = False
            raise InvocationCancelled

    def _write(self, message: list[Any], body: bytes | None = None) -> None:
        """Send a frame; a large `body` goes beside it."""
        process.end_copy_of(self._pid)
        # A frame cut short would garble all that follow, so a cancellation waits for its end.
        self._writing = True
        try:
            if body is None:
                self._link.write_packed(frames.pack(message))
            else:
                self._write_beside(message, body)
        finally:
            self._writing = False
        if self._cancelled and self._running:
            self._running = False
            raise InvocationCancelled

    def _write_beside(self, message: list[Any], body: bytes) -> None:
        file = self._files.get(message[1])
        if file is not None:
            frames.to_memory(file, body)
            self._link.write([*message, len(body)])
            return
        try:
            fd = frames.in_memory(body)
        except OSError:  # user code may have used all descriptors up
            self._link.write([*message, body])
            return
        try:
            self._link.write_with([*message, len(body)], fd)
        finally:
            os.close(fd)

    def _whole(self, call_id: int, body: Any) -> bytes:
        """The body of a call, which may be its size, and lie in its file."""
        if type(body) is int:
            return frames.from_memory(self._files[call_id], body)
        return body  # type: ignore[no-any-return]

    def _single(self, call: list[Any], started: float) -> None:
        call_id, meta, body = call
        function = self._function
        payload: bytes | None = None
        self._streamed = False
        try:
            self._call = call_id
            self._running = True
            if self._signalled:
                self._signalled = False
                if self._is_meant():
                    self._stop()
            if type(body) is int:
                body = self._whole(call_id, body)
            event = function.decode(meta[1], body)
            result = function.handler(event, Context(function.config, function.state, meta))
            if hasattr(result, "__next__"):
                self._stream(call_id, meta, result)
                answer = ["end", call_id, _ms_since(started)]
            else:
                status, content_type, headers, payload = codec.encode(result)
                took_ms = (time.perf_counter() - started) * 1000
                answer = ["result", call_id, status, content_type, headers, took_ms]
            self._running = False
        except frames.Closed:
            raise
        except BaseException as error:  # user code; SystemExit too must not end the instance
            self._running = False
            answer = ["error", call_id, report.problem(error), _ms_since(started)]
        self._hand_over_output()
        if payload is not None and len(payload) < frames.LARGE:
            answer.append(payload)
            payload = None
        self._write(answer, payload)

    def _hand_over_output(self) -> None:
        """What was printed is read before the reply, so that it is known whose it is.

        A stream is read as slowly as its caller likes: what the next call prints must not be seen
        before the end of it.
        """
        process.flush_output()
        if not (self._streamed or self._watch.waits()):
            return
        self._write(["printed"])
        while (frame := self._link.read()) != ["go"]:
            self._waiting.append(frame)

    def _stream(self, call_id: int, meta: list[Any], items: Any) -> None:
        announced = False
        self._streamed = True
        try:
            for item in items:
                if meta[5]:
                    content_type, chunk = codec.EVENTS, codec.encode_event(item)
                else:
                    content_type, chunk = codec.encode_item(item)
                if not announced:
                    self._write(["start", call_id, 200, content_type])
                    announced = True
                process.flush_output()
                self._write(["chunk", call_id, chunk])
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
        if not announced:
            self._write(["start", call_id, 200, codec.EVENTS if meta[5] else codec.LINES])

    def _batch(self, calls: list[list[Any]], started: float) -> None:
        events, contexts, ids = [], [], []
        answers: list[tuple[list[Any], bytes | None]] = []
        for call_id, meta, body in calls:
            try:
                whole = self._whole(call_id, body)
                events.append(self._function.decode(meta[1], whole))
            except (codec.BadEvent, MemoryError) as error:
                told = ["error", call_id, report.problem(error), _ms_since(started)]
                answers.append((told, None))
                continue
            contexts.append(Context(self._function.config, self._function.state, meta))
            ids.append(call_id)
        answers += self._batch_answers(events, contexts, ids, started)
        self._hand_over_output()
        self._write_all(answers)

    def _write_all(self, answers: list[tuple[list[Any], bytes | None]]) -> None:
        """Send the answers of a batch: all small ones in one go, which wakes the worker once."""
        process.end_copy_of(self._pid)
        small = []
        for answer, payload in answers:
            if payload is not None and len(payload) >= frames.LARGE:
                self._write(answer, payload)
            else:
                small.append(frames.pack(answer if payload is None else [*answer, payload]))
        if small:
            self._link.write_packed(b"".join(small))

    def _batch_answers(
        self, events: list[Any], contexts: list[Context], ids: list[int], started: float
    ) -> list[tuple[list[Any], bytes | None]]:
        if not ids:
            return []
        try:
            results = list(self._function.handler(events, contexts))
            if len(results) != len(ids):
                raise codec.BadResult(
                    f"The handler returned {len(results)} results for a batch of {len(ids)}."
                )
        except BaseException as error:  # user code: one failure is every member's
            told = report.problem(error)
            return [(["error", call_id, told, _ms_since(started)], None) for call_id in ids]
        answers: list[tuple[list[Any], bytes | None]] = []
        for call_id, result in zip(ids, results):
            try:
                if isinstance(result, Exception):
                    raise result
                status, content_type, headers, payload = codec.encode(result)
            except Exception as error:  # user value: only this member's
                refused = ["error", call_id, report.problem(error), _ms_since(started)]
                answers.append((refused, None))
                continue
            head = ["result", call_id, status, content_type, headers, _ms_since(started)]
            answers.append((head, payload))
        return answers


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
