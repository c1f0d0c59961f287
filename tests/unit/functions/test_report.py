"""What is told of an exception in user code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from functions.runtime import codec, report
from functions.runtime.context import InvocationCancelled, Response


def caught(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def fail() -> None:
    raise KeyError("weights")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_type_message_and_trace_are_told() -> None:
    told = report.describe(caught(fail))

    assert (told["type"], told["message"], told["memory"]) == ("KeyError", "'weights'", False)
    assert "in fail" in told["traceback"]
    assert told["traceback"].endswith("KeyError: 'weights'\n")


def test_our_own_frames_are_left_out_of_the_trace() -> None:
    told = report.describe(caught(lambda: Response("x", status=1)))

    assert "context.py" not in told["traceback"]
    assert "ValueError: status must lie between" in told["traceback"]


def test_the_cause_is_told_too() -> None:
    def work() -> None:
        try:
            fail()
        except KeyError as error:
            raise RuntimeError("no model") from error

    assert "direct cause" in report.describe(caught(work))["traceback"]


def test_an_exception_without_words_is_told_all_the_same() -> None:
    told = report.describe(caught(lambda: (_ for _ in ()).throw(Unspeakable())))

    assert told["type"] == "Unspeakable"
    assert told["message"] == "(its message could not be made into text)"


def test_long_words_are_cut() -> None:
    told = report.describe(ValueError("x" * 1_000_000))

    assert len(told["message"]) == 2000
    assert told["traceback"].startswith("ValueError: x")
    assert len(told["traceback"]) < report.LONGEST + 20


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), "handler_error"),
        (SystemExit(1), "handler_error"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (OSError(12, "Cannot allocate memory"), "out_of_memory"),
        (codec.BadEvent("The body is not JSON."), "bad_request"),
        (codec.BadResult("No."), "unserialisable_result"),
        (InvocationCancelled(), "cancelled"),
    ],
)
def test_the_caller_is_told_what_kind_of_failure_it_was(error: BaseException, code: str) -> None:
    assert report.problem(error)["code"] == code


def test_of_a_bad_body_only_the_sentence_is_told() -> None:
    told = report.problem(codec.BadEvent("The body is not JSON."))

    assert told == {"code": "bad_request", "message": "The body is not JSON."}
