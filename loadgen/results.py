"""The account of a replay: what was sent, what came back, and the figures made from it. No I/O, no clock.

Every request that was sent has one row, and one outcome: it succeeded, or it failed under exactly one code. A row
without an outcome counts as failed with the code `interrupted`, so that sent == succeeded + the sum of the failed holds
whatever happened. Latencies count from the instant a request was *intended* to be sent, not from when the generator
came to it: a platform (or generator) that stalls delays all that were due meanwhile, and that is seen.

Percentiles are exact and nearest-rank: the smallest observed value that is not below p % of all.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PHASES = ("queue", "sandbox", "libs", "load", "exec")
START_KINDS = ("warm", "fork", "preloaded", "pooled", "cold", "none")
NO_START = "none"
INTERRUPTED = "interrupted"
CLIENT_TIMEOUT = "client_timeout"
CONNECTION_ERROR = "connection_error"
INVALID_RESPONSE = "invalid_response"

Phases = tuple[float, float, float, float, float]
NO_PHASES: Phases = (math.nan,) * 5


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request. `code` is empty for a success; `status` is 0 when there was no response."""

    code: str
    status: int = 0
    start: str = NO_START
    phases_ms: Phases = NO_PHASES
    worker: str = ""
    request_id: str = ""


class Recorder:
    """One row a request, in columns. Rows are numbered in the order of sending."""

    def __init__(self) -> None:
        self.intended_s: array[float] = array("d")
        self.sent_s: array[float] = array("d")
        self.finished_s: array[float] = array("d")
        self.function = array("I")
        self.endpoint = array("I")
        self.status = array("H")
        self.phases_ms: tuple[array[float], ...] = tuple(array("d") for _ in PHASES)
        self.request_id: list[str] = []
        self.code: list[str] = []
        self.start: list[str] = []
        self.worker: list[str] = []
        self.succeeded = 0
        self.failed = 0

    def __len__(self) -> int:
        return len(self.sent_s)

    def __repr__(self) -> str:
        return f"<Recorder sent={len(self)} succeeded={self.succeeded} failed={self.failed}>"

    def begin(self, *, intended_s: float, sent_s: float, function: int, endpoint: int) -> int:
        """Opens the row of a request that is being sent; its number is for `finish`."""
        self.intended_s.append(intended_s)
        self.sent_s.append(sent_s)
        self.finished_s.append(math.nan)
        self.function.append(function)
        self.endpoint.append(endpoint)
        self.status.append(0)
        for column in self.phases_ms:
            column.append(math.nan)
        self.request_id.append("")
        self.code.append(INTERRUPTED)
        self.start.append(NO_START)
        self.worker.append("")
        return len(self.sent_s) - 1

    def finish(self, row: int, reply: Reply, *, finished_s: float) -> None:
        self.finished_s[row] = finished_s
        self.status[row] = reply.status
        for column, value in zip(self.phases_ms, reply.phases_ms, strict=True):
            column[row] = value
        self.request_id[row] = reply.request_id
        self.code[row] = reply.code
        self.start[row] = reply.start
        self.worker[row] = reply.worker
        if reply.code:
            self.failed += 1
        else:
            self.succeeded += 1

    def latency_ms(self, row: int) -> float:
        """From the intended instant to the end; NaN while there is none."""
        return (self.finished_s[row] - self.intended_s[row]) * 1000

    def lag_ms(self, row: int) -> float:
        return (self.sent_s[row] - self.intended_s[row]) * 1000


@dataclass(frozen=True, slots=True)
class Distribution:
    """None where there was nothing to measure."""

    count: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Of all requests or of one endpoint's. Latencies and phases are those of successes."""

    sent: int
    succeeded: int
    failed: dict[str, int]
    start_kinds: dict[str, int]
    latency_ms: Distribution
    latency_failed_ms: Distribution
    phases_ms: dict[str, Distribution]
    send_lag_ms: Distribution


def percentile(ordered: Sequence[float], p: float) -> float:
    """Nearest-rank percentile of an ascending, non-empty sequence."""
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]


def distribution(values: Iterable[float]) -> Distribution:
    """Of the values that are numbers; NaN stands for nothing measured."""
    ordered = sorted(value for value in values if not math.isnan(value))
    if not ordered:
        return Distribution(0, None, None, None, None, None)
    return Distribution(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def figures(record: Recorder, rows: Sequence[int]) -> Figures:
    good = [row for row in rows if not record.code[row]]
    bad = [row for row in rows if record.code[row]]
    return Figures(
        sent=len(rows),
        succeeded=len(good),
        failed=dict(Counter(record.code[row] for row in bad).most_common()),
        start_kinds=_ordered_kinds(Counter(record.start[row] for row in rows)),
        latency_ms=distribution(record.latency_ms(row) for row in good),
        latency_failed_ms=distribution(record.latency_ms(row) for row in bad),
        phases_ms={
            phase: distribution(column[row] for row in good)
            for phase, column in zip(PHASES, record.phases_ms, strict=True)
        },
        send_lag_ms=distribution(record.lag_ms(row) for row in rows),
    )


def figures_by_endpoint(record: Recorder, endpoints: Sequence[str]) -> dict[str, Figures]:
    """Figures of each endpoint that was sent anything, by name."""
    rows: dict[int, list[int]] = {}
    for row, endpoint in enumerate(record.endpoint):
        rows.setdefault(endpoint, []).append(row)
    return {
        endpoints[endpoint]: figures(record, rows[endpoint])
        for endpoint in sorted(rows, key=lambda i: endpoints[i])
    }


def _ordered_kinds(kinds: Counter[str]) -> dict[str, int]:
    known = {kind: kinds[kind] for kind in START_KINDS if kinds[kind]}
    return known | {kind: kinds[kind] for kind in sorted(kinds.keys() - known.keys())}
