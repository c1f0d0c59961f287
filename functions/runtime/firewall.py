"""What a function on a network cannot reach, as a packet filter of its sandbox.

The filter (nf_tables) lies in the sandbox's own network namespace, where the zygote server puts it
before any code of the function runs; the function has no right to change it. Routes would not do: a socket that is
bound to an interface is sent out even where a route prohibits it, and broadcasts follow none.

    internet   public IPv4 addresses, and nothing of the machine, of private networks, of the cloud
    named      everything but the cloud's metadata

Questions to nameservers are let through for the root user: in a sandbox that is the engine's own
name service, which asks the machine's nameservers for its containers.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from typing import Union

KINDS = ("none", "internet", "named")

# Where clouds tell a machine its credentials, or answer it alone.
METADATA = (
    "169.254.0.0/16",
    "168.63.129.16/32",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "fd00:ec2::254/128",
    "fd00:c1::a9fe:a9fe/128",
    "fd20:ce::254/128",
)
# This host, private and shared networks, link-local, protocols' and benchmarks' own, multicast,
# reserved with broadcast; and IPv6 whole, which the network does not have.
NOT_PUBLIC = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/0",
)

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_TABLE, _CHAIN, _DENIED = "faasd", "output", "denied"
_NETLINK_NETFILTER, _SUBSYSTEM = 12, 10
_BATCH_BEGIN, _BATCH_END, _ERROR = 16, 17, 2
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = (_SUBSYSTEM << 8 | n for n in (0, 2, 3, 6))
_REQUEST, _ACK, _CREATE, _APPEND, _NESTED = 0x1, 0x4, 0x400, 0x800, 0x8000
_INET, _LOCAL_OUT = 1, 3
_IPV4, _IPV6 = 2, 10
_META_OIF, _META_SKUID, _META_NFPROTO, _META_L4PROTO = 5, 10, 15, 16
_TCP, _UDP, _NAME_SERVICE = 6, 17, 53
# Offset of the destination in a packet's header.
_DESTINATION = {_IPV4: 16, _IPV6: 24}
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _VERDICT_REGISTER, _REGISTER = 0, 0, 1
_ACCEPT, _GOTO = 1, -4
_ICMPX, _ADMINISTRATIVELY = 2, 3
_LOOPBACK_INDEX = 1


def denied(kind: str, *, machine: str, routes: str) -> list[Network]:
    """What is out of reach on this kind of network.

    `machine` is the machine's /proc/PID/net/fib_trie, `routes` the sandbox's /proc/PID/net/route.
    """
    if kind == "named":
        found = list(METADATA)
    else:
        found = [*METADATA, *NOT_PUBLIC, *local_addresses(machine), *attached_networks(routes)]
    return list(dict.fromkeys(ipaddress.ip_network(one) for one in found))


def local_addresses(fib_trie: str) -> list[str]:
    """The IPv4 addresses that a machine itself answers at."""
    found, address = [], ""
    for line in fib_trie.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            found.append(address)
    return found


def attached_networks(route: str) -> list[str]:
    """The IPv4 networks that interfaces are in: those that are reached without a gateway."""
    found = []
    for line in route.splitlines()[1:]:
        destination, gateway, mask = (int(line.split()[n], 16) for n in (1, 2, 7))
        if not gateway and mask:
            # Words as they lie in memory.
            address, bits = (socket.inet_ntoa(struct.pack("=I", n)) for n in (destination, mask))
            found.append(f"{address}/{bits}")
    return found


def build(networks: Iterable[Network]) -> bytes:
    """The messages that put the filter in the place of a former one, all or nothing."""
    table = _attribute(1, _text(_TABLE))
    hook = _attribute(1, _word(_LOCAL_OUT)) + _attribute(2, _word(0))
    base = _attribute(4, hook, nested=True) + _attribute(7, _text("filter"))
    messages = [
        _message(_BATCH_BEGIN, 0, b"", family=0, resource=_SUBSYSTEM),
        # A table must be there to be deleted.
        _message(_NEW_TABLE, _CREATE, table),
        _message(_DELETE_TABLE, 0, table),
        _message(_NEW_TABLE, _CREATE, table),
        _message(_NEW_CHAIN, _CREATE, table + _attribute(3, _text(_CHAIN)) + base),
        _message(_NEW_CHAIN, _CREATE, table + _attribute(3, _text(_DENIED))),
        _rule(_CHAIN, _meta(_META_OIF), _equals(_host(_LOOPBACK_INDEX)), _verdict(_ACCEPT)),
    ]
    messages += [_rule(_CHAIN, *_to(network), _verdict(_GOTO, _DENIED)) for network in networks]
    messages += [_rule(_DENIED, *_root_asks_names(protocol)) for protocol in (_UDP, _TCP)]
    messages += [
        _rule(_DENIED, _reject(), flags=_ACK),
        _message(_BATCH_END, 0, b"", family=0, resource=_SUBSYSTEM),
    ]
    return b"".join(messages)


def connect() -> socket.socket:
    """A socket to the packet filter of the network namespace of this process. Raises OSError."""
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        raise _failed(error.errno or errno.EIO) from None


def load(kernel: socket.socket, program: bytes) -> None:
    """Put the filter in force, in the namespace that the socket is of. Raises OSError."""
    try:
        kernel.send(program)
        # Answered before `send` returns: by the first fault, or for the last rule.
        answer = kernel.recv(65_536, socket.MSG_DONTWAIT)
    except OSError as error:
        raise _failed(error.errno or errno.EIO) from None
    _length, kind, _flags, _sequence, _port, result = struct.unpack_from("=IHHIIi", answer)
    if kind != _ERROR or result:
        raise _failed(-result or errno.EPROTO)


def _failed(number: int) -> OSError:
    return OSError(number, f"the kernel's packet filter (nf_tables): {os.strerror(number)}")


def _root_asks_names(protocol: int) -> list[bytes]:
    port = _payload(_TRANSPORT_HEADER, offset=2, size=2)
    return [
        *(_meta(_META_SKUID), _equals(_host(0))),
        *(_meta(_META_L4PROTO), _equals(bytes([protocol]))),
        *(port, _equals(struct.pack(">H", _NAME_SERVICE))),
        _verdict(_ACCEPT),
    ]


def _to(network: Network) -> list[bytes]:
    """The packet's destination is in this network."""
    family = _IPV4 if network.version == 4 else _IPV6
    matched = [_meta(_META_NFPROTO), _equals(bytes([family]))]
    if not network.prefixlen:
        return matched
    address, mask = network.network_address.packed, network.netmask.packed
    keep_prefix = (
        _attribute(1, _word(_REGISTER))
        + _attribute(2, _word(_REGISTER))
        + _attribute(3, _word(len(mask)))
        + _attribute(4, _attribute(1, mask), nested=True)
        + _attribute(5, _attribute(1, bytes(len(mask))), nested=True)
    )
    return [
        *matched,
        _payload(_NETWORK_HEADER, offset=_DESTINATION[family], size=len(address)),
        _expression("bitwise", keep_prefix),
        _equals(address),
    ]


def _meta(key: int) -> bytes:
    return _expression("meta", _attribute(1, _word(_REGISTER)) + _attribute(2, _word(key)))


def _payload(header: int, *, offset: int, size: int) -> bytes:
    numbers = (_REGISTER, header, offset, size)
    return _expression(
        "payload", b"".join(_attribute(n, _word(word)) for n, word in enumerate(numbers, 1))
    )


def _equals(value: bytes) -> bytes:
    compared = _attribute(1, _word(_REGISTER)) + _attribute(2, _word(_EQUAL))
    return _expression("cmp", compared + _attribute(3, _attribute(1, value), nested=True))


def _verdict(code: int, chain: str = "") -> bytes:
    verdict = _attribute(1, struct.pack(">i", code))
    if chain:
        verdict += _attribute(2, _text(chain))
    data = _attribute(2, _attribute(2, verdict, nested=True), nested=True)
    return _expression("immediate", _attribute(1, _word(_VERDICT_REGISTER)) + data)


def _reject() -> bytes:
    """Say so at once, rather than let a connection wait for its timeout."""
    code = _attribute(2, bytes([_ADMINISTRATIVELY]))
    return _expression("reject", _attribute(1, _word(_ICMPX)) + code)


def _rule(chain: str, *expressions: bytes, flags: int = 0) -> bytes:
    place = _attribute(1, _text(_TABLE)) + _attribute(2, _text(chain))
    items = b"".join(_attribute(1, one, nested=True) for one in expressions)
    listed = _attribute(4, items, nested=True)
    return _message(_NEW_RULE, _CREATE | _APPEND | flags, place + listed)


def _expression(name: str, data: bytes) -> bytes:
    return _attribute(1, _text(name)) + _attribute(2, data, nested=True)


def _message(
    kind: int, flags: int, attributes: bytes, *, family: int = _INET, resource: int = 0
) -> bytes:
    body = struct.pack(">BBH", family, 0, resource) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, 0, 0) + body


def _attribute(kind: int, data: bytes, *, nested: bool = False) -> bytes:
    header = struct.pack("=HH", 4 + len(data), kind | (_NESTED if nested else 0))
    return header + data + bytes(-len(data) % 4)


def _word(number: int) -> bytes:
    return struct.pack(">I", number)


def _host(number: int) -> bytes:
    """A number as the kernel holds it in a register, in the machine's own order."""
    return struct.pack("=I", number)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"
