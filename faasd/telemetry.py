"""Structured logs and Prometheus metrics: one place that names them all."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
        self._children: dict[tuple[Any, tuple[str, ...]], Any] = {}
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

    def child(self, metric: Any, *labels: str) -> Any:
        """The metric with these labels; looked up once, since that costs more than counting.

        For metrics that are never cleared.
        """
        key = (metric, labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found

    def render(self) -> bytes:
        return generate_latest(self.registry)
