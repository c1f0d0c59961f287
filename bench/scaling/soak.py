"""Hours at 70 % of the peak, and what happens at three times the peak.

The peak is what wrk gets out of the function; the loads after it do not wait for answers. Memory is
sampled during the long run, and a line fitted to it after the first fifth.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import daemons, processes, wrk
from bench.daemons import Server
from bench.measure import ROOT
from bench.scaling.openloop import Outcome
from bench.table import aligned, count

INSTANCES = 4
QUEUE = 32
PEAK_CONNECTIONS = 32
SAMPLE_S = 2.0
LONGEST_PEAK_S = 15.0
WORK = "import os, time\n\nWAIT_S = float(os.environ['WAIT_S'])\n\n"
WORK += "def handle(event, context):\n    time.sleep(WAIT_S)\n    return event\n"


@dataclass(frozen=True, slots=True)
class Slope:
    """A line's rise in an hour, and the standard error of that."""

    per_hour: float
    error: float


def slope(times_s: Sequence[float], values: Sequence[float]) -> Slope | None:
    """By least squares; None for fewer than three points, which have no error to tell."""
    n = len(times_s)
    if n < 3:
        return None
    mean_t, mean_v = math.fsum(times_s) / n, math.fsum(values) / n
    spread = math.fsum((t - mean_t) ** 2 for t in times_s)
    if spread == 0:
        return None
    both = math.fsum((t - mean_t) * (v - mean_v) for t, v in zip(times_s, values, strict=True))
    rise = both / spread
    residue = math.fsum(
        (v - mean_v - rise * (t - mean_t)) ** 2 for t, v in zip(times_s, values, strict=True)
    )
    return Slope(rise * 3600, math.sqrt(residue / (n - 2) / spread) * 3600)


@dataclass(frozen=True, slots=True)
class Samples:
    """Memory of their own of the daemon and of all processes, in MB, and when it was read."""

    times_s: list[float]
    daemon_mb: list[float]
    all_mb: list[float]

    def after_warm_up(self) -> Samples:
        """Without the first fifth, in which buffers and caches fill."""
        skip = len(self.times_s) // 5
        return Samples(self.times_s[skip:], self.daemon_mb[skip:], self.all_mb[skip:])


@dataclass(frozen=True, slots=True)
class Sent:
    """One load. `waited` is for which part of the time the daemon was ready and had no processor:
    where that is much, latencies tell of the machine.
    """

    outcome: Outcome
    samples: Samples
    waited: float


def measure(folder: Path, source: Path, *, seconds: float, work_ms: float) -> dict[str, Any]:
    """Prints its tables; the figures for the RESULT line."""
    short_s = seconds / 6
    with daemons.up(folder) as server:
        settings = {
            "limits__max_instances": INSTANCES,
            "limits__queue": QUEUE,
            "scaling__min_instances": INSTANCES,
            "env__WAIT_S": str(work_ms / 1000),
        }
        daemons.deploy(server.url, source, "work", **settings)
        url = f"{server.url}/invoke/work"
        _peak(url, 2.0)
        peak = _peak(url, min(max(short_s, 1.0), LONGEST_PEAK_S))
        print(f"peak: {peak:,.0f} requests/s ({INSTANCES} instances, {work_ms:g} ms of work)")
        high = _send(server, url, 0.9 * peak, short_s)
        steady = _send(server, url, 0.7 * peak, seconds)
        over = _send(server, url, 3.0 * peak, short_s)
    _print({"90 %": high, "70 %": steady, "300 %": over}, peak)
    figures = _overload(peak, high.outcome, over.outcome) | _memory(steady.samples)
    return figures | {"peak": peak, "failed": steady.outcome.failed, "waited_at_300": over.waited}


def _peak(url: str, seconds: float) -> float:
    load = wrk.run(
        url,
        connections=PEAK_CONNECTIONS,
        seconds=seconds,
        body=b"{}",
        content_type="application/json",
    )
    return load.rate


def _send(server: Server, url: str, rate: float, seconds: float) -> Sent:
    """One load by a process of its own; memory is sampled meanwhile."""
    print(f"{rate:,.0f} requests/s for {seconds:.0f} s", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "bench.scaling.openloop", url, str(rate), str(seconds)]
    samples = Samples([], [], [])
    started = time.monotonic()
    daemon = server.tree.roots[0].pid
    waited_s = -processes.waited_s(daemon)
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as sender:
        while True:
            try:
                out, _ = sender.communicate(timeout=SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                samples.times_s.append(time.monotonic() - started)
                samples.daemon_mb.append(processes.own_mb(daemon))
                samples.all_mb.append(server.tree.own_mb())
            except BaseException:
                sender.kill()
                raise
    if sender.returncode != 0:
        sys.exit("the sender of the load failed")
    waited_s += processes.waited_s(daemon)
    return Sent(Outcome(**json.loads(out)), samples, waited_s / (time.monotonic() - started))


def _print(loads: dict[str, Sent], peak: float) -> None:
    header = [
        *("load", "sent/s", "answered/s", "of the peak", "p50 ms", "p99 ms"),
        *("refused/s", "p50 ms", "p99 ms", "p99 at the server", "failed", "send lag p99 ms"),
        "daemon waited for a processor",
    ]
    rows = [
        [
            name,
            count(one.sent / one.seconds),
            count(one.goodput),
            f"{one.goodput / peak:.0%}",
            *map(count, (one.accepted_p50_ms, one.accepted_p99_ms)),
            count(one.refused / one.seconds),
            *map(count, (one.refused_p50_ms, one.refused_p99_ms, one.refused_server_p99_ms)),
            str(sum(one.failed.values())),
            count(one.lag_p99_ms),
            f"{sent.waited:.1%}",
        ]
        for name, sent in loads.items()
        for one in [sent.outcome]
    ]
    print(aligned(header, rows))


def _overload(peak: float, high: Outcome, over: Outcome) -> dict[str, Any]:
    times = over.accepted_p99_ms / high.accepted_p99_ms if high.accepted_p99_ms else math.nan
    print(
        f"  at 300 %: {over.goodput / peak:.0%} of the peak answered, p99 {times:.1f} times that "
        f"at 90 %; {over.without_retry_after} of {over.refused:,} refusals without Retry-After"
    )
    return {
        "goodput_of_peak": over.goodput / peak,
        "p99_ms_at_90": high.accepted_p99_ms,
        "p99_ms_at_300": over.accepted_p99_ms,
        "refused_p99_ms": over.refused_p99_ms,
        "refused_server_p99_ms": over.refused_server_p99_ms,
        "without_retry_after": over.without_retry_after,
        "failed_at_300": over.failed,
    }


def _memory(samples: Samples) -> dict[str, Any]:
    found: dict[str, Any] = {}
    settled = samples.after_warm_up()
    for name, values in (("daemon", settled.daemon_mb), ("all", settled.all_mb)):
        line = slope(settled.times_s, values)
        if line is None:
            print(f"  memory at 70 %, {name}: too few samples for a slope; make the run longer")
            continue
        print(
            f"  memory at 70 %, {name}: {values[0]:.1f} MB to {values[-1]:.1f} MB, "
            f"{line.per_hour:+.2f} MB/h (standard error {line.error:.2f}, {len(values)} samples)"
        )
        found |= {f"{name}_mb_per_hour": line.per_hour, f"{name}_mb_per_hour_error": line.error}
    return found
