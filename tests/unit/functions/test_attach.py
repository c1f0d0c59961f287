"""What becomes of a function's state in an instance, before it serves."""

from __future__ import annotations

from typing import Any

import pytest

from functions.runtime.context import Context
from functions.runtime.function import Function


def attached(state: Any, *, gpus: float, attach: Any = None) -> Any:
    """The state of an instance, of what `load()` returned."""
    config = {"function": "default/f", "revision": "r1", "cpus": 1, "artifacts": {}, "gpus": gpus}
    function = Function(config, lambda event, _context: event, None, attach)
    function.state = state
    function.attach(Context.without_call(config, state))
    return function.state


def model() -> Any:
    """A model that notes where it was moved to; there need be no such device."""
    torch = pytest.importorskip("torch")

    class Moved(torch.nn.Module):  # type: ignore[misc, name-defined]
        device = "cpu"

        def to(self, device: str) -> Moved:
            self.device = device
            return self

    return Moved()


def test_a_model_is_moved_to_the_gpu_that_was_granted() -> None:
    assert attached(model(), gpus=0.5).device == "cuda"


def test_a_model_stays_where_it_is_without_a_gpu() -> None:
    assert attached(model(), gpus=0).device == "cpu"


def test_a_function_that_attaches_for_itself_is_left_alone() -> None:
    seen = attached(model(), gpus=1, attach=lambda state, context: (state, context.device))

    assert (seen[0].device, seen[1]) == ("cpu", "cuda")


def test_what_is_no_model_is_left_alone() -> None:
    assert attached({"model": "somewhere inside"}, gpus=1) == {"model": "somewhere inside"}
