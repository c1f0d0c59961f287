"""What a sandbox's packet filter closes, and that the kernel takes it."""

from __future__ import annotations

import ipaddress
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from functions.runtime import firewall

ROOT = Path(firewall.__file__).parents[2]
FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 203.0.112.0/23 2 0 2
        |-- 203.0.112.0
           /24 link UNICAST
        |-- 203.0.113.7
           /32 host LOCAL
        |-- 203.0.113.255
           /32 link BROADCAST
Local:
  +-- 127.0.0.0/8 2 0 2
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
"""


def word(address: str) -> str:
    """An address as the kernel prints it in its tables: as it lies in memory."""
    return f"{struct.unpack('=I', ipaddress.IPv4Address(address).packed)[0]:08X}"


ROUTE = (
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    + "".join(
        f"eth0\t{word(to)}\t{word(gateway)}\t0003\t0\t0\t0\t{word(mask)}\t0\t0\t0\n"
        for to, gateway, mask in (
            ("0.0.0.0", "198.51.100.1", "0.0.0.0"),
            ("198.51.100.0", "0.0.0.0", "255.255.255.0"),
            ("192.88.99.0", "198.51.100.9", "255.255.255.0"),
        )
    )
)


def reaches(kind: str, address: str) -> bool:
    closed = firewall.denied(kind, machine=FIB_TRIE, routes=ROUTE)
    wanted = ipaddress.ip_address(address)
    return not any(wanted in network for network in closed)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.9.9"]
)
def test_public_addresses_are_on_the_internet(address: str) -> None:
    assert reaches("internet", address)


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.0.1"),
        *("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
        *("0.0.0.0", "127.0.0.1", "224.0.0.251", "239.255.255.250", "255.255.255.255"),
        *("::1", "fe80::1", "fc00::1", "fd00:ec2::254", "64:ff9b::a00:1", "2001:db8::1"),
    ],
)
def test_what_is_not_public_is_not_on_the_internet(address: str) -> None:
    assert not reaches("internet", address)


def test_the_machine_and_the_sandboxes_own_network_are_not_on_the_internet() -> None:
    assert not reaches("internet", "203.0.113.7")
    assert reaches("internet", "203.0.113.8")
    assert not reaches("internet", "198.51.100.200")
    assert reaches("internet", "192.88.99.1")


def test_a_named_network_leads_everywhere_but_to_the_clouds_metadata() -> None:
    reached = ("10.0.0.1", "203.0.113.7", "198.51.100.200", "239.1.1.1", "fd00::1", "2001:db8::1")
    assert all(reaches("named", address) for address in reached)
    closed = ("169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254")
    assert not any(reaches("named", address) for address in closed)


def test_the_kernels_own_tables_are_understood() -> None:
    assert "127.0.0.1" in firewall.local_addresses(Path("/proc/net/fib_trie").read_text())
    for network in firewall.attached_networks(Path("/proc/net/route").read_text()):
        assert ipaddress.ip_network(network).prefixlen


def in_a_network_namespace(code: str) -> str:
    """What the code prints where it may do anything to a network of its own."""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c"]
    try:
        allowed = subprocess.run([*command, ""], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if allowed.returncode:
        pytest.skip(f"no namespaces for this user: {allowed.stderr.decode().strip()}")
    head = "from functions.runtime import firewall\nkernel = firewall.connect()\n"
    ended = subprocess.run(
        [*command, head + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if "Protocol not supported" in ended.stderr:
        pytest.skip("this kernel has no nf_tables")
    assert not ended.returncode, ended.stderr
    return ended.stdout


def test_the_kernel_takes_a_filter_and_another_one_in_its_place() -> None:
    code = """
    for kind in ("internet", "named", "internet"):
        program = firewall.build(firewall.denied(kind, machine="", routes=""))
        firewall.load(kernel, program)
        print(kind)
    """

    assert in_a_network_namespace(code).split() == ["internet", "named", "internet"]


def test_what_the_kernel_refuses_is_an_error() -> None:
    code = """
    program = firewall.build([]).replace(b"reject", b"object")
    try:
        firewall.load(kernel, program)
    except OSError as error:
        print(error.strerror)
    """

    assert in_a_network_namespace(code).startswith("the kernel's packet filter (nf_tables): ")


def test_without_the_right_to_it_nothing_is_closed_and_that_is_an_error() -> None:
    code = """
    import os
    import ctypes, struct
    ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))
    try:
        firewall.load(firewall.connect(), firewall.build([]))
    except PermissionError as error:
        print(error.strerror)
    """

    assert "Operation not permitted" in in_a_network_namespace(code)
