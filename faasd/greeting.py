"""How controller and worker prove to each other that they know the cluster's secret.

HMAC-SHA256 over fresh nonces of both, before anything else is believed; what follows is not
encrypted.
"""

from __future__ import annotations

import hmac
import secrets

import msgpack

from faasd.errors import Unauthorized
from faasd.framing import Connection

_GREETING = b"faasd-2"
_LONGEST_HELLO = 4096


async def greet_worker(connection: Connection, secret: str) -> None:
    """The controller's side of the proof. Raises Unauthorized, or ConnectionError."""
    nonce = secrets.token_bytes(32)
    connection.send([nonce])
    theirs, mac = await _read(connection, 2)
    if not hmac.compare_digest(mac, _mac(secret, b"worker", nonce, theirs)):
        raise Unauthorized("A worker gave a wrong cluster secret.")
    connection.send([_mac(secret, b"controller", theirs, nonce)])


async def greet_controller(connection: Connection, secret: str) -> None:
    """The worker's side of the proof. Raises Unauthorized, or ConnectionError."""
    (theirs,) = await _read(connection, 1)
    nonce = secrets.token_bytes(32)
    connection.send([nonce, _mac(secret, b"worker", theirs, nonce)])
    try:
        (mac,) = await _read(connection, 1)
    except ConnectionError:
        mac = b""
    if not hmac.compare_digest(mac, _mac(secret, b"controller", nonce, theirs)):
        raise Unauthorized(
            "Controller and worker do not share the cluster secret.",
            remedy="Give both the same FAASD_CLUSTER_SECRET (the worker's is "
            "FAASD_WORKER_CLUSTER_SECRET).",
        )


def _mac(secret: str, *parts: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"\0".join((_GREETING, *parts)), "sha256")


async def _read(connection: Connection, count: int) -> list[bytes]:
    try:
        parts = msgpack.unpackb(await connection.read(_LONGEST_HELLO))
    except ValueError:
        parts = None
    if (
        not isinstance(parts, list)
        or len(parts) != count
        or not all(isinstance(one, bytes) for one in parts)
    ):
        raise Unauthorized("The other side does not speak this protocol.")
    return parts
