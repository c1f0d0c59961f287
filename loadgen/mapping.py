"""Which deployed endpoint stands in for which function of the trace. Pure; the rule is printed with its result.

1. What `--map` names goes where it says.
2. A function of the trace that has an endpoint of its own name goes to it.
3. The others, most invoked first (ties by name), are dealt in turn to all endpoints, sorted by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import UsageError
from loadgen.traces.model import TraceFunction, rank

RULE = (
    "--map first; then an endpoint of the same name; the rest, most invoked first, "
    "in turn over the endpoints by name"
)


@dataclass(frozen=True, slots=True)
class Assignment:
    function: str
    invocations: int
    endpoint: str
    reason: str


def assign(
    functions: Sequence[TraceFunction], endpoints: Sequence[str], override: Mapping[str, str]
) -> tuple[Assignment, ...]:
    """One assignment for each function, the most invoked first."""
    _check(functions, endpoints, override)
    ranked = sorted(functions, key=rank)
    names = sorted(endpoints)
    assignments: list[Assignment] = []
    dealt = 0
    for function in ranked:
        if function.name in override:
            endpoint, reason = override[function.name], "--map"
        elif function.name in endpoints:
            endpoint, reason = function.name, "same name"
        else:
            endpoint, reason = names[dealt % len(names)], "in turn"
            dealt += 1
        assignments.append(Assignment(function.name, function.invocations, endpoint, reason))
    return tuple(assignments)


def parse_override(text: str) -> dict[str, str]:
    """`--map`: a JSON file of {function: endpoint}, or NAME=ENDPOINT,NAME=ENDPOINT."""
    if not text.endswith(".json"):
        return dict(_pair(part) for part in text.split(","))
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--map {text} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UsageError(f"--map {text} is not JSON ({error}).") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UsageError(f"--map {text} must be an object of trace function to endpoint name.")
    return found


def _pair(part: str) -> tuple[str, str]:
    function, equals, endpoint = part.partition("=")
    if not (function.strip() and equals and endpoint.strip()):
        raise UsageError(f"--map has {part!r}; expected NAME=ENDPOINT,... or the name of a .json.")
    return function.strip(), endpoint.strip()


def _check(
    functions: Sequence[TraceFunction], endpoints: Sequence[str], override: Mapping[str, str]
) -> None:
    known = {function.name for function in functions}
    for function, endpoint in override.items():
        if function not in known:
            raise UsageError(
                f"--map names {function!r}, which is not in the replayed part of the trace; "
                "see `loadgen inspect`."
            )
        if endpoint not in endpoints:
            raise UsageError(
                f"--map sends {function!r} to {endpoint!r}, which is not deployed; "
                f"deployed are {', '.join(sorted(endpoints))}."
            )
