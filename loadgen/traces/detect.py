"""Which format a trace has, told by the first line of the file, and the way in for all readers.

To add a format: one reader module, one line in `FORMATS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import TraceError, UsageError
from loadgen.traces import azure2019, azure2021, counts, invocations, requests
from loadgen.traces.model import Trace
from loadgen.traces.rows import header


@dataclass(frozen=True, slots=True)
class Format:
    recognises: Callable[[Path], bool]
    read: Callable[[Path, float], Trace]
    title: str


def _by_header(recognises: Callable[[list[str]], bool]) -> Callable[[Path], bool]:
    def look(path: Path) -> bool:
        try:
            return recognises(header(path))
        except TraceError:
            return False

    return look


FORMATS: dict[str, Format] = {
    counts.NAME: Format(counts.recognises, counts.read, "requests per second"),
    azure2019.NAME: Format(
        _by_header(azure2019.recognises), azure2019.read, "Azure Functions 2019, counts per minute"
    ),
    azure2021.NAME: Format(
        _by_header(azure2021.recognises), azure2021.read, "Azure Functions 2021, invocations"
    ),
    invocations.NAME: Format(
        _by_header(invocations.recognises), invocations.read, "invocations with times in ms"
    ),
    requests.LLM: Format(
        _by_header(requests.recognises_llm), requests.read_llm, "Azure LLM inference 2023"
    ),
    requests.GENAI: Format(
        _by_header(requests.recognises_genai), requests.read_genai, "Alibaba GenAI 2026"
    ),
}


def read_trace(path: Path, *, format_name: str | None = None, cut_s: float = math.inf) -> Trace:
    """Reads the part of a trace before `cut_s`; a folder stands for the one trace inside it."""
    if format_name is not None and format_name not in FORMATS:
        raise UsageError(f"There is no format {format_name!r}; known are {', '.join(FORMATS)}.")
    if not path.exists():
        raise UsageError(f"There is no file or folder {path}.")
    file = _only_trace(path, format_name) if path.is_dir() else path
    return FORMATS[format_name or _detected(file)].read(file, cut_s)


def detect(path: Path) -> str | None:
    """The name of the file's format, or None when no reader knows it."""
    return next((name for name, known in FORMATS.items() if known.recognises(path)), None)


def _detected(path: Path) -> str:
    found = detect(path)
    if found is None:
        raise TraceError(
            path,
            "is in no known format; expected a header such as func_name,invoke_time_ms or "
            f"HashFunction,Trigger,1,2,... (formats: {', '.join(FORMATS)}; see --format).",
        )
    return found


def _only_trace(folder: Path, format_name: str | None) -> Path:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    traces = [path for path in files if (name := detect(path)) and format_name in {None, name}]
    if len(traces) != 1:
        found = ", ".join(path.name for path in traces) or "none"
        raise UsageError(f"{folder} must hold one trace; found {found}. Name the file itself.")
    return traces[0]
