"""Azure Functions 2019: invocations per function and minute of the day, one row a function.

`HashOwner,HashApp,HashFunction,Trigger,1..1440`; samples of it may lack the first two columns and most of
the minutes. Two more tables may lie beside it: durations (`percentile_Average_50` per function, ms) and
memory (`AverageAllocatedMb_pct50` per application or function, MB). They are recognised by their headers.
Days of the full data set carry a tag such as `.d01.` in their names; only tables of the same day are joined.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import TraceError
from loadgen.traces.model import Cells, Counts, Trace, TraceFunction
from loadgen.traces.rows import Row, column, header, rows

NAME = "azure2019"
MINUTE_S = 60.0

Key = tuple[str, str, str]
"""Owner, application, function; what a file does not tell is empty."""


def recognises(names: Sequence[str]) -> bool:
    return "HashFunction" in names and "1" in names


def read(path: Path, cut_s: float) -> Trace:
    names = header(path)
    identity = _Identity.of(path, names)
    minutes = _minute_columns(path, names, cut_s)
    cells: dict[Key, Cells] = {}
    for row in rows(path):
        key = identity.key(row)
        found = _cells(row, minutes)
        cells[key] = _add(cells[key], found) if key in cells else found
    if not any(found.bins for found in cells.values()):
        raise TraceError(path, "holds no invocations; expected counts above 0 in some minutes.")
    invoked = {key: found for key, found in cells.items() if found.bins}
    durations, memory = _siblings(path)
    labels = _labels(invoked)
    return Trace(
        path=path,
        format=NAME,
        functions=tuple(
            TraceFunction(
                name=labels[key],
                invocations=sum(found.counts),
                duration_ms=durations.get(key),
                memory_mb=memory.get(key, memory.get((key[0], key[1], ""))),
            )
            for key, found in invoked.items()
        ),
        events=Counts(MINUTE_S, tuple(invoked.values())),
        span_s=min(len(minutes) * MINUTE_S, cut_s),
        cut_s=cut_s,
    )


@dataclass(frozen=True, slots=True)
class _Identity:
    owner: int | None
    app: int | None
    function: int | None

    @classmethod
    def of(cls, path: Path, names: Sequence[str], *, per_app: bool = False) -> _Identity:
        def place(name: str) -> int | None:
            return names.index(name) if name in names else None

        if not per_app:
            column(path, names, "HashFunction")
        return cls(place("HashOwner"), place("HashApp"), place("HashFunction"))

    def key(self, row: Row) -> Key:
        def part(index: int | None, name: str) -> str:
            return "" if index is None else row.text(index, name)

        return (
            part(self.owner, "HashOwner"),
            part(self.app, "HashApp"),
            part(self.function, "HashFunction"),
        )


def _minute_columns(path: Path, names: Sequence[str], cut_s: float) -> list[int]:
    first = column(path, names, "1")
    minutes = names[first:]
    if minutes != [str(minute) for minute in range(1, len(minutes) + 1)]:
        raise TraceError(path, "the header's minutes are not 1, 2, 3, ... to its end.", line=1)
    return [first + i for i in range(len(minutes)) if i * MINUTE_S < cut_s]


def _cells(row: Row, minutes: Iterable[int]) -> Cells:
    bins, counts = array("I"), array("I")
    for minute, index in enumerate(minutes):
        if row.fields[index] == "0":
            continue
        count = row.count(index, f"minute {minute + 1}")
        if count:
            bins.append(minute)
            counts.append(count)
    return Cells(bins, counts)


def _add(one: Cells, other: Cells) -> Cells:
    total = Counter(dict(zip(one.bins, one.counts, strict=True)))
    total.update(dict(zip(other.bins, other.counts, strict=True)))
    ordered = sorted(total.items())
    return Cells(array("I", (b for b, _ in ordered)), array("I", (c for _, c in ordered)))


def _labels(keys: Iterable[Key]) -> dict[Key, str]:
    """The function's own hash where it is unique in the trace, with its application's otherwise."""
    keys = list(keys)
    shared = Counter(function for _, _, function in keys)
    return {key: key[2] if shared[key[2]] == 1 else "/".join(filter(None, key)) for key in keys}


def _siblings(path: Path) -> tuple[dict[Key, float], dict[Key, float]]:
    durations: dict[Key, float] = {}
    memory: dict[Key, float] = {}
    for other in sorted(path.parent.glob("*.csv")):
        if other == path or _day(other) != _day(path):
            continue
        names = header(other)
        if "percentile_Average_50" in names and "HashFunction" in names:
            durations |= _table(other, names, "percentile_Average_50")
        elif "AverageAllocatedMb_pct50" in names:
            memory |= _table(other, names, "AverageAllocatedMb_pct50")
    return durations, memory


def _day(path: Path) -> str:
    found = re.search(r"\.(d\d+)\.", path.name)
    return found.group(1) if found else ""


def _table(path: Path, names: Sequence[str], value: str) -> dict[Key, float]:
    identity = _Identity.of(path, names, per_app=True)
    index = column(path, names, value)
    return {identity.key(row): row.number(index, value, minimum=0) for row in rows(path)}
