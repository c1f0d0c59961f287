"""The rule that maps trace functions onto endpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.mapping import Assignment, assign, parse_override
from loadgen.traces.model import TraceFunction

Write = Callable[[str, str], Path]

FUNCTIONS = (TraceFunction("b", 5), TraceFunction("a", 5), TraceFunction("hot", 9))


def pairs(assignments: Sequence[Assignment]) -> list[tuple[str, str]]:
    return [(assignment.function, assignment.endpoint) for assignment in assignments]


def test_functions_by_invocations_are_dealt_to_endpoints_by_name() -> None:
    found = assign(FUNCTIONS, ["y", "x"], {})

    assert pairs(found) == [("hot", "x"), ("a", "y"), ("b", "x")]


def test_a_function_goes_to_the_endpoint_of_its_name_and_takes_no_turn() -> None:
    found = assign(FUNCTIONS, ["a", "x"], {})

    assert pairs(found) == [("hot", "a"), ("a", "a"), ("b", "x")]
    assert [assignment.reason for assignment in found] == ["in turn", "same name", "in turn"]


def test_an_override_comes_before_everything() -> None:
    found = assign(FUNCTIONS, ["a", "x"], {"a": "x", "hot": "x"})

    assert pairs(found) == [("hot", "x"), ("a", "x"), ("b", "a")]


def test_an_override_must_name_what_exists() -> None:
    with pytest.raises(UsageError, match="'nope', which is not in the replayed part"):
        assign(FUNCTIONS, ["x"], {"nope": "x"})
    with pytest.raises(UsageError, match="'y', which is not deployed; deployed are x"):
        assign(FUNCTIONS, ["x"], {"a": "y"})


def test_an_override_is_read_from_pairs_or_a_file(write: Write) -> None:
    path = write("map.json", '{"a": "x"}')

    assert parse_override("a=x, b=y") == {"a": "x", "b": "y"}
    assert parse_override(str(path)) == {"a": "x"}


@pytest.mark.parametrize("text", ["a", "a=", "=x", "a=x,", "missing.json"])
def test_an_override_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--map"):
        parse_override(text)


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "{"])
def test_a_map_file_of_another_shape_is_refused(write: Write, content: str) -> None:
    with pytest.raises(UsageError, match="--map"):
        parse_override(str(write("map.json", content)))
