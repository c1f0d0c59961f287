"""Bodies that are posted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.payloads import Payload, from_example, from_file

Write = Callable[[str, str], Path]


def test_without_an_example_an_empty_json_object_is_posted() -> None:
    assert from_example(None, "f") == Payload("application/json", b"{}")


def test_an_example_is_text_or_base64() -> None:
    spelt = {"content_type": "text/plain", "body": "grüß", "base64": None}
    coded = {"content_type": "image/png", "body": None, "base64": "AAEC"}

    assert from_example(spelt, "f") == Payload("text/plain", "grüß".encode())
    assert from_example(coded, "f") == Payload("image/png", b"\0\1\2")


def test_a_payload_file_may_point_at_files_beside_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "cat.bin").write_bytes(b"\xff\0")
    path = write(
        "payloads.json",
        '{"a": {"content_type": "image/x", "file": "cat.bin"}, "b": {"body": "[]"}}',
    )

    assert from_file(path) == {
        "a": Payload("image/x", b"\xff\0"),
        "b": Payload("application/json", b"[]"),
    }


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"a": 1}',
        '{"a": {}}',
        '{"a": {"body": "x", "file": "y"}}',
        '{"a": {"bdy": "x"}}',
        '{"a": {"base64": "?"}}',
        '{"a": {"file": "missing"}}',
    ],
)
def test_a_payload_file_that_is_none_is_refused(write: Write, content: str) -> None:
    with pytest.raises(UsageError, match="--payloads"):
        from_file(write("payloads.json", content))
