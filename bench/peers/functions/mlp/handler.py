"""The perceptron of all servers: rows of 512 numbers in, rows of 10 numbers out."""

from typing import Any

import perceptron


def load(context: Any) -> Any:
    return perceptron.build()


def handle(event: Any, context: Any) -> Any:
    return {"outputs": perceptron.infer(context.state, event["inputs"])}


def handle_batch(events: list[Any], contexts: list[Any]) -> list[Any]:
    found = perceptron.infer_each(contexts[0].state, [event["inputs"] for event in events])
    return [{"outputs": outputs} for outputs in found]
