"""The maths of the scaling benchmark: slopes, open-loop outcomes, connections that are still open."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.scaling.functions import Loaded, cpu_ratio, idle_connections, still_open
from bench.scaling.idle import Seen, each_kb
from bench.scaling.openloop import REFUSED, Sender, outcome, poisson
from bench.scaling.soak import Samples, slope
from bench.scaling.stamped import Poster
from bench.scaling.workers import SLOTS, share
from loadgen.results import Recorder, Reply
from tests.loops import in_loop

NUMBERS = st.floats(-1e3, 1e3)


def test_a_straight_line_has_its_rise_and_no_error() -> None:
    times_s = [0.0, 2.0, 4.0, 6.0]

    line = slope(times_s, [50 + 0.01 * t for t in times_s])

    assert line is not None
    assert line.per_hour == pytest.approx(36)
    assert line.error == pytest.approx(0, abs=1e-6)


def test_the_standard_error_is_that_of_least_squares() -> None:
    line = slope([0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 3.0])

    assert line is not None
    assert line.per_hour == pytest.approx(0.8 * 3600)
    assert line.error == pytest.approx((0.9 / 5) ** 0.5 * 3600)


@given(values=st.lists(NUMBERS, min_size=3, max_size=30), shift=NUMBERS)
def test_where_the_line_lies_does_not_change_its_rise(values: list[float], shift: float) -> None:
    times_s = [2.0 * n for n in range(len(values))]

    here, there = slope(times_s, values), slope(times_s, [v + shift for v in values])

    assert here is not None
    assert there is not None
    assert there.per_hour == pytest.approx(here.per_hour, abs=1e-3)
    assert there.error == pytest.approx(here.error, abs=1e-3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_too_few_points_have_no_slope(values: list[float]) -> None:
    assert slope([2.0 * n for n in range(len(values))], values) is None


def test_points_of_one_instant_have_no_slope() -> None:
    assert slope([1.0] * 4, [1.0, 2.0, 3.0, 4.0]) is None


def test_the_first_fifth_of_the_samples_is_warm_up() -> None:
    samples = Samples(
        [0.0, 2.0, 4.0, 6.0, 8.0], [9.0, 1.0, 1.0, 1.0, 1.0], [9.0, 2.0, 2.0, 2.0, 2.0]
    )

    settled = samples.after_warm_up()

    assert settled == Samples([2.0, 4.0, 6.0, 8.0], [1.0] * 4, [2.0] * 4)


@given(rate=st.floats(10, 1000), seconds=st.floats(1, 5), seed=st.integers(0, 5))
def test_arrivals_ascend_within_the_time_at_about_the_rate(
    rate: float, seconds: float, seed: int
) -> None:
    expected = rate * seconds
    assume(expected > 100)

    due_s = [due for due, _ in poisson(rate, seconds, seed)]

    assert due_s == sorted(due_s)
    assert 0 < due_s[0] <= due_s[-1] < seconds
    assert abs(len(due_s) - expected) < 6 * expected**0.5


def test_outcomes_are_told_apart_and_latencies_count_from_when_a_request_was_due() -> None:
    record = Recorder()
    replies = [Reply("", 200), Reply(REFUSED, 429), Reply("http_502", 502), Reply("", 200)]
    for number, reply in enumerate(replies):
        row = record.begin(intended_s=1.0, sent_s=1.5, function=0, endpoint=0)
        record.finish(row, reply, finished_s=2.0 + number)

    sender = Sender(Poster("http://127.0.0.1:1/invoke/f", b"{}", content_type="text/plain"))
    sender.without_retry_after = 1
    sender.refused_server_ms.extend([3.0, 1.0])

    found = outcome(record, 2.0, sender)

    assert (found.sent, found.accepted, found.refused) == (4, 2, 1)
    assert (found.accepted_p50_ms, found.accepted_p99_ms) == (1000, 4000)
    assert (found.refused_p99_ms, found.refused_server_p99_ms) == (2000, 3)
    assert found.without_retry_after == 1
    assert found.failed == {"http_502": 1}
    assert found.lag_p99_ms == 500
    assert found.goodput == 1


def test_nothing_refused_has_no_latency() -> None:
    sender = Sender(Poster("http://127.0.0.1:1/invoke/f", b"{}", content_type="text/plain"))

    found = outcome(Recorder(), 1.0, sender)

    assert (found.sent, found.refused_p99_ms, found.lag_p99_ms) == (0, 0, 0)


def test_the_ideal_is_what_the_slots_do_if_only_the_wait_takes_time() -> None:
    assert share(200, workers=1) == pytest.approx(200 * 0.02 / SLOTS)


def test_the_cost_of_more_is_compared_within_each_round() -> None:
    less = [loaded(cpu_us) for cpu_us in (100, 300, 110)]
    more = [loaded(cpu_us) for cpu_us in (120, 330, 990)]

    assert cpu_ratio(more, less) == pytest.approx(1.2)


def test_what_a_function_takes_is_the_difference_over_the_functions_that_were_added() -> None:
    less = Seen(1000, private_mb=50.0, wakeups=2.0, cpu_ms=1.0)
    more = Seen(2000, private_mb=53.0, wakeups=2.0, cpu_ms=1.0)

    assert each_kb(less, more) == pytest.approx(3 * 1024 / 1000)


def loaded(cpu_us: float) -> Loaded:
    return Loaded(rate=1.0, cpu_us=cpu_us, daemon_mb=50.0, errors=0, closed=0)


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


def test_connections_that_the_server_closed_are_told_from_open_ones() -> None:
    accepted: list[socket.socket] = []

    class Kept(Answering):
        def setup(self) -> None:
            super().setup()
            accepted.append(self.connection)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Kept) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with idle_connections(f"http://127.0.0.1:{server.server_port}", 3) as opened:
                assert still_open(opened) == 3

                accepted[0].shutdown(socket.SHUT_RDWR)
                closed_by_server(opened[0])

                assert still_open(opened) == 2
        finally:
            server.shutdown()
            thread.join()


def closed_by_server(connection: http.client.HTTPConnection) -> None:
    assert connection.sock is not None
    connection.sock.setblocking(True)
    assert connection.sock.recv(1) == b""


class Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses in two pieces, with a pause between them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    pause_s = 0.02
    written = threading.Event()

    def do_POST(self) -> None:
        assert self.rfile.read(int(self.headers["Content-Length"])) == b"{}"
        self.send_response(429)
        self.send_header("Content-Length", "4")
        self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.flush()
        time.sleep(self.pause_s)
        self.wfile.write(b"full")
        self.written.set()

    def log_message(self, *_: object) -> None:
        pass


class Closing(Refusing):
    def do_POST(self) -> None:
        self.close_connection = True


@contextlib.contextmanager
def poster_to(handler: type[Refusing]) -> Iterator[Poster]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/invoke/f"
        poster = Poster(url, b"{}", content_type="application/json")
        try:
            yield poster
        finally:
            poster.close()
            server.shutdown()
            thread.join()


@in_loop
async def test_an_answer_took_until_its_last_byte_had_arrived() -> None:
    with poster_to(Refusing) as poster:
        for _ in range(2):
            answer = await poster.post()

            assert (answer.status, answer.retry_after) == (429, True)
            assert answer.server_ms >= Refusing.pause_s * 1000


@in_loop
async def test_what_came_before_it_was_read_had_come_by_then() -> None:
    Refusing.written.clear()
    with poster_to(Refusing) as poster:
        # The kernel begins to stamp when somebody asks for it, not always in time for the first.
        await poster.post()
        assert Refusing.written.wait(20)
        Refusing.written.clear()
        before_ns = time.time_ns()
        post = asyncio.ensure_future(poster.post())
        await asyncio.sleep(0)

        assert Refusing.written.wait(20)
        written_ns = time.time_ns()
        time.sleep(0.02)
        answer = await post

    assert answer.server_ms <= (written_ns - before_ns) / 1e6


@in_loop
async def test_a_server_that_closes_instead_of_answering_is_an_error() -> None:
    with poster_to(Closing) as poster, pytest.raises(ConnectionResetError):
        await poster.post()
