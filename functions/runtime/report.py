"""What is told of an exception in user code: its type, its words and the user's part of the trace."""

from __future__ import annotations

import os
import traceback
from typing import Any

from . import codec
from .context import InvocationCancelled

LONGEST = 32_000
_HERE = os.path.dirname(os.path.abspath(__file__))


def describe(error: BaseException) -> dict[str, Any]:
    """Type, message, traceback without our own frames, and whether memory ran out."""
    try:
        message = str(error)
    except Exception:  # user code: __str__ may raise anything
        message = "(its message could not be made into text)"
    return {
        "type": type(error).__name__,
        "message": message[:2000],
        "traceback": _trace(error)[-LONGEST:],
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
    except Exception:  # user code: an exception may break its own formatting
        return f"{type(error).__name__} (its traceback could not be formatted)"


def _ours(filename: str) -> bool:
    return filename.startswith((_HERE, "<frozen importlib")) or filename.endswith(
        os.path.join("importlib", "__init__.py")
    )
