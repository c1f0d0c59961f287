"""What is read from a response."""

from __future__ import annotations

import math

import pytest

from loadgen.client import reply_of, server_timing
from loadgen.results import NO_PHASES


def test_reads_the_phases_by_name_in_any_order() -> None:
    header = "exec;dur=3.2, queue;dur=0.1, cache;desc=hit, libs;dur=0, load;dur=x"

    queue, sandbox, libs, load, execution = server_timing(header)

    assert (queue, libs, execution) == (0.1, 0, 3.2)
    assert math.isnan(sandbox)
    assert math.isnan(load)
    assert server_timing("") is NO_PHASES


def test_a_success_has_no_code_and_tells_how_it_was_served() -> None:
    headers = {"faasd-start": "fork", "faasd-worker": "w1", "faasd-request-id": "r"}

    reply = reply_of(200, headers, b"")

    assert (reply.code, reply.start, reply.worker, reply.request_id) == ("", "fork", "w1", "r")


@pytest.mark.parametrize(
    ("status", "content_type", "body", "code"),
    [
        (429, "application/problem+json", b'{"code": "queue_full"}', "queue_full"),
        (502, "application/problem+json", b"{", "http_502"),
        (500, "application/json", b'["code"]', "http_500"),
        (500, "text/plain", b'{"code": "x"}', "http_500"),
        (307, "text/plain", b"", "http_307"),
    ],
)
def test_a_failure_is_named_by_its_problem_or_its_status(
    status: int, content_type: str, body: bytes, code: str
) -> None:
    assert reply_of(status, {"Content-Type": content_type}, body).code == code
