"""What is read from the output of wrk."""

from __future__ import annotations

import pytest

from bench.wrk import Load, parse

HEAD = """Running 6s test @ http://127.0.0.1:18080/predict
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    15.20ms    2.44ms  38.61ms   85.00%
    Req/Sec     4.22k   210.00     4.60k    70.00%
"""
LATENCIES = """  Latency Distribution
     50%   {p50}
     75%   16.00ms
     90%   18.00ms
     99%   {p99}
"""
TOTAL = "  {requests} requests in {took}, 4.10MB read\n"
TAIL = "Requests/sec:   4200.10\nTransfer/sec:      0.68MB\n"


def output(
    *,
    p50: str = "1.00ms",
    p99: str = "2.00ms",
    took: str = "6.00s",
    requests: int = 600,
    said: str = "",
) -> str:
    latencies = LATENCIES.format(p50=p50, p99=p99)
    return HEAD + latencies + TOTAL.format(requests=requests, took=took) + said + TAIL


def test_requests_time_and_percentiles_are_read() -> None:
    load = parse(output(p50="15.00ms", p99="38.61ms", requests=25_200))

    assert load == Load(requests=25_200, seconds=6.0, p50_ms=15.0, p99_ms=38.61, errors=0)
    assert load.rate == 4200


@pytest.mark.parametrize(
    ("printed", "milliseconds"),
    [("39.00us", 0.039), ("1.50ms", 1.5), ("1.68s", 1680), ("1.10m", 66_000)],
)
def test_latencies_are_in_ms_whatever_their_unit(printed: str, milliseconds: float) -> None:
    load = parse(output(p50=printed, p99=printed))

    assert load.p50_ms == pytest.approx(milliseconds)
    assert load.p99_ms == pytest.approx(milliseconds)


def test_a_run_of_more_than_a_minute_is_counted_in_seconds() -> None:
    assert parse(output(took="1.50m", requests=900)).rate == 10


def test_refusals_and_broken_connections_and_time_outs_are_errors() -> None:
    said = (
        "  Socket errors: connect 1, read 2, write 3, timeout 40\n  Non-2xx or 3xx responses: 500\n"
    )

    assert parse(output(said=said)).errors == 546


def test_refusals_alone_are_errors() -> None:
    assert parse(output(said="  Non-2xx or 3xx responses: 7\n")).errors == 7


def test_another_programs_output_is_refused() -> None:
    with pytest.raises(ValueError, match="not the output of wrk"):
        parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_output_without_percentiles_is_refused() -> None:
    with pytest.raises(ValueError, match="--latency"):
        parse(HEAD + TOTAL.format(requests=1, took="1.00s") + TAIL)
