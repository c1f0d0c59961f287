"""Structured logs and Prometheus metrics: one place that names them all."""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

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
        self.registry.register(_OfFunctions(self._functions))
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
        self.ejected = Gauge(
            "faasd_ejected_instances",
            "Instances ended because they failed call after call",
            ["worker", "function"],
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
            found = self._functions[function] = FunctionMetrics()
        return found

    def render(self) -> bytes:
        return generate_latest(self.registry)


class Distribution:
    """How many values fell into each bucket, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(_BUCKETS, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds and the numbers of values up to each, as Prometheus has them."""
        bounds = [*map(str, _BUCKETS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class FunctionMetrics:
    """What is counted of a function. Plain numbers: they change with every invocation, and are
    asked for now and then. Owned by the event loop.
    """

    __slots__ = ("exec", "latency", "outcomes", "phases", "queue", "starts", "warm")

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], int] = {}
        self.starts: dict[str, int] = {}
        self.warm = 0
        self.latency = Distribution()
        self.queue = Distribution()
        self.exec = Distribution()
        self.phases = {"queue": self.queue, "exec": self.exec}

    def answered(self, mode: str, outcome: str, took_s: float) -> None:
        key = (mode, outcome)
        self.outcomes[key] = self.outcomes.get(key, 0) + 1
        self.latency.add(took_s)

    def served(self, mode: str, took_s: float, kind: StartKind, timings: Timings) -> None:
        """Answered with a reply of the function's."""
        key = (mode, "ok")
        self.outcomes[key] = self.outcomes.get(key, 0) + 1
        for distribution, value_s in (
            (self.latency, took_s),
            (self.queue, timings.queue / 1000),
            (self.exec, timings.exec / 1000),
        ):
            # As `add`: a call each would cost as much as the rest.
            distribution.counts[bisect_left(_BUCKETS, value_s)] += 1
            distribution.total += value_s
        if kind is StartKind.WARM:
            self.warm += 1
            return
        self.starts[kind] = self.starts.get(kind, 0) + 1
        for phase in ("sandbox", "libs", "load"):
            took_ms = getattr(timings, phase)
            if took_ms:
                self._observe(phase, took_ms)

    def _observe(self, phase: str, took_ms: float) -> None:
        distribution = self.phases.get(phase)
        if distribution is None:
            distribution = self.phases[phase] = Distribution()
        distribution.add(took_ms / 1000)


class _OfFunctions(Collector):
    """The functions' metrics in Prometheus's terms, made when they are asked for."""

    def __init__(self, functions: dict[str, FunctionMetrics]) -> None:
        self._functions = functions

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "faasd_requests_total",
            "Invocations answered, by outcome (ok or an error's code)",
            labels=["function", "mode", "outcome"],
        )
        starts = CounterMetricFamily(
            "faasd_starts_total", "Invocations by what they found", labels=["function", "kind"]
        )
        phases = HistogramMetricFamily(
            "faasd_phase_seconds",
            "Time of an invocation in each phase",
            labels=["function", "phase"],
        )
        latency = HistogramMetricFamily(
            "faasd_request_seconds",
            "Time from the arrival of a request to its reply",
            labels=["function"],
        )
        for name, seen in self._functions.items():
            for (mode, outcome), count in seen.outcomes.items():
                requests.add_metric([name, mode, outcome], count)
            for kind, count in {**seen.starts, StartKind.WARM: seen.warm}.items():
                if count:
                    starts.add_metric([name, str(kind)], count)
            for phase, one in seen.phases.items():
                if any(one.counts):
                    phases.add_metric([name, phase], one.buckets(), one.total)
            latency.add_metric([name], seen.latency.buckets(), seen.latency.total)
        yield from (requests, starts, phases, latency)
