"""classify-image: what the real network sees in real photographs, and in broken files."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest

from tests.unit.examples.loading import Example, load_example, skip_without

pytestmark = pytest.mark.torch
TRAFFIC_LIGHT, DAISY, PALACE = 920, 985, 698


@pytest.fixture(scope="module")
def classify() -> Example:
    return load_example("classify-image")


def photograph(name: str, kind: str = "JPEG") -> bytes:
    skip_without("its photographs", ("sklearn",))
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return encoded(Image.fromarray(load_sample_image(name)), kind)


def encoded(image: Any, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def best(answer: Any) -> int:
    return int(answer["classes"][0]["id"])


def test_its_own_example_is_a_traffic_light(classify: Example) -> None:
    classes = classify.handle(classify.event)["classes"]

    assert [len(classes), classes[0]["id"]] == [5, TRAFFIC_LIGHT]
    assert classes[0]["probability"] > 0.5
    assert classes == sorted(classes, key=lambda found: -found["probability"])


@pytest.mark.parametrize(("name", "expected"), [("flower.jpg", DAISY), ("china.jpg", PALACE)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_recognised(classify: Example, name: str, expected: int, kind: str) -> None:
    assert best(classify.handle(photograph(name, kind))) == expected


def test_a_picture_may_come_as_base64_in_json(classify: Example) -> None:
    text = base64.b64encode(classify.event).decode()

    assert classify.handle({"image_base64": text}) == classify.handle(classify.event)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16"])
def test_every_colour_mode_is_accepted(classify: Example, mode: str) -> None:
    from PIL import Image

    answer = classify.handle(encoded(Image.new(mode, (40, 30)), "PNG"))

    assert len(answer["classes"]) == 5


@pytest.mark.parametrize("event", [None, "text", {}, b"", b"not a picture", {"image_base64": "!é"}])
def test_what_is_no_picture_is_refused_with_400(classify: Example, event: Any) -> None:
    assert classify.handle(event).status == 400


def test_every_truncation_of_a_picture_is_refused_or_answered(classify: Example) -> None:
    whole = classify.event

    answers = [classify.handle(whole[:length]) for length in range(0, len(whole), 41)]

    assert all(getattr(answer, "status", 400) == 400 for answer in answers)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(classify: Example) -> None:
    from PIL import Image

    answer = classify.handle(encoded(Image.new("1", (10_000, 5_001)), "PNG"))

    assert answer.status == 400
    assert "pixels" in answer.body["error"]
