"""Writes the report's folder: report.json, invocations.csv and report.html."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

from loadgen.errors import LoadgenError
from loadgen.report.html import render
from loadgen.report.summary import Summary, as_json
from loadgen.results import PHASES
from loadgen.session import Outcome

COLUMNS = (
    "intended_s",
    "sent_s",
    "function",
    "endpoint",
    "status",
    "code",
    "start",
    "latency_ms",
    *(f"{phase}_ms" for phase in PHASES),
    "worker",
    "request_id",
)


def prepare(folder: Path, *, rows: bool = True) -> None:
    """Makes the folder, so that nothing is run for a report that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ("invocations.csv" if rows else "report.json")).touch()
    except OSError as error:
        raise LoadgenError(
            f"The report folder {folder} cannot be written ({error.strerror}); choose another "
            "with --report."
        ) from None


def write(folder: Path, summary: Summary, outcome: Outcome) -> None:
    try:
        (folder / "report.json").write_text(
            json.dumps(as_json(summary), indent=2) + "\n", encoding="utf-8"
        )
        with (folder / "invocations.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(_rows(outcome))
        (folder / "report.html").write_text(render(summary, outcome), encoding="utf-8")
    except OSError as error:
        raise LoadgenError(f"The report in {folder} is incomplete ({error.strerror}).") from None


def _rows(outcome: Outcome) -> Iterator[list[object]]:
    record = outcome.record
    for row in range(len(record)):
        yield [
            f"{record.intended_s[row]:.6f}",
            f"{record.sent_s[row]:.6f}",
            outcome.functions[record.function[row]],
            outcome.endpoints[record.endpoint[row]],
            record.status[row] or "",
            record.code[row],
            record.start[row],
            _ms(record.latency_ms(row)),
            *(_ms(column[row]) for column in record.phases_ms),
            record.worker[row],
            record.request_id[row],
        ]


def _ms(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
