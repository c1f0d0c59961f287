"""The kinds of sandboxes, chosen by name."""

from __future__ import annotations

import importlib

from faasd.settings import WorkerSettings
from worker.sandbox import Sandboxes

KINDS = {
    "docker": "worker.sandboxes.docker.sandboxes:from_settings",
    "process": "worker.sandboxes.process:from_settings",
    "fake": "worker.sandboxes.fake:from_settings",
}


def make_sandboxes(settings: WorkerSettings) -> Sandboxes:
    """Sandboxes of the kind the settings name; the others are never imported."""
    module, _, function = KINDS[settings.runtime].partition(":")
    made: Sandboxes = getattr(importlib.import_module(module), function)(settings)
    return made
