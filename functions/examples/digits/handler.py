"""Handwritten digits, by a logistic regression that is fitted while the function loads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

EVERY = 6  # each sixth sample is held out
PIXELS = 64
BRIGHTEST = 16


@dataclass(frozen=True, slots=True)
class Reader:
    """The fitted model, and the samples that were kept from it."""

    model: LogisticRegression
    samples: np.ndarray
    targets: np.ndarray


def load(context: Any) -> Reader:
    pixels, targets = load_digits(return_X_y=True)
    pixels /= BRIGHTEST
    held_out = np.arange(len(pixels)) % EVERY == 0
    model = LogisticRegression(max_iter=200).fit(pixels[~held_out], targets[~held_out])
    reader = Reader(model, pixels[held_out], targets[held_out])
    accuracy = model.score(reader.samples, reader.targets)
    print(f"Reads {accuracy:.1%} of {len(reader.samples)} held-out samples right.")
    return reader


def handle(event: Any, context: Any) -> Any:
    reader: Reader = context.state
    last = len(reader.samples) - 1
    match event:
        case {"index": int(index)} if 0 <= index <= last:
            return _read(reader, reader.samples[index]) | {"target": int(reader.targets[index])}
        case {"pixels": [*pixels]} if len(pixels) == PIXELS and all(map(_is_brightness, pixels)):
            return _read(reader, np.array(pixels) / BRIGHTEST)
    usage = (
        f'Send {{"pixels": [...]}} with {PIXELS} numbers from 0 to {BRIGHTEST}, row by row, '
        f'or {{"index": n}} with n from 0 to {last} for a held-out sample.'
    )
    return context.response({"error": usage}, status=400)


def _is_brightness(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= BRIGHTEST


def _read(reader: Reader, pixels: np.ndarray) -> dict[str, Any]:
    probabilities = reader.model.predict_proba(pixels.reshape(1, -1))[0]
    return {
        "digit": int(probabilities.argmax()),
        "probabilities": [round(float(p), 4) for p in probabilities],
    }
