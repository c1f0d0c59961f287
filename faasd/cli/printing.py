"""What the commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any


def say(text: str) -> None:
    """Tell the user something that is no data."""
    print(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """One JSON document; indented for people, on one line for programs."""
    print(json_text(value, pretty=sys.stdout.isatty()), flush=True)


def json_text(value: Any, *, pretty: bool) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2 if pretty else None)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns that are never cut, so that they can be piped."""
    lines = [list(headings), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def moment(stamp: datetime | None) -> str:
    """A time to the second, in UTC as everywhere in faasd."""
    return stamp.strftime("%Y-%m-%d %H:%M:%S") if stamp else "-"


def _cell(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    # What others named must not move the cursor or break the columns.
    return "".join(character if character.isprintable() else " " for character in text) or "-"
