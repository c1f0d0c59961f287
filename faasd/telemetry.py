"""Structured logs and Prometheus metrics: one place that names them all."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from faasd.invocation import StartKind, Timings

_MS = 0.001
_BUCKETS = tuple(
    _MS * b for b in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000)
)


def configure_logging(level: str = "info", *, json: bool | None = None) -> None:
    """Log to standard error: readable on a terminal, JSON lines otherwise."""
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(pad_event_to=28)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _keep(_logger: Any, _method: str, event: Any) -> Any:
    return event


def get_logger(component: str) -> Any:
    return structlog.get_logger(component=component)


class Metrics:
    """The controller's metrics; one registry per controller, so that tests can hold several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._functions: dict[str, FunctionMetrics] = {}
        self.requests = Counter(
            "faasd_requests_total",
            "Invocations answered, by outcome (ok or an error's code)",
            ["function", "mode", "outcome"],
            registry=self.registry,
        )
        self.starts = Counter(
            "faasd_starts_total",
            "Invocations by what they found",
            ["function", "kind"],
            registry=self.registry,
        )
        self.phases = Histogram(
            "faasd_phase_seconds",
            "Time of an invocation in each phase",
            ["function", "phase"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.latency = Histogram(
            "faasd_request_seconds",
            "Time from the arrival of a request to its reply",
            ["function"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.queued = Gauge(
            "faasd_queue_depth",
            "Invocations waiting",
            ["worker", "function"],
            registry=self.registry,
        )
        self.instances = Gauge(
            "faasd_instances",
            "Instances by state",
            ["worker", "function", "state"],
            registry=self.registry,
        )
        self.memory = Gauge(
            "faasd_memory_bytes",
            "Proportional memory (PSS) of a function's processes",
            ["worker", "function"],
            registry=self.registry,
        )
        self.workers = Gauge(
            "faasd_workers", "Workers by status", ["status"], registry=self.registry
        )
        self.backlog = Gauge(
            "faasd_async_backlog",
            "Asynchronous invocations by status",
            ["status"],
            registry=self.registry,
        )

    def of(self, function: str) -> FunctionMetrics:
        """What is counted of each invocation of a function."""
        found = self._functions.get(function)
        if found is None:
            found = self._functions[function] = FunctionMetrics(self, function)
        return found

    def render(self) -> bytes:
        return generate_latest(self.registry)


class FunctionMetrics:
    """A function's part of the metrics: labels are looked up once, which costs more than counting."""

    def __init__(self, metrics: Metrics, function: str) -> None:
        self._function = function
        self._requests = metrics.requests
        self._starts = metrics.starts
        self._phases = metrics.phases
        self._latency = metrics.latency.labels(function)
        self._by_outcome: dict[tuple[str, str], Counter] = {}
        self._by_kind: dict[StartKind, Counter] = {}
        self._by_phase: dict[str, Histogram] = {}

    def answered(self, mode: str, outcome: str, took_s: float) -> None:
        counter = self._by_outcome.get((mode, outcome))
        if counter is None:
            counter = self._requests.labels(self._function, mode, outcome)
            self._by_outcome[mode, outcome] = counter
        counter.inc()
        self._latency.observe(took_s)

    def started(self, kind: StartKind, timings: Timings) -> None:
        counter = self._by_kind.get(kind)
        if counter is None:
            counter = self._by_kind[kind] = self._starts.labels(self._function, str(kind))
        counter.inc()
        self._observe("queue", timings.queue)
        self._observe("exec", timings.exec)
        if kind is not StartKind.WARM:
            for phase in ("sandbox", "libs", "load"):
                took_ms = getattr(timings, phase)
                if took_ms:
                    self._observe(phase, took_ms)

    def _observe(self, phase: str, took_ms: float) -> None:
        histogram = self._by_phase.get(phase)
        if histogram is None:
            histogram = self._by_phase[phase] = self._phases.labels(self._function, phase)
        histogram.observe(took_ms / 1000)
