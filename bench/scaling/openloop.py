"""Load that does not wait for answers: a Poisson process of one rate, as a program of its own.

Latencies count from when a request was due. What of them is the server's is told for refusals, which
take so little that much of it is the sender's own: it shares the processors, and may be late. `python -m bench.scaling.openloop URL RATE SECONDS`
prints what became of the requests, in JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from random import Random

import uvloop

from bench.scaling.stamped import Poster
from loadgen.replay import Replay
from loadgen.results import CLIENT_TIMEOUT, CONNECTION_ERROR, Recorder, Reply, percentile

TIMEOUT_S = 30.0
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run. Refused are answers of status 429; percentiles are 0 where there were none."""

    sent: int
    seconds: float
    accepted: int
    accepted_p50_ms: float
    accepted_p99_ms: float
    refused: int
    refused_p50_ms: float
    refused_p99_ms: float
    refused_server_p99_ms: float
    without_retry_after: int
    failed: dict[str, int]
    lag_p99_ms: float

    @property
    def goodput(self) -> float:
        """Accepted requests a second."""
        return self.accepted / self.seconds


def poisson(rate: float, seconds: float, seed: int = 0) -> Iterator[tuple[float, int]]:
    """When requests are due."""
    random = Random(seed)
    due_s = random.expovariate(rate)
    while due_s < seconds:
        yield due_s, 0
        due_s += random.expovariate(rate)


class Sender:
    """Posts the same to one address; of refusals it notes what they took, and what they lack."""

    def __init__(self, poster: Poster) -> None:
        self.refused_server_ms: array[float] = array("d")
        self.without_retry_after = 0
        self._poster = poster

    async def send(self, target: int) -> Reply:  # noqa: ARG002
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._poster.post()
        except TimeoutError:
            return Reply(CLIENT_TIMEOUT)
        except OSError:
            return Reply(CONNECTION_ERROR)
        if answer.status == 429:
            self.without_retry_after += not answer.retry_after
            self.refused_server_ms.append(answer.server_ms)
            return Reply(REFUSED, answer.status)
        return Reply("" if answer.status < 400 else f"http_{answer.status}", answer.status)


async def run(url: str, rate: float, seconds: float) -> Outcome:
    poster = Poster(url, b"{}", content_type="application/json")
    sender = Sender(poster)
    replay = Replay(
        arrivals=poisson(rate, seconds), targets=[0], sender=sender, clock=time.monotonic
    )
    await replay.run()
    poster.close()
    return outcome(replay.record, seconds, sender)


def outcome(record: Recorder, seconds: float, sender: Sender) -> Outcome:
    rows = range(len(record))
    accepted = sorted(record.latency_ms(row) for row in rows if not record.code[row])
    refused = sorted(record.latency_ms(row) for row in rows if record.code[row] == REFUSED)
    failed = Counter(record.code[row] for row in rows if record.code[row] not in ("", REFUSED))
    return Outcome(
        sent=len(record),
        seconds=seconds,
        accepted=len(accepted),
        accepted_p50_ms=_percentile(accepted, 50),
        accepted_p99_ms=_percentile(accepted, 99),
        refused=len(refused),
        refused_p50_ms=_percentile(refused, 50),
        refused_p99_ms=_percentile(refused, 99),
        refused_server_p99_ms=_percentile(sorted(sender.refused_server_ms), 99),
        without_retry_after=sender.without_retry_after,
        failed=dict(failed),
        lag_p99_ms=_percentile(sorted(map(record.lag_ms, rows)), 99),
    )


def _percentile(ordered: Sequence[float], percent: float) -> float:
    return percentile(ordered, percent) if ordered else 0.0


def main() -> None:
    url, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(run(url, rate, seconds)))))


if __name__ == "__main__":
    main()
