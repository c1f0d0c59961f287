"""What is told of an exception in user code: its type, its words and the user's part of the trace."""

from __future__ import annotations

import os
import traceback
from typing import Any

from . import codec
from .context import InvocationCancelled

# With the message, in the worst encoding, it must fit into one packet (frames.MAX_PACKET).
LONGEST = 24_000
_HERE = os.path.dirname(os.path.abspath(__file__))


class ForeignError(Exception):
    """An error of code that runs in another process, in the words of that."""

    faasd_phase = "load"

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.trace = trace


def describe(error: BaseException) -> dict[str, Any]:
    """Type, message, traceback without our own frames, and whether memory ran out."""
    try:
        message = str(error)
    except BaseException:  # user code: __str__ may raise anything, SystemExit too
        message = "(its message could not be made into text)"
    if isinstance(error, ForeignError):
        kind, trace = error.kind, error.trace
    else:
        kind, trace = type(error).__name__, _trace(error)
    return {
        "type": _sendable(kind[:200]),
        "message": _sendable(message[:2000]),
        "traceback": _sendable(_shortened(trace)),
        "memory": _is_memory(error, message),
    }


def problem(error: BaseException) -> dict[str, Any]:
    """What the caller is told of an exception that ended an invocation."""
    told = describe(error)
    if isinstance(error, codec.BadEvent):
        return {"code": "bad_request", "message": str(error)}
    if isinstance(error, codec.BadResult):
        return {"code": "unserialisable_result", "message": str(error)}
    if isinstance(error, InvocationCancelled):
        return {"code": "cancelled", "message": "The caller went away."}
    told["code"] = "out_of_memory" if told.pop("memory") else "handler_error"
    return told


def _shortened(trace: str) -> str:
    """Where it began and where it ended: a recursion or a long message lies between."""
    if len(trace) <= LONGEST:
        return trace
    return f"{trace[: LONGEST // 2]}\n[...]\n{trace[-LONGEST // 2 :]}"


def _sendable(text: str) -> str:
    """Half characters, which no message can carry, become question marks."""
    return text.encode("utf-8", "replace").decode()


def _is_memory(error: BaseException, message: str) -> bool:
    return (
        isinstance(error, MemoryError)
        or "can't allocate memory" in message
        or "Cannot allocate memory" in message
    )


def _trace(error: BaseException) -> str:
    try:
        whole = traceback.TracebackException.from_exception(error)
        part: traceback.TracebackException | None = whole
        while part is not None:
            part.stack = traceback.StackSummary.from_list(
                [frame for frame in part.stack if not _ours(frame.filename)]
            )
            part = part.__cause__ or part.__context__
        return "".join(whole.format())
    except BaseException:  # user code: an exception may break its own formatting
        return f"{type(error).__name__} (its traceback could not be formatted)"


def _ours(filename: str) -> bool:
    return filename.startswith((_HERE, "<frozen importlib")) or filename.endswith(
        os.path.join("importlib", "__init__.py")
    )
