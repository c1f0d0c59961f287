"""Whether what the API answers is what its OpenAPI document says."""

from __future__ import annotations

from functools import cache
from typing import Any

from openapi_schema_validator import OAS31Validator

from controller.http.schemas import components
from tests.platform import Answer

PHASES = ["queue", "sandbox", "libs", "load", "exec"]
KINDS = {"warm", "fork", "preloaded", "pooled", "cold"}


@cache
def _validator(schema: str) -> Any:
    everything = {"components": {"schemas": components()}}
    return OAS31Validator({"$ref": f"#/components/schemas/{schema}", **everything})


def conforms(value: Any, schema: str) -> Any:
    """The value, which fits the schema of this name and has no member that it does not name."""
    _validator(schema).validate(value)
    if schema != "Problem":
        assert set(value) <= set(components()[schema]["properties"]), value
    return value


def timings(answer: Answer) -> dict[str, float]:
    """The phases of Server-Timing in milliseconds."""
    parts = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    return {name: float(duration) for name, duration in parts}


def tells_its_cost(answer: Answer, *, reached: bool = True) -> bool:
    """Whether the answer to an invocation bears the headers that every one must."""
    headers = answer.headers
    assert list(timings(answer)) == PHASES
    assert headers["faasd-request-id"]
    if not reached:
        assert headers["faasd-start"] == "none"
        assert set(timings(answer).values()) == {0.0}
        return True
    assert headers["faasd-start"] in KINDS
    assert headers["faasd-worker"]
    assert headers["faasd-revision"]
    return True
