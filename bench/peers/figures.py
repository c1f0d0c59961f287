"""From measurements to tables: medians over rounds, ratios, and what could not be measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.measure import median
from bench.peers.cases import MB, Case
from bench.table import Rows, count

BASES = ("mosec", "mosec-1ms", "aiohttp")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of load on one server, or the medians of several. Errors are summed."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    pss_mb: float
    errors: int


def medians(runs: Sequence[Measured]) -> Measured:
    return Measured(
        rate=median([run.rate for run in runs]),
        p50_ms=median([run.p50_ms for run in runs]),
        p99_ms=median([run.p99_ms for run in runs]),
        cpu_us=median([run.cpu_us for run in runs]),
        pss_mb=median([run.pss_mb for run in runs]),
        errors=sum(run.errors for run in runs),
    )


class Results:
    """All that was measured: runs by case, server and connections, in the order they came."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str, int], list[Measured]] = {}
        self.refusals: dict[tuple[str, str], str] = {}

    def add(self, case: str, server: str, connections: int, run: Measured) -> None:
        self.runs.setdefault((case, server, connections), []).append(run)

    def refuse(self, case: str, server: str, reason: str) -> None:
        """The server could not be measured; the first reason stands."""
        self.refusals.setdefault((case, server), reason)

    def refused(self, case: str, server: str) -> bool:
        return (case, server) in self.refusals

    def servers(self, case: str) -> list[str]:
        """Those with figures or with a reason, in the order they came."""
        named = [server for known, server, _ in self.runs if known == case]
        named += [server for known, server in self.refusals if known == case]
        return list(dict.fromkeys(named))

    def median(self, case: str, server: str, connections: int) -> Measured | None:
        runs = self.runs.get((case, server, connections))
        return medians(runs) if runs else None

    def ratio(self, case: str, ours: str, base: str, connections: int) -> float | None:
        """CPU per request of one over the other's: the median over rounds that have both."""
        pairs = zip(
            self.runs.get((case, ours, connections), []),
            self.runs.get((case, base, connections), []),
            strict=False,
        )
        found = [mine.cpu_us / theirs.cpu_us for mine, theirs in pairs if theirs.cpu_us]
        return median(found) if found else None


def header(case: Case) -> list[str]:
    moved = ["MB/s each way"] if case.moved else []
    figures = ["p50 ms", "p99 ms", "CPU µs/request", "idle PSS MB", "errors"]
    return ["server", "connections", "requests/s", *moved, *figures]


def rows(results: Results, case: Case, connections: Iterable[int]) -> Rows:
    """A line for each server and number of connections; one with the reason for want of figures."""
    found = []
    for server in results.servers(case.name):
        measured = {
            number: one
            for number in connections
            if (one := results.median(case.name, server, number)) is not None
        }
        found += [_row(case, server, number, one) for number, one in measured.items()]
        if not measured:
            found.append([server, *["-"] * (len(header(case)) - 1)])
    return found


def _row(case: Case, server: str, connections: int, one: Measured) -> list[str]:
    moved = [count(one.rate * len(case.body) / MB)] if case.moved else []
    figures = [one.p50_ms, one.p99_ms, one.cpu_us, one.pss_mb]
    return [
        *(server, str(connections), count(one.rate), *moved),
        *map(count, figures),
        str(one.errors),
    ]


def ratio_lines(
    results: Results, case: Case, ours: Iterable[str], connections: Sequence[int]
) -> list[str]:
    """CPU per request of faasd against the bases, one line for each pair that was measured."""
    found = []
    for mine in ours:
        for base in BASES:
            parts = [
                f"{ratio:.2f} at {number}"
                for number in connections
                if (ratio := results.ratio(case.name, mine, base, number)) is not None
            ]
            if parts:
                found.append(f"CPU per request, {mine} / {base}: {', '.join(parts)}")
    return found


def reason_lines(results: Results, case: Case) -> list[str]:
    """One line each."""
    return [
        f"{server}: not measured: {' '.join(reason.split())}"
        for (known, server), reason in results.refusals.items()
        if known == case.name
    ]
