"""`faasd status` and `drain`: the nodes and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from faasd.cli.printing import print_json, print_table, say
from faasd.cli.session import Session

if TYPE_CHECKING:
    from faasd.client import ClusterStatus
    from faasd.client.answers import Worker

_WORKER_HEADINGS = (
    *("WORKER", "STATUS", "CPUS", "GPUS", "SLOTS", "OUTSTANDING", "MB USED", "MB BUDGET", "MB"),
    "SANDBOXES",
)
_GPU_HEADINGS = (
    *("GPU", "WORKER", "NAME", "HEALTH", "INSTANCES", "PROCESSES", "%", "MB USED", "MB HELD", "MB"),
    *("UUID", "FAULT"),
)
_FUNCTION_HEADINGS = (
    *("FUNCTION", "REVISION", "WORKER", "TEMPLATE", "STARTING", "IDLE", "BUSY", "QUEUED"),
    *("EJECTED", "MB"),
)
WorkerId = Annotated[str, typer.Argument(metavar="WORKER", help="The worker's id.")]


def status(session: Session) -> None:
    """Show the nodes with their GPUs and runtimes, and the functions' instances and memory."""
    from faasd.client.answers import plain

    with session.connect() as client:
        found = client.status()
    if session.json:
        print_json(plain(found))
    else:
        _print_status(found)


def drain(session: Session, worker: WorkerId) -> None:
    """Give a worker no more invocations; it finishes what it has."""
    with session.connect() as client:
        client.drain(worker)
    if session.json:
        print_json({"id": worker, "status": "draining"})
    else:
        say(f"{worker} is draining.")


def _print_status(found: ClusterStatus) -> None:
    say(f"{found.url} is {'ready' if found.ready else 'not ready: no worker can serve'}.")
    print_table(
        _WORKER_HEADINGS,
        [
            (
                worker.id,
                worker.status,
                worker.cpus,
                len(worker.gpus),
                worker.slots,
                worker.outstanding,
                float(worker.memory_used_mb),
                float(worker.memory_budget_mb),
                float(worker.memory_mb),
                _counts(worker.sandboxes),
            )
            for worker in found.workers
        ],
    )
    print()
    print_table(_GPU_HEADINGS, [row for worker in found.workers for row in _gpu_rows(worker)])
    print()
    print_table(
        ("RUNTIME", "WORKER", "STATE", "MB", "LIBRARIES"),
        [
            (one.name, worker.id, one.state, float(one.memory_mb), " ".join(one.libraries))
            for worker in found.workers
            for one in worker.runtimes
        ],
    )
    print()
    print_table(
        _FUNCTION_HEADINGS,
        [
            (
                one.function,
                one.revision,
                worker.id,
                one.template,
                one.starting,
                one.idle,
                one.busy,
                one.queued,
                one.ejected,
                float(one.memory_mb),
            )
            for worker in found.workers
            for one in worker.functions
        ],
    )


def _gpu_rows(worker: Worker) -> Iterator[tuple[object, ...]]:
    for gpu in worker.gpus:
        yield (
            gpu.label,
            worker.id,
            gpu.name,
            gpu.health,
            gpu.instances,
            _or_unknown(gpu.processes),
            _or_unknown(gpu.utilisation),
            float(gpu.used_mb),
            float(gpu.held_mb),
            float(gpu.memory_mb),
            gpu.uuid,
            gpu.fault,
        )
    if not worker.gpus:
        yield ("none", worker.id, *("-",) * (len(_GPU_HEADINGS) - 3), worker.gpu_fault)


def _counts(sandboxes: Mapping[str, int]) -> str:
    """The states that any sandbox is in: "3 claimed, 2 bare"."""
    return ", ".join(f"{count} {state}" for state, count in sandboxes.items() if count)


def _or_unknown(value: object) -> object:
    """What the driver does not tell is no zero."""
    return "-" if value is None else value
