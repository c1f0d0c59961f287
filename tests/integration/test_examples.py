"""The examples on their real models, deployed as a user would: layers built, answers looked at."""

from __future__ import annotations

import base64
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faasd.client import Client
from tests.platform import Platform

EXAMPLES = Path(__file__).resolve().parents[2] / "functions" / "examples"
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("examples")
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    reached = subprocess.run([*probe, str(folder), "six"], check=False, capture_output=True)
    if reached.returncode:
        pytest.skip(f"no package index can be reached: {reached.stderr.decode()[-300:]}")
    with Platform(folder) as platform, Client(platform.url, timeout_s=300) as connected:
        yield connected


def answer(client: Client, name: str) -> Any:
    """Deploy the example and send its own payload."""
    client.deploy(EXAMPLES / name)
    example = tomllib.loads((EXAMPLES / name / "function.toml").read_text())["example"]
    body = example["body"].encode() if "body" in example else base64.b64decode(example["base64"])
    content_type = example.get("content_type", "application/json")
    reply = client.invoke(name, body, content_type=content_type)
    assert reply.status == 200
    return reply.value


@needs_torch
@pytest.mark.torch
def test_sentences_of_like_meaning_are_near_each_other(client: Client) -> None:
    assert len(answer(client, "embed-minilm")["embedding"]) == 384

    texts = ["A cat sleeps.", "A kitten naps.", "Interest rates rose."]
    cat, kitten, rates = client.invoke("embed-minilm", {"texts": texts}).value["embeddings"]

    def likeness(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(cat, cat) == pytest.approx(1, abs=1e-3)
    assert likeness(cat, kitten) > 0.5 > likeness(cat, rates)


@needs_torch
@pytest.mark.torch
def test_a_traffic_light_is_seen(client: Client) -> None:
    classes = answer(client, "classify-image")["classes"]

    assert classes[0]["id"] == 920
    assert classes[0]["probability"] > 0.5


def test_a_shell_script_is_known_by_its_bytes(client: Client) -> None:
    assert answer(client, "file-type")["label"] == "shell"


def test_a_digit_is_read(client: Client) -> None:
    found = answer(client, "digits")

    assert found["digit"] == found["target"] == 1


def test_the_layers_were_built_once_and_serve_again(client: Client) -> None:
    """A second deploy of the same content is the same revision, and needs no build."""
    client.deploy(EXAMPLES / "file-type")
    before = client.function("file-type").revision

    assert client.deploy(EXAMPLES / "file-type").revision == before
