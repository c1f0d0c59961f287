"""Reading delimited text so that every complaint names the file, the line and what was expected."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import TraceError


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, able to say where it stands."""

    path: Path
    line: int
    fields: Sequence[str]

    def text(self, index: int, name: str) -> str:
        value = self.fields[index].strip()
        if not value:
            raise self.error(f"{name} is empty; expected a value.")
        return value

    def number(self, index: int, name: str, *, minimum: float = -math.inf) -> float:
        text = self.fields[index]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < minimum:
            bound = "" if minimum == -math.inf else f" of at least {minimum:g}"
            raise self.error(f"{name} is {text!r}; expected a number{bound}.")
        return value

    def optional_number(self, index: int | None, name: str) -> float | None:
        if index is None or not self.fields[index].strip():
            return None
        return self.number(index, name, minimum=0)

    def count(self, index: int, name: str) -> int:
        text = self.fields[index]
        if not (text.isascii() and text.isdigit()):
            raise self.error(f"{name} is {text!r}; expected a whole number of at least 0.")
        return int(text)

    def error(self, problem: str) -> TraceError:
        return TraceError(self.path, problem, line=self.line)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what the operating system and the decoders say about a file into a TraceError."""
    try:
        yield
    except UnicodeDecodeError:
        raise TraceError(path, "is not UTF-8 text; expected a trace as text.") from None
    except csv.Error as error:
        raise TraceError(path, f"is not a readable table ({error}); expected CSV.") from None
    except OSError as error:
        raise TraceError(path, f"cannot be read ({error.strerror or error}).") from None


def header(path: Path) -> list[str]:
    """The names of the columns: the fields of the first line."""
    with readable(path), path.open(encoding="utf-8-sig", newline="") as lines:
        return [name.strip() for name in next(csv.reader(lines), [])]


def rows(path: Path) -> Iterator[Row]:
    """The lines after the header, blank ones left out, each as wide as the header."""
    with readable(path), path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        width = len(next(reader, []))
        for fields in reader:
            if not fields:
                continue
            row = Row(path, reader.line_num, fields)
            if len(fields) != width:
                raise row.error(
                    f"has {len(fields)} fields; expected {width}, as many as the header names."
                )
            yield row


def column(path: Path, names: Sequence[str], wanted: str) -> int:
    """The index of a column that must be there."""
    if wanted not in names:
        raise TraceError(path, f"has no column {wanted}; expected it in the header.", line=1)
    return names.index(wanted)
