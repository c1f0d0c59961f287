"""echo, stream-words and batch-stats: examples that need no packages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.examples.loading import Context, load_example


@pytest.mark.parametrize("event", [None, "text", b"bytes", {"a": [1, 2.5, None]}])
def test_echo_gives_back_what_it_was_given(event: Any) -> None:
    assert load_example("echo").handle(event) == event


@pytest.mark.parametrize("event", ["To be or not", {"text": "To be  or\nnot", "delay_s": 0}])
def test_stream_words_yields_one_word_at_a_time(event: Any) -> None:
    stream = load_example("stream-words").handle(event)

    assert next(stream) == "To "
    assert list(stream) == ["be ", "or ", "not "]


@pytest.mark.parametrize("event", [None, {"words": "x"}, {"text": "x", "delay_s": -1}])
def test_stream_words_says_what_it_takes_before_the_first_word(event: Any) -> None:
    with pytest.raises(ValueError, match=r"delay_s|Send a text"):
        next(load_example("stream-words").handle(event))


def test_batch_stats_answers_each_caller_of_a_batch() -> None:
    example = load_example("batch-stats")
    events = [example.event, {"values": [1, 3]}]

    answers = example.module.handle(events, [Context(), Context()])

    assert answers == [
        {"count": 8, "mean": 5.0, "stdev": 2.0, "batch_size": 2},
        {"count": 2, "mean": 2.0, "stdev": 1.0, "batch_size": 2},
    ]


@pytest.mark.parametrize(
    "bad",
    [None, {"values": []}, {"values": ["1"]}, {"values": [float("nan")]}, {"values": [10**400]}],
)
def test_batch_stats_refuses_a_bad_caller_and_answers_the_others(bad: Any) -> None:
    example = load_example("batch-stats")

    refused, answered = example.module.handle([bad, {"values": [4]}], [Context(), Context()])

    assert refused.status == 400
    assert answered["mean"] == 4.0
