"""The floor: a bare protocol on uvloop. `protocol_server.py CASE PORT flat|hop`.

`flat` answers with the body, and parses nothing. `hop` has a forked process decode and encode it:
frames of msgpack over a socket pair, up to 16 ahead, no queue, no limits, no metrics, no errors.
Both take one request at a time from each connection.
"""

import asyncio
import json
import os
import re
import socket
import struct
import sys
from collections import deque

import msgpack
import uvloop

PORT, KIND = int(sys.argv[2]), sys.argv[3]
LENGTH = struct.Struct(">I")
AHEAD = 16
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


def frames(buffer: bytes) -> tuple[list, bytes]:
    found, at = [], 0
    while len(buffer) - at >= 4:
        (length,) = LENGTH.unpack_from(buffer, at)
        if len(buffer) - at - 4 < length:
            break
        at += 4 + length
        found.append(msgpack.unpackb(memoryview(buffer)[at - length : at]))
    return found, buffer[at:]


def instance(sock: socket.socket) -> None:
    pack, rest = msgpack.Packer().pack, b""
    while data := sock.recv(65_536):
        calls, rest = frames(rest + data)
        for call, body in calls:
            answer = pack([call, json.dumps(json.loads(body)).encode()])
            sock.sendall(LENGTH.pack(len(answer)) + answer)
    os._exit(0)


class Link(asyncio.Protocol):
    def __init__(self) -> None:
        self.room, self.rest, self.number = AHEAD, b"", 0
        self.waiting, self.running, self.out = deque(), {}, []
        self.pack = msgpack.Packer().pack

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def call(self, front: asyncio.Protocol, body: bytes) -> None:
        if not self.room:
            self.waiting.append((front, body))
            return
        self.room -= 1
        self.number += 1
        self.running[self.number] = front
        frame = self.pack([self.number, body])
        if not self.out:
            asyncio.get_running_loop().call_soon(self.flush)
        self.out.append(LENGTH.pack(len(frame)) + frame)

    def flush(self) -> None:
        self.transport.write(b"".join(self.out))
        self.out = []

    def data_received(self, data: bytes) -> None:
        answers, self.rest = frames(self.rest + data)
        for call, body in answers:
            self.room += 1
            self.running.pop(call).answer(body)
            if self.waiting:
                self.call(*self.waiting.popleft())


SIZE = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Front(asyncio.Protocol):
    def __init__(self, link: Link | None) -> None:
        self.link = link
        self.data = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        size = SIZE.search(self.data, 0, end + 2)
        if end < 0 or (size and len(self.data) < end + 4 + int(size[1])):
            return
        body, self.data = self.data[end + 4 :], b""
        if self.link is None:
            self.answer(body)
        else:
            self.link.call(self, body)

    def answer(self, body: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(REPLY % (len(body), body))


async def serve(ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    link = None
    if KIND == "hop":
        _, link = await loop.create_unix_connection(Link, sock=ours)
    await loop.create_server(lambda: Front(link), "127.0.0.1", PORT)
    await asyncio.Event().wait()


near, far = socket.socketpair()
if KIND == "hop" and os.fork() == 0:
    near.close()
    instance(far)
far.close()
uvloop.run(serve(near))
