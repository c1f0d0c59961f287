"""Forks an instance from a loaded example, as a template does, and reports on it as JSON.

A program of its own, since a fork wants a process with a single thread.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.unit.examples.loading import Context, example_event, import_handler, spec_of


def main(name: str) -> None:
    spec = spec_of(name)
    if "torch" in spec.runtime:
        import torch

        torch.set_num_threads(1)
    module, context = import_handler(name), Context()
    context.state = module.load(context)
    report: dict[str, Any] = {"threads": len(list(Path("/proc/self/task").iterdir()))}
    gc.freeze()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(_serve(module, context, example_event(spec))).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        report |= json.load(stream)
    os.waitpid(child, 0)
    print(json.dumps(report))


def _serve(module: Any, context: Context, event: Any) -> dict[str, Any]:
    if hasattr(module, "attach"):
        context.state = module.attach(context.state, context)
    answer = module.handle(event, context)
    return {
        "answer": json.loads(json.dumps(answer, default=lambda value: value.tolist())),
        "private_mb": _private_mb(),
    }


def _private_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    main(sys.argv[1])
