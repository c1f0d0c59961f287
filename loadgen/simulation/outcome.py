"""What a simulation of one policy left: every call in columns, and the figures made from them."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loadgen.results import Distribution, Figures, Recorder, distribution, figures
from loadgen.results import figures_by_endpoint as by_endpoint
from loadgen.simulation.engine import REASONS, Engine, Record
from loadgen.simulation.node import Node
from loadgen.simulation.places import KINDS
from loadgen.simulation.workload import Workload

LOADED = ("warm", "fork", "preloaded")
"""Start kinds of calls that found libraries and model loaded."""
STATUS = {"": 200, "queue_full": 429, "deadline_exceeded": 504, "unavailable": 503}


@dataclass(frozen=True)
class Outcome:
    """Of one policy. Times are seconds in the trace's time."""

    policy: str
    nodes: tuple[Node, ...]
    workload: Workload
    record: Record
    memory_mb_s: float
    peak_mb: float
    memory_bins_mb: list[float]
    bin_s: float
    loads: int
    loader_cpu_s: float
    ended_at: float
    took_s: float
    """By the clock of this machine, the drawing of the calls not counted."""

    def __repr__(self) -> str:
        figures = self.figures
        mean_ms = figures.latency_ms.mean
        return (
            f"<Outcome of {self.policy}: {figures.sent:,} calls, mean "
            f"{math.nan if mean_ms is None else mean_ms:.1f} ms, {self.preload_rate:.1%} preloaded>"
        )

    @cached_property
    def recorder(self) -> Recorder:
        """The calls as the rows of a replay."""
        record, workload = self.record, self.workload
        rows = Recorder()
        rows.intended_s = rows.sent_s = workload.times_s
        rows.finished_s = record.finished_s
        rows.function = rows.endpoint = workload.functions
        rows.code = [REASONS[reason] for reason in record.reasons]
        rows.status = array("H", (STATUS[code] for code in rows.code))
        rows.start = [KINDS[kind] for kind in record.kinds]
        rows.worker = [f"node-{node}" for node in record.nodes]
        rows.request_id = [""] * len(workload)
        rows.phases_ms = tuple(self._phases_ms())
        rows.failed = sum(map(bool, record.reasons))
        rows.succeeded = len(workload) - rows.failed
        return rows

    def _phases_ms(self) -> list[array[float]]:
        """Queue, sandbox, libs, load, exec: what no start explains of a wait is the queue."""
        times, record = self.workload.times_s, self.record
        sandbox, libs, load = record.waits_s
        models = self.workload.models
        hop_s = [one.hop_s for one in models]
        queue, runs = array("d"), array("d")
        columns = zip(
            times,
            record.dispatched_s,
            record.finished_s,
            self.workload.functions,
            record.reasons,
            sandbox,
            libs,
            load,
            strict=True,
        )
        for arrived, began, ended, function, reason, *waits in columns:
            hop = 0.0 if reason else hop_s[function]
            queue.append(max(0.0, began - arrived - sum(waits) + hop) * 1000)
            runs.append((ended - hop - began) * 1000)
        starts = [array("d", (1000 * one for one in waits)) for waits in record.waits_s]
        return [queue, *starts, runs]

    @cached_property
    def figures(self) -> Figures:
        """Of all calls, with the columns of a replay's report."""
        return figures(self.recorder, range(len(self.workload)))

    @cached_property
    def functions(self) -> dict[str, Figures]:
        return by_endpoint(self.recorder, self.workload.names)

    @cached_property
    def loading_ms(self) -> Distribution:
        """What calls waited for libraries and model."""
        _, libs, load = self.record.waits_s
        good = zip(libs, load, self.record.reasons, strict=True)
        return distribution(1000 * (one + other) for one, other, reason in good if not reason)

    @property
    def preload_rate(self) -> float:
        """The share of calls, of those that were served, that found everything loaded."""
        return self.rate_of(range(len(self.workload.names)))

    def rate_of(self, functions: range | set[int]) -> float:
        """The same of some functions, by their places in the trace."""
        calls = loaded = 0
        chosen = frozenset(functions)
        columns = zip(self.workload.functions, self.record.kinds, self.record.reasons, strict=True)
        for function, kind, reason in columns:
            if function in chosen and not reason:
                calls += 1
                loaded += KINDS[kind] in LOADED
        return loaded / calls if calls else 0.0

    @property
    def calls_per_s(self) -> float:
        """How fast it was simulated."""
        return len(self.workload) / self.took_s if self.took_s else math.inf

    def row(self) -> dict[str, Any]:
        """The figures that policies are compared by."""
        total, latency = self.figures, self.figures.latency_ms
        return {
            "policy": self.policy,
            "calls": total.sent,
            "dropped": total.failed,
            "mean_ms": latency.mean,
            "p50_ms": latency.p50,
            "p95_ms": latency.p95,
            "p99_ms": latency.p99,
            "loading_mean_ms": self.loading_ms.mean,
            "loading_p99_ms": self.loading_ms.p99,
            "start_kinds": total.start_kinds,
            "preload_rate": self.preload_rate,
            "memory_mb_s": self.memory_mb_s,
            "memory_peak_mb": self.peak_mb,
            "loads": self.loads,
            "loader_cpu_s": self.loader_cpu_s,
            "calls_simulated_per_s": self.calls_per_s,
        }


def outcome_of(engine: Engine, policy: str, nodes: tuple[Node, ...], took_s: float) -> Outcome:
    memory = engine.world.memory
    return Outcome(
        policy=policy,
        nodes=nodes,
        workload=engine.workload,
        record=engine.record,
        memory_mb_s=memory.mb_s,
        peak_mb=memory.peak_mb,
        memory_bins_mb=[one / memory.bin_s for one in memory.bins_mb_s],
        bin_s=memory.bin_s,
        loads=engine.loading.begun,
        loader_cpu_s=engine.jobs.loader_cpu_s,
        ended_at=engine.ended_at,
        took_s=took_s,
    )
