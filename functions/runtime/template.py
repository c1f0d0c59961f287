"""The template: has the function's module imported and its load() done, and forks instances.

It is where a function's own code first runs. Its sandbox folder holds `sandbox.json`:
{"function", "revision", "contract", "handler", "load", "code", "path", "artifacts", "env", "cpus",
"memory_mb", "concurrency", "batch", "timeout_s", "load_timeout_s", "http", "tmp"}.

    template -> worker   ["ready", {"import_ms", "load_ms", "style"}]
                         | ["refused", {"phase", "type", "message", "traceback", "memory"}]
                         ["forked", instance id, pid] | ["failed", instance id, reason]
                         ["exited", pid, wait status]
    worker -> template   ["fork", instance id, environment of its own, if any]
                             with data, stdout, stderr descriptors
                         ["stop"]
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import socket
import sys
import time
from typing import Any

from . import frames, instance, lambda_api, openwhisk, process, relay, report
from .context import Context
from .function import Function
from .parenting import Parent

# How a function is found and called, by its contract; all imported here, before the fork.
_CONTRACTS = {
    "faasd": Function.locate,
    "openwhisk": openwhisk.locate,
    "http": relay.locate,
    "lambda": lambda_api.locate,
}
_RELAYED = ("http", "lambda")


def main(folder: str, control_fd: int, stdout: int, stderr: int) -> None:
    """Never returns."""
    os.setsid()
    process.redirect(stdout, stderr)
    process.close_all_but({control_fd})
    control = socket.socket(fileno=control_fd)
    with open(os.path.join(folder, "sandbox.json"), encoding="utf-8") as file:
        config = json.load(file)
    process.set_name("fn:" + config["function"].rpartition("/")[2])
    process.adopt_orphans()
    _enter(config)
    process.limit(config["memory_mb"])
    try:
        function, timings = _load(config)
    except BaseException as error:  # user code: whatever it raises refuses the revision
        refusal = report.describe(error)
        refusal["phase"] = getattr(error, "faasd_phase", "import")
        process.flush_output()
        frames.send_packet(control, ["refused", refusal])
        process.kill_children(keep=set())
        os._exit(1)
    process.flush_output()
    # The instance is told apart from this process only by what happens after the fork.
    parent = Parent(
        control,
        lambda request, fds: instance.main(function, fds, *request[2:]),
        function.outlives,
    )
    gc.collect()
    gc.freeze()
    frames.send_packet(control, ["ready", {**timings, "style": function.style}])
    parent.serve()


def _enter(config: dict[str, Any]) -> None:
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": config["tmp"],
        "TMPDIR": config["tmp"],
        **config["base_env"],
        **config["env"],
    }
    os.environ.clear()
    os.environ.update(env)
    # A relay runs no code of the function's, and its sandbox need not hold any, nor Python.
    if config["contract"] not in _RELAYED:
        os.chdir(config["code"])
        sys.path[:0] = [config["code"], *config["path"]]
        importlib.invalidate_caches()
    # The zygote's random state would be every function's.
    random.seed()
    sys.argv = ["faasd-function"]
    sys.dont_write_bytecode = True
    # The zygote's own streams remember the kind of file they were opened on.
    sys.stdout = _text_stream(1)
    sys.stderr = _text_stream(2)


def _text_stream(fd: int) -> Any:
    return open(fd, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _load(config: dict[str, Any]) -> tuple[Function, dict[str, float]]:
    started = time.monotonic()
    function = _CONTRACTS[config["contract"]](config)
    imported = time.monotonic()
    context = Context.without_call(config)
    try:
        function.load(context)
    except BaseException as error:
        error.faasd_phase = getattr(error, "faasd_phase", "load")  # type: ignore[attr-defined]
        raise
    loaded = time.monotonic()
    return function, {
        "import_ms": (imported - started) * 1000,
        "load_ms": (loaded - imported) * 1000,
    }
