"""The comparison as tables on a terminal, as a page in markdown, and for the RESULT line."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import ROOT
from bench.peers import figures
from bench.peers.cases import CASES
from bench.peers.contenders import FAASD_NOTE, PEERS, PLATFORMS
from bench.peers.figures import Results
from bench.table import aligned, markdown


@dataclass(frozen=True, slots=True)
class Asked:
    """What the tables are to hold, in which order."""

    cases: Sequence[str]
    peers: Sequence[str]
    connections: Sequence[int]


def tables(results: Results, asked: Asked, *, marked: bool) -> str:
    """One table for each case, with ratios, reasons and notes; in markdown if `marked`."""
    parts = [_part(results, asked, name, marked=marked) for name in asked.cases]
    return "".join(parts) if marked else "\n".join(parts)


def _part(results: Results, asked: Asked, name: str, *, marked: bool) -> str:
    case = CASES[name]
    ours = [one for one in asked.peers if one in PLATFORMS]
    header, rows = figures.header(case), figures.rows(results, case, asked.connections)
    lines = [
        *figures.ratio_lines(results, case, ours, asked.connections),
        *figures.reason_lines(results, case),
        *(_notes(asked.peers) if name == "mlp-batched" else ()),
    ]
    if not marked:
        return "\n".join(
            ["", f"{name}: {case.title}", aligned(header, rows), *(f"  {line}" for line in lines)]
        )
    listed = "\n".join(f"- {line}" for line in lines)
    return f"\n## {name}\n\nThe request: {case.title}.\n\n{markdown(header, rows)}\n\n{listed}\n"


def _notes(peers: Sequence[str]) -> list[str]:
    """How each batches."""
    ours = [f"faasd: {FAASD_NOTE}"] if any(name in PLATFORMS for name in peers) else []
    theirs = [f"{name}: {PEERS[name].note}" for name in peers if name in PEERS]
    return [*ours, *(line for line in theirs if not line.endswith(": "))]


def page(
    results: Results,
    asked: Asked,
    versions: Mapping[str, Mapping[str, str]],
    *,
    command: str,
    how: str,
) -> str:
    """The whole in markdown, with what is needed to read it."""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    load = f"load average {os.getloadavg()[1]:.1f} over the last five minutes"
    packages = [
        f"- {name}: {', '.join(f'{one} {version}' for one, version in found.items())}"
        for name, found in versions.items()
    ]
    lines = [
        "# faasd beside other model servers",
        "",
        f"Measured on {when} by `{command}` at commit {_commit()}.",
        "",
        f"- machine: {cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}; {load}",
        f"- Python {platform.python_version()}; wrk, with one thread, on the same cores",
        f"- {how} after a warm-up; medians, errors summed",
        *packages,
        "",
    ]
    return "\n".join(lines) + tables(results, asked, marked=True)


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def summary(results: Results) -> dict[str, Any]:
    """Figures by case, server and connections; faasd's ratios; the reasons of those without."""
    found: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for (case, server, connections), runs in results.runs.items():
        medians = asdict(figures.medians(runs))
        of_server = found.setdefault(case, {}).setdefault(server, {})
        of_server[str(connections)] = {key: round(value, 3) for key, value in medians.items()}
        for base in figures.BASES if server in PLATFORMS else ():
            if (ratio := results.ratio(case, server, base, connections)) is not None:
                ratios[f"{case} {server}/{base} {connections}"] = round(ratio, 3)
    reasons = {f"{case} {server}": why for (case, server), why in results.refusals.items()}
    return {"cases": found, "cpu_ratios": ratios, "not_measured": reasons}
