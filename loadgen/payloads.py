"""What is posted to an endpoint: the example in its spec, `{}` without one, or what `--payloads` says."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from loadgen.errors import UsageError

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Payload:
    content_type: str = JSON_TYPE
    body: bytes = b"{}"


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid")

    content_type: str = JSON_TYPE
    body: str | None = None
    base64: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.body, self.base64, self.file)) != 1:
            raise ValueError("needs exactly one of body, base64 and file")
        return self


def from_example(example: Any, function: str) -> Payload:
    """The payload that a function's spec carries; None means it carries no example."""
    if example is None:
        return Payload()
    given = {name: value for name, value in dict(example).items() if value is not None}
    given.pop("file", None)
    return _payload(given, f"The example of function {function!r}", Path())


def from_file(path: Path) -> Mapping[str, Payload]:
    """`--payloads`: a JSON object of endpoint to {content_type, body | base64 | file}.

    A `file` is looked for beside the JSON file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--payloads {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UsageError(f"--payloads {path} is not JSON ({error}).") from None
    if not isinstance(entries, dict):
        raise UsageError(f"--payloads {path} must be an object of endpoint to payload.")
    return {
        endpoint: _payload(entry, f"--payloads {path}: the entry {endpoint!r}", path.parent)
        for endpoint, entry in entries.items()
    }


def _payload(entry: Any, subject: str, folder: Path) -> Payload:
    try:
        source = _Source.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{subject} is not a payload: {where} {first['msg']}.") from None
    try:
        return Payload(source.content_type, _body(source, folder))
    except binascii.Error as error:
        raise UsageError(f"{subject}: base64 does not decode ({error}).") from None
    except OSError as error:
        raise UsageError(f"{subject}: {source.file} cannot be read ({error.strerror}).") from None


def _body(source: _Source, folder: Path) -> bytes:
    if source.base64 is not None:
        return base64.b64decode(source.base64, validate=True)
    if source.file is not None:
        return (folder / source.file).read_bytes()
    return (source.body or "").encode()
