"""Azure Functions 2021: one row an invocation, `app,func,end_timestamp,duration`, in seconds.

Rows are ordered by their end, so the starts are not. A function's name is unique within its application
only; the trace starts at the first start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadgen.traces.build import InstantsBuilder
from loadgen.traces.model import Trace
from loadgen.traces.rows import column, header, rows

NAME = "azure2021"
COLUMNS = ("app", "func", "end_timestamp", "duration")


def recognises(names: Sequence[str]) -> bool:
    return set(COLUMNS) <= set(names)


def read(path: Path, cut_s: float) -> Trace:
    names = header(path)
    app, func, end, duration = (column(path, names, wanted) for wanted in COLUMNS)
    builder = InstantsBuilder(path, NAME, shift=True, cut_s=cut_s)
    for row in rows(path):
        lasted_s = row.number(duration, "duration", minimum=0)
        builder.add(
            f"{row.text(app, 'app')}/{row.text(func, 'func')}",
            row.number(end, "end_timestamp") - lasted_s,
            duration_ms=lasted_s * 1000,
        )
    return builder.build()
