"""The Python client: `AsyncClient` for programs with an event loop, `Client` for all others."""

from faasd.client.answers import (
    Attempt,
    ClusterStatus,
    Function,
    InstanceCounts,
    Invocation,
    InvokeResult,
    Key,
    LogLine,
    Placement,
    Progress,
    RevisionInfo,
    RuntimeState,
    Worker,
)
from faasd.client.asynchronous import AsyncClient
from faasd.client.synchronous import Client
from faasd.client.transport import Unreachable

__all__ = [
    "AsyncClient",
    "Attempt",
    "Client",
    "ClusterStatus",
    "Function",
    "InstanceCounts",
    "Invocation",
    "InvokeResult",
    "Key",
    "LogLine",
    "Placement",
    "Progress",
    "RevisionInfo",
    "RuntimeState",
    "Unreachable",
    "Worker",
]
