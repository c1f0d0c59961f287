"""One row an invocation: `func_name,invoke_time_ms`, times in ms since the trace's start.

`loadgen synth` writes this format. A table `metadata-NAME.csv` beside `NAME.csv` may tell each function's
`warm_dur_ms` and `mem_mb`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from loadgen.errors import LoadgenError
from loadgen.traces.build import InstantsBuilder
from loadgen.traces.model import Trace
from loadgen.traces.rows import column, header, rows

NAME = "invocations"
COLUMNS = ("func_name", "invoke_time_ms")


def recognises(names: Sequence[str]) -> bool:
    return set(COLUMNS) <= set(names)


def read(path: Path, cut_s: float) -> Trace:
    names = header(path)
    function, invoked = (column(path, names, wanted) for wanted in COLUMNS)
    builder = InstantsBuilder(path, NAME, shift=False, cut_s=cut_s)
    for row in rows(path):
        at_s = row.number(invoked, "invoke_time_ms", minimum=0) / 1000
        builder.add(row.text(function, "func_name"), at_s)
    metadata = path.with_name(f"metadata-{path.name}")
    if not metadata.exists():
        return builder.build()
    return builder.build(
        durations_ms=_metadata(metadata, "warm_dur_ms"), memory_mb=_metadata(metadata, "mem_mb")
    )


def write(path: Path, invocations: Iterable[tuple[int, str]]) -> None:
    """Writes pairs of time (ms) and function name, in the order given."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows((name, at_ms) for at_ms, name in invocations)
    except OSError as error:
        raise LoadgenError(f"{path} cannot be written ({error.strerror}).") from None


def _metadata(path: Path, wanted: str) -> dict[str, float]:
    names = header(path)
    function = column(path, names, "func_name")
    if wanted not in names:
        return {}
    index = names.index(wanted)
    return {
        row.text(function, "func_name"): row.number(index, wanted, minimum=0) for row in rows(path)
    }
