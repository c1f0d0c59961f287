"""The zygote: imports a runtime's libraries once, then forks templates on request.

Runs no code of any function and holds no secret. Requests come from the worker on one inherited
control socket:

    worker -> zygote   ["preload", [module, ...]]           first, once
                       ["fork", sandbox id, folder]         with control, stdout, stderr descriptors
                       ["stop"]
    zygote -> worker   ["ready", {"import_ms", "modules", "threads"}] | ["broken", module, traceback]
                       ["forked", sandbox id, pid] | ["failed", sandbox id, reason]
                       ["exited", pid, wait status]
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import socket
import sys
import time
import traceback
from typing import Any

from . import frames, process, template
from .parenting import Parent


def main(control_fd: int) -> None:
    process.die_with_parent(os.getppid())
    os.setsid()
    process.set_name("faasd-zygote")
    process.usual_descriptors()
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    request, _fds = frames.recv_packet(control)
    ready = preload(request[1])
    if ready[0] == "broken":
        frames.send_packet(control, ready)
        sys.exit(1)
    parent = Parent(control, _become_template)
    frames.send_packet(control, ready)
    process.adopt_orphans()
    # From here on the end of the worker is seen on the control socket, so that children are
    # ended in order; being killed outright would leave a function's own children behind.
    process.outlive_parent()
    parent.serve()


def preload(modules: list[str]) -> list[Any]:
    """Import the libraries and make ready to fork: the packet that says how it went."""
    started = time.monotonic()
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:  # any library may fail in any way; the worker tells the operator
            return ["broken", module, traceback.format_exc()[-16_000:]]
    _settle_torch()
    gc.collect()
    gc.freeze()
    process.gather_pages()
    report = {
        "import_ms": (time.monotonic() - started) * 1000,
        "modules": len(sys.modules),
        "threads": len(os.listdir("/proc/self/task")),
    }
    return ["ready", report]


def _settle_torch() -> None:
    """One thread before any fork; and what torch.load sets up at its first use, here once for all."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.set_num_threads(1)
    saved = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, saved)
    saved.seek(0)
    torch.load(saved, weights_only=True)


def _become_template(request: list[Any], fds: list[int]) -> None:
    control, stdout, stderr = fds
    template.main(request[2], control, stdout, stderr)
