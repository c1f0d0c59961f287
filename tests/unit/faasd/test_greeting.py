"""Controller and worker prove to each other that they know the secret, and prove it to nobody else."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgpack
import pytest

from faasd.errors import FaasdError, Unauthorized
from faasd.framing import Connection
from faasd.greeting import greet_controller, greet_worker
from tests.loops import in_loop
from tests.unit.faasd.channels import Streams, connection, ends, framed

pytestmark = pytest.mark.usefixtures("each_loop")

SECRET = "a secret of the tests"


async def greet(worker_secret: str, controller_secret: str) -> tuple[Any, Any]:
    """What came of a greeting, on the worker's side and on the controller's."""
    worker, controller = await ends()

    async def greet_it() -> None:
        try:
            await greet_worker(controller, controller_secret)
        except FaasdError:
            controller.abort()
            raise

    outcomes = await asyncio.gather(
        greet_controller(worker, worker_secret), greet_it(), return_exceptions=True
    )
    worker.abort()
    controller.abort()
    return outcomes[0], outcomes[1]


@in_loop
async def test_both_sides_that_know_the_secret_let_each_other_in() -> None:
    assert await greet(SECRET, SECRET) == (None, None)


@pytest.mark.parametrize("other", ["", SECRET + " ", SECRET.upper()])
@in_loop
async def test_sides_with_different_secrets_refuse_each_other(other: str) -> None:
    for pair in ((SECRET, other), (other, SECRET)):
        worker, controller = await greet(*pair)

        assert isinstance(worker, Unauthorized)
        assert "FAASD_CLUSTER_SECRET" in worker.remedy
        assert isinstance(controller, Unauthorized)


@in_loop
async def test_a_proof_that_was_overheard_is_worth_nothing_later() -> None:
    known, (reader, writer) = await half()
    greeting = asyncio.ensure_future(greet_worker(known, SECRET))
    worker, (far_reader, far_writer) = await half()
    proving = asyncio.ensure_future(greet_controller(worker, SECRET))
    far_writer.write(framed(await read_frame(reader)))
    recorded = framed(await read_frame(far_reader))
    writer.write(recorded)
    await greeting
    proving.cancel()

    again, (_, later) = await half()
    later.write(recorded)
    with pytest.raises(Unauthorized):
        await greet_worker(again, SECRET)
    for one in (known, worker, again):
        one.abort()
    for other in (writer, far_writer, later):
        other.close()


async def half() -> tuple[Connection, Streams]:
    """A connection, and its far end as bytes."""
    near, far = socket.socketpair()
    return await connection(near), await asyncio.open_connection(sock=far)


async def read_frame(reader: asyncio.StreamReader) -> list[bytes]:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    parts: list[bytes] = msgpack.unpackb(await reader.readexactly(length))
    return parts


@in_loop
async def test_a_worker_is_not_content_with_its_own_proof_sent_back() -> None:
    worker, (far_reader, far_writer) = await half()
    greeting = asyncio.ensure_future(greet_controller(worker, SECRET))

    far_writer.write(framed([b"n" * 32]))
    _nonce, mac = await read_frame(far_reader)
    far_writer.write(framed([mac]))

    with pytest.raises(Unauthorized):
        await greeting
    worker.abort()
    far_writer.close()


@in_loop
async def test_a_controller_proves_nothing_to_who_has_not_proved_himself() -> None:
    controller, (far_reader, far_writer) = await half()
    greeting = asyncio.ensure_future(greet_worker(controller, SECRET))
    await read_frame(far_reader)

    far_writer.write(framed([b"n" * 32, b"m" * 32]))
    with pytest.raises(Unauthorized):
        await greeting
    await controller.aclose()

    assert await far_reader.read() == b""
    far_writer.close()


HELLOS = {
    "no msgpack": framed(b"\xc1"),
    "text that is none": framed(b"\xa1\xff"),
    "nothing": framed(b""),
    "a table": framed({"nonce": b""}),
    "a number": framed(1),
    "text for bytes": framed(["a", "b"]),
    "numbers": framed([1, 2]),
    "no parts": framed([]),
    "too many parts": framed([b"", b"", b""]),
    "too much": framed([b"n" * 5000, b"m"]),
    "too much announced": struct.pack(">I", 1 << 31),
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("hello", HELLOS.values(), ids=HELLOS.keys())
@pytest.mark.parametrize("greeting", [greet_worker, greet_controller])
@in_loop
async def test_a_hello_of_another_kind_is_refused(greeting: Any, hello: bytes) -> None:
    near, (_far_reader, far_writer) = await half()
    far_writer.write(hello)

    with pytest.raises(Unauthorized):
        await greeting(near, SECRET)

    near.abort()
    far_writer.close()


@pytest.mark.parametrize("said", [b"", b"\0", framed([b"n" * 32, b"m"])[:-1]])
@pytest.mark.parametrize("greeting", [greet_worker, greet_controller])
@in_loop
async def test_a_peer_that_leaves_in_mid_greeting_is_not_refused_but_gone(
    greeting: Any, said: bytes
) -> None:
    near, (_far_reader, far_writer) = await half()
    far_writer.write(said)
    far_writer.close()

    with pytest.raises(ConnectionError):
        await greeting(near, SECRET)
