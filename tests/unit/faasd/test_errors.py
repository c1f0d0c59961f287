"""The error taxonomy: what crosses a process boundary comes back the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd import errors
from faasd.errors import FaasdError, InternalError, QueueFull, from_problem

EVERY = sorted(
    {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, FaasdError)}
    - {FaasdError},
    key=lambda cls: cls.__name__,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_survives_the_way_across(cls: type[FaasdError]) -> None:
    error = cls("It broke.", remedy="Mend it.", retry_after_s=2.5, traceback="line 1", worker="w1")

    back = from_problem(error.to_problem())

    assert type(back) is cls
    assert back.to_problem() == error.to_problem()
    assert (back.detail, back.remedy, back.retry_after_s) == ("It broke.", "Mend it.", 2.5)
    assert (back.traceback, back.extra) == ("line 1", {"worker": "w1"})


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_comes_with_its_own_remedy_when_none_is_given(cls: type[FaasdError]) -> None:
    problem = cls("It broke.").to_problem()

    assert problem["remedy"] == cls.default_remedy
    assert "retry_after_s" not in problem
    assert "traceback" not in problem


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_has_an_error_status_and_a_type_made_of_its_code(
    cls: type[FaasdError],
) -> None:
    problem = cls("It broke.").to_problem()

    assert 400 <= problem["status"] <= 599
    assert problem["type"] == f"urn:faasd:error:{cls.code}"
    assert problem["title"][0].isupper()


def test_no_two_errors_share_a_code() -> None:
    counts = Counter(cls.code for cls in EVERY)

    assert [code for code, count in counts.items() if count > 1] == []


def test_every_error_stands_in_the_tree_that_opens_the_module() -> None:
    assert errors.__doc__ is not None

    missing = [cls.__name__ for cls in EVERY if cls.__name__ not in errors.__doc__]

    assert missing == []


def test_what_may_be_tried_again_says_so() -> None:
    retryable = {cls.__name__ for cls in EVERY if cls("x").to_problem()["retryable"]}

    assert retryable == {"RequestTimeout", "QueueFull", "StorageFull", "WorkerLost", "Unavailable"}


def test_an_unknown_code_comes_back_as_an_internal_error() -> None:
    assert type(from_problem({"code": "made_up", "detail": "What?"})) is InternalError


def test_the_request_id_of_an_answer_is_no_part_of_the_error() -> None:
    problem = {**QueueFull("Full.").to_problem(), "request_id": "r1"}

    assert from_problem(problem).extra == {}


def test_what_is_said_besides_never_hides_what_the_error_is() -> None:
    error = QueueFull("Full.")
    error.extra["status"] = 200

    assert error.to_problem()["status"] == 429


@given(st.dictionaries(st.text(max_size=20) | st.sampled_from(["code", "detail"]), plain))
def test_any_object_becomes_some_error(problem: dict[str, object]) -> None:
    assert isinstance(from_problem(problem), FaasdError)
