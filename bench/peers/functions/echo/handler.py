"""Answers what it was sent: a JSON value, or bytes."""

from typing import Any


def handle(event: Any, context: Any) -> Any:
    return event
