"""digits: what the fitted model reads in samples that it has not seen."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.examples.loading import Example, load_example


@pytest.fixture(scope="module")
def digits() -> Example:
    return load_example("digits")


def test_more_than_95_in_100_held_out_samples_are_read_right(digits: Example) -> None:
    answers = [digits.handle({"index": index}) for index in range(300)]

    assert sum(answer["digit"] == answer["target"] for answer in answers) > 285


def test_the_answer_is_the_most_probable_of_ten_digits(digits: Example) -> None:
    answer = digits.handle(digits.event)

    assert len(answer["probabilities"]) == 10
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-3)
    assert max(answer["probabilities"]) == answer["probabilities"][answer["digit"]]


def test_pixels_are_read_like_the_sample_they_were_taken_from(digits: Example) -> None:
    pixels = (digits.context.state.samples[7] * 16).tolist()

    answer = digits.handle({"pixels": pixels})

    assert answer["digit"] == digits.handle({"index": 7})["digit"]
    assert "target" not in answer


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        {"index": 300},
        {"index": -1},
        {"index": "7"},
        {"pixels": [0] * 63},
        {"pixels": [17] * 64},
        {"pixels": [float("nan")] * 64},
        {"pixels": ["0"] * 64},
    ],
)
def test_a_request_that_is_no_digit_is_refused_with_400(digits: Example, event: Any) -> None:
    assert digits.handle(event).status == 400
