"""Load by wrk: one thread, closed loop, and what it printed as figures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MISSING = "wrk is not installed; install it with `apt-get install wrk`."
_TO_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_TO_S = {unit: factor / 1000 for unit, factor in _TO_MS.items()}
# wrk reads the body from a file: Lua's own text would need every byte escaped.
_SCRIPT = """
local file = assert(io.open({path!r}, "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = {content_type!r}
file:close()
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk. Latencies are of all requests; `errors` are refusals, breaks and time-outs."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def require() -> None:
    """Ends the program with one sentence where there is no wrk."""
    if shutil.which("wrk") is None:
        sys.exit(MISSING)


def run(url: str, *, connections: int, seconds: float, body: bytes, content_type: str) -> Load:
    """Posts the body on so many connections, one request after another on each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "body"
        path.write_bytes(body)
        script = Path(folder) / "post.lua"
        script.write_text(_SCRIPT.format(path=str(path), content_type=content_type))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency"]
        done = subprocess.run(
            [*command, "-s", str(script), url], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise RuntimeError(f"wrk failed: {done.stdout}{done.stderr}")
    return parse(done.stdout)


def parse(output: str) -> Load:
    """What `wrk --latency` printed. Raises ValueError if it is anything else."""
    total = re.search(r"(\d+) requests in ([\d.]+)([a-z]+),", output)
    if total is None:
        raise ValueError(f"This is not the output of wrk: {output[:200]!r}")
    return Load(
        requests=int(total[1]),
        seconds=float(total[2]) * _TO_S[total[3]],
        p50_ms=_percentile_ms(output, 50),
        p99_ms=_percentile_ms(output, 99),
        errors=_errors(output),
    )


def _percentile_ms(output: str, percent: int) -> float:
    found = re.search(rf"^\s*{percent}%\s+([\d.]+)([a-z]+)$", output, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk printed no {percent} % of latencies; it needs --latency.")
    return float(found[1]) * _TO_MS[found[2]]


def _errors(output: str) -> int:
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output
    )
    return sum(
        int(count) for found in (refused, broken) if found is not None for count in found.groups()
    )
