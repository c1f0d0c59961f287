"""The mean and spread of a list of numbers; several callers are answered by one call."""

import statistics
from typing import Any

LARGEST = 1e15


def handle(events: list[Any], contexts: list[Any]) -> list[Any]:
    return [
        _describe(event, len(events)) if _has_values(event) else _refuse(context)
        for event, context in zip(events, contexts, strict=True)
    ]


def _has_values(event: Any) -> bool:
    match event:
        case {"values": [_, *_] as values}:
            return all(map(_is_summable, values))
    return False


def _is_summable(value: Any) -> bool:
    # Anything that made the arithmetic fail would fail the other callers of the batch, too.
    return isinstance(value, int | float) and -LARGEST <= value <= LARGEST


def _describe(event: Any, batch_size: int) -> dict[str, Any]:
    values = event["values"]
    return {
        "count": len(values),
        "mean": statistics.fmean(values),
        "stdev": statistics.pstdev(values),
        "batch_size": batch_size,
    }


def _refuse(context: Any) -> Any:
    return context.response(
        {"error": 'Send {"values": [1, 2, ...]}, none beyond 1e15.'}, status=400
    )
