"""What is asked of every server: the body, what counts as an answer, and faasd's function for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

FUNCTIONS = Path(__file__).resolve().parent / "functions"
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request. `moved` is true where the bytes a second are the figure of interest."""

    name: str
    title: str
    body: bytes
    content_type: str
    is_answer: Callable[[bytes], bool]
    function: str
    settings: Mapping[str, object] = field(default_factory=dict)
    moved: bool = False


ECHO = b'{"text": "hello"}'
BODY = Random(0).randbytes(MB)


def _echoes(answer: bytes) -> bool:
    return bool(_value(answer) == json.loads(ECHO))


def _infers(answer: bytes) -> bool:
    """One row of ten numbers, in an object or bare."""
    value = _value(answer)
    rows = value.get("outputs") if isinstance(value, dict) else value
    return isinstance(rows, list) and len(rows) == 1 and len(rows[0]) == 10


def _value(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return None


def _row() -> bytes:
    random = Random(0)
    return json.dumps({"inputs": [[round(random.uniform(-1, 1), 4) for _ in range(512)]]}).encode()


JSON = "application/json"
CASES = {
    case.name: case
    for case in (
        Case("echo", "JSON parsed and answered, 17 bytes", ECHO, JSON, _echoes, "echo"),
        Case(
            "mlp",
            "perceptron of 512-512-512-10 on torch, one at a time",
            _row(),
            JSON,
            _infers,
            "mlp",
        ),
        Case(
            "mlp-batched",
            "the same perceptron, up to 16 requests in a batch",
            _row(),
            JSON,
            _infers,
            "mlp",
            {"handler": "handler:handle_batch", "batching__max_size": 16},
        ),
        Case(
            "body-1mb",
            "1 MB of bytes in and out",
            BODY,
            "application/octet-stream",
            BODY.__eq__,
            "echo",
            moved=True,
        ),
    )
}
