"""Gives back what it was given: what is left is the platform's own share of an invocation."""

from typing import Any


def handle(event: Any, context: Any) -> Any:
    return event
