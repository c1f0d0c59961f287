"""Sends the words of a text one by one, as a language model would send its tokens."""

import time
from collections.abc import Iterator
from typing import Any

MAX_DELAY_S = 10


def handle(event: Any, context: Any) -> Iterator[str]:
    text, delay_s = _text_and_delay(event)
    for number, word in enumerate(text.split()):
        if number and delay_s:
            time.sleep(delay_s)
        yield f"{word} "


def _text_and_delay(event: Any) -> tuple[str, float]:
    match event:
        case str(text):
            return text, 0.0
        case {"text": str(text), **rest}:
            delay_s = rest.get("delay_s", 0)
            if isinstance(delay_s, int | float) and 0 <= delay_s <= MAX_DELAY_S:
                return text, float(delay_s)
            raise ValueError(f"delay_s must be a number from 0 to {MAX_DELAY_S}.")
    raise ValueError('Send a text, or {"text": "...", "delay_s": 0.1}.')
