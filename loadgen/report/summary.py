"""The content of report.json: the figures, and everything needed to run the same replay again."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from faasd import __version__
from loadgen.results import Figures, figures, figures_by_endpoint
from loadgen.session import Outcome, Plan

PERCENTILES = "nearest-rank over successes; latency counts from the intended send time"


@dataclass(frozen=True, slots=True)
class Summary:
    total: Figures
    endpoints: dict[str, Figures]
    settings: dict[str, Any]
    duration_s: float
    offered_rps: float
    succeeded_rps: float


def summarise(plan: Plan, outcome: Outcome) -> Summary:
    record = outcome.record
    total = figures(record, range(len(record)))
    # A trace may end in silence, which belongs to the time over which its load was offered.
    planned_s = 0.0 if outcome.stopped_by else plan.trace.span_s / plan.speed
    offered_s = max(outcome.sending_s, planned_s)
    return Summary(
        total=total,
        endpoints=figures_by_endpoint(record, outcome.endpoints),
        settings=_settings(plan, outcome),
        duration_s=outcome.duration_s,
        offered_rps=total.sent / offered_s if offered_s else 0.0,
        succeeded_rps=total.succeeded / outcome.duration_s if outcome.duration_s else 0.0,
    )


def as_json(summary: Summary) -> dict[str, Any]:
    return {
        **dataclasses.asdict(summary.total),
        "duration_s": summary.duration_s,
        "offered_rps": summary.offered_rps,
        "succeeded_rps": summary.succeeded_rps,
        "functions": {name: dataclasses.asdict(part) for name, part in summary.endpoints.items()},
        "percentiles": PERCENTILES,
        **summary.settings,
    }


def _settings(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    return {
        "trace": {
            "file": str(plan.trace.path),
            "format": plan.trace.format,
            "functions": len(plan.trace.functions),
            "span_s": plan.trace.span_s,
        },
        "url": str(plan.url),
        "speed": plan.speed,
        "law": plan.law.value,
        "seed": plan.seed,
        "timeout_s": plan.timeout_s,
        "max_outstanding": plan.max_outstanding,
        "held_back": outcome.held_back,
        "stopped_by": outcome.stopped_by.name if outcome.stopped_by else None,
        "mapping": {assignment.function: assignment.endpoint for assignment in outcome.mapping},
        "versions": {
            "faasd": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("aiohttp", "uvloop")},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
