"""file-type: labels of the real network for files of known kinds."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest

from tests.unit.examples.loading import Example, load_example


@pytest.fixture(scope="module")
def identify() -> Example:
    return load_example("file-type")


def an_archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("note.txt", "text " * 100)
    return stream.getvalue()


FILES = [
    ("python", b"import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n\n\nmain()\n"),
    ("html", b"<!doctype html><html><head><title>x</title></head><body><p>y</p></body></html>"),
    ("json", b'{"name": "echo", "limits": {"timeout_s": 10}, "tags": ["a", "b", "c"]}'),
    ("zip", an_archive()),
]


@pytest.mark.parametrize(("label", "content"), FILES, ids=[label for label, _ in FILES])
def test_files_of_known_kinds_are_told_apart(identify: Example, label: str, content: bytes) -> None:
    assert identify.handle(content)["label"] == label


def test_its_own_example_is_a_shell_script(identify: Example) -> None:
    answer = identify.handle(identify.event)

    assert answer["label"] == "shell"
    assert answer["mime_type"] == "text/x-shellscript"
    assert 0.5 < answer["score"] <= 1


def test_text_is_taken_as_its_bytes(identify: Example) -> None:
    assert identify.handle(identify.event.decode()) == identify.handle(identify.event)


@pytest.mark.parametrize("event", [None, b"", {"a": 1}])
def test_a_request_without_bytes_is_refused_with_400(identify: Example, event: Any) -> None:
    assert identify.handle(event).status == 400
