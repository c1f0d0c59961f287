"""What can go wrong before or around a replay: each is one sentence for the user and an exit code.

LoadgenError      exit 1  the operation failed
├── UsageError    exit 2  what was asked for cannot be done
└── TraceError    exit 1  a trace file is not what its format says

Failed invocations are data, not errors: they are counted in the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class LoadgenError(Exception):
    """Base of all; the text says what happened and what to do."""

    exit_code: ClassVar[int] = 1


class UsageError(LoadgenError):
    exit_code = 2


class TraceError(LoadgenError):
    """Names the file, the line where there is one, and what was expected there."""

    def __init__(self, path: Path, problem: str, *, line: int | None = None) -> None:
        where = f"{path}, line {line}" if line is not None else str(path)
        super().__init__(f"{where}: {problem}")
        self.path = path
        self.line = line
