"""What functions reach on their networks, and what they cannot reach, on a real engine."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from pip._internal.models.index import PyPI  # type: ignore[import-untyped, unused-ignore]

from functions.runtime.firewall import local_addresses
from tests.docker.engine import RUN, DockerPlatform, docker, inspect, left, new_node
from tests.platform import refused

NAMED, ABSENT = f"{RUN}-named", f"{RUN}-absent"
BROADCASTS = ("255.255.255.255", "224.0.0.1", "239.255.255.250")
NOWHERE_NEAR = "198.51.100.1"  # of documentation: public in form, and nobody's
METADATA = "169.254.169.254"

# A probe of the network: each way of sending is a way around some fence.
PROBE = """
import errno, os, socket, struct, threading

def gateway():
    for line in open("/proc/net/route").read().splitlines()[1:]:
        destination, address = line.split()[1:3]
        if int(destination, 16) == 0:
            return socket.inet_ntoa(struct.pack("=I", int(address, 16)))

def own():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("198.51.100.1", 9))
        return sock.getsockname()[0]

def options(sock, way):
    sock.settimeout(5)
    if way == "bound":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    elif way == "unicast_if":
        index = socket.if_nametoindex("eth0")
        sock.setsockopt(socket.IPPROTO_IP, 50, struct.pack(">I", index))
        if sock.type == socket.SOCK_DGRAM:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own()))
    elif way == "from":
        sock.bind((own(), 0))

def tcp(address, port, way="plain"):
    with socket.socket() as sock:
        options(sock, way)
        sock.connect((address, port))
        return sock.recv(100).decode()

def udp(address, port, way="plain"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        options(sock, way)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(f"udp to {address} {way}".encode(), (address, port))
        return "sent"

def resolve(name):
    return sorted({one[4][0] for one in socket.getaddrinfo(name, 443, socket.AF_INET)})

def users():
    found = set()
    for one in filter(str.isdigit, os.listdir("/proc")):
        lines = open("/proc/" + one + "/status").read().splitlines()
        found.update(int(uid) for line in lines if line.startswith("Uid:") for uid in line.split()[1:])
    return sorted(found)

def listen():
    server = socket.create_server(("0.0.0.0", 0))
    def serve():
        while True:
            with server.accept()[0] as sock:
                sock.sendall(b"a sandbox")
    threading.Thread(target=serve, daemon=True).start()
    return [own(), server.getsockname()[1]]

def attempt(what, *arguments):
    try:
        return globals()[what](*arguments)
    except socket.gaierror:
        return "unknown name"
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
"""
HANDLER = PROBE + "def handle(event, context):\n    return [attempt(*one) for one in event]\n"
# Looks around before anything else, and fast, then serves what it saw.
START = """
for address; do
    (exec 3<>/dev/tcp/$address/$0 && echo reached || echo failed) 2>/dev/null >>/tmp/seen
done
exec python3 server.py
"""
SERVER = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(open("/tmp/seen").read().split()).encode())
    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


class Listener:
    """TCP and UDP on one port of every address of this machine; notes who comes."""

    def __init__(self) -> None:
        self._tcp = socket.create_server(("0.0.0.0", 0))
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("0.0.0.0", self.port))
        self.heard: list[str] = []
        self._threads = [threading.Thread(target=one) for one in (self._accept, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Everything that came has been heard then."""
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.recv(100)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", ("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join()
        self._tcp.close()
        self._udp.close()

    def _accept(self) -> None:
        while True:
            sock, peer = self._tcp.accept()
            with sock:
                if peer[0] == "127.0.0.1":
                    return
                self.heard.append(f"tcp from {peer[0]}")
                sock.sendall(b"the machine")

    def _receive(self) -> None:
        while (message := self._udp.recv(100)) != b"end":
            self.heard.append(message.decode())


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, runtime_images: dict[str, str]
) -> Iterator[DockerPlatform]:
    del runtime_images
    node = new_node()
    docker("network", "create", "--label", f"faasd.node={node}", NAMED)
    allowed = f'["{NAMED}", "{ABSENT}"]'
    env = {"FAASD_WORKER_ALLOWED_NETWORKS": allowed}
    try:
        with DockerPlatform(tmp_path_factory.mktemp("network"), env=env) as running:
            for name, network in (("inside", "none"), ("outside", "internet"), ("named", NAMED)):
                running.must_deploy(name, HANDLER, network=network)
            yield running
    finally:
        docker("network", "rm", NAMED)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A function's name of the test's own."""
    return "f" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


def probe(platform: DockerPlatform, function: str, *attempts: tuple[Any, ...]) -> Any:
    answer = platform.post(f"/invoke/{function}", list(attempts))
    assert answer.status == 200, answer.body
    return answer.json()


def addresses() -> list[str]:
    """This machine's own, but for the loopback."""
    found = local_addresses(Path("/proc/net/fib_trie").read_text())
    return [one for one in dict.fromkeys(found) if not one.startswith("127.")]


def test_without_a_network_there_is_only_the_loopback(platform: DockerPlatform, name: str) -> None:
    code = "import socket\ndef handle(event, context):\n    return socket.if_nameindex()\n"
    platform.must_deploy(name, code)

    assert [interface for _index, interface in platform.post(f"/invoke/{name}", {}).json()] == [
        "lo"
    ]
    assert probe(platform, "inside", ("tcp", addresses()[0], 9)) == ["ENETUNREACH"]


@pytest.mark.parametrize("way", ["plain", "bound", "unicast_if", "from"])
def test_the_internet_does_not_lead_to_the_machine(platform: DockerPlatform, way: str) -> None:
    with Listener() as listener:
        (gateway,) = probe(platform, "outside", ("gateway",))
        near = [gateway, *addresses()]

        seen = probe(
            platform,
            "outside",
            *(("tcp", one, listener.port, way) for one in near),
            *(("udp", one, listener.port, way) for one in (*near, *BROADCASTS)),
        )

        assert gateway in near[1:]
        assert seen[: len(near)] == ["EHOSTUNREACH"] * len(near)
        assert set(seen[len(near) :]) == {"EPERM"}

    assert listener.heard == []


@pytest.mark.parametrize("way", ["plain", "bound", "unicast_if", "from"])
def test_the_probe_does_reach_the_machine_where_nothing_is_closed(
    platform: DockerPlatform, way: str
) -> None:
    with Listener() as listener:
        (gateway,) = probe(platform, "named", ("gateway",))

        seen = probe(
            platform,
            "named",
            ("tcp", gateway, listener.port, way),
            *(("udp", one, listener.port, way) for one in (gateway, BROADCASTS[0])),
        )

        assert seen == ["the machine", "sent", "sent"]

    assert {f"udp to {gateway} {way}", f"udp to {BROADCASTS[0]} {way}"} < set(listener.heard)


def test_the_internet_leads_to_public_addresses_only(platform: DockerPlatform) -> None:
    private = ("10.1.2.3", "172.30.1.2", "192.168.1.2", "100.64.1.2", METADATA, "100.100.100.200")

    seen = probe(
        platform,
        "outside",
        ("udp", NOWHERE_NEAR, 53),
        *(("udp", address, 53) for address in private),
    )

    assert seen == ["sent", *["EPERM"] * len(private)]


@pytest.mark.parametrize("host", ["example.com", PyPI.netloc, "nothing.invalid"])
def test_names_resolve_as_on_the_machine(platform: DockerPlatform, host: str) -> None:
    try:
        known = bool(socket.getaddrinfo(host, 443, socket.AF_INET))
    except socket.gaierror:
        known = False

    (seen,) = probe(platform, "outside", ("resolve", host))

    assert isinstance(seen, list) if known else seen == "unknown name"


@pytest.mark.parametrize("host", ["example.com", PyPI.netloc])
def test_what_the_machine_reaches_is_reached(platform: DockerPlatform, host: str) -> None:
    try:
        address = socket.getaddrinfo(host, 443, socket.AF_INET)[0][4]
        socket.create_connection((str(address[0]), 443), 5).close()
    except OSError as error:
        pytest.skip(f"the machine does not reach {host}: {error}")
    code = """
import socket
def handle(event, context):
    with socket.create_connection((event, 443), 20) as sock:
        return sock.getpeername()[1]
"""
    platform.must_deploy("reach", code, network="internet")

    assert platform.post("/invoke/reach", host).json() == 443


def test_sandboxes_on_the_internet_do_not_reach_each_other(
    platform: DockerPlatform, name: str
) -> None:
    platform.must_deploy(name, HANDLER, network="internet", scaling={"min_instances": 1})
    ((address, port),) = probe(platform, name, ("listen",))

    assert probe(platform, name, ("tcp", address, port)) == ["a sandbox"]
    ways = [("tcp", address, port, way) for way in ("plain", "bound", "unicast_if")]
    assert probe(platform, "outside", *ways) == ["EHOSTUNREACH"] * 3


def test_a_server_on_a_named_network_is_reached_by_name(
    platform: DockerPlatform,
) -> None:
    server = f"{RUN}-server-{secrets.token_hex(3)}"
    code = (
        "import socket; s = socket.create_server(('', 80))\n"
        "while True: s.accept()[0].sendall(b'served')"
    )
    labels = ("--label", f"faasd.node={RUN}-server")
    image = "faasd-runtime-python:latest"
    try:
        command = (image, "python3", "-c", code)
        docker("run", "--detach", "--init", "--name", server, "--network", NAMED, *labels, *command)
        settings = inspect("container", server)[0]["NetworkSettings"]["Networks"][NAMED]
        docker("exec", server, "python3", "-c", WAIT)

        assert probe(platform, "named", ("tcp", server, 80)) == ["served"]
        assert probe(platform, "outside", ("tcp", settings["IPAddress"], 80)) == ["EHOSTUNREACH"]
        assert probe(platform, "outside", ("tcp", server, 80)) == ["unknown name"]
    finally:
        with contextlib.suppress(Exception):
            docker("rm", "--force", server)


WAIT = """
import socket
while socket.socket().connect_ex(("127.0.0.1", 80)):
    pass
"""


def test_a_named_network_does_not_lead_to_the_clouds_metadata(platform: DockerPlatform) -> None:
    attempts = [("udp", METADATA, 80, way) for way in ("plain", "bound", "unicast_if")]

    assert probe(platform, "named", ("tcp", METADATA, 80), *attempts) == [
        "EHOSTUNREACH",
        *["EPERM"] * 3,
    ]


def test_a_network_that_is_not_allowed_is_refused_with_those_that_are(
    platform: DockerPlatform, name: str
) -> None:
    answer = platform.deploy(name, HANDLER, network=f"{RUN}-other")

    told = refused(answer, 422, "deploy_failed", f"'{RUN}-other'", f"'{NAMED}'", "'internet'")
    assert "FAASD_WORKER_ALLOWED_NETWORKS" in told["remedy"]


def test_a_network_that_is_not_there_is_refused(platform: DockerPlatform, name: str) -> None:
    answer = platform.deploy(name, HANDLER, network=ABSENT)

    told = refused(answer, 422, "deploy_failed", f"no network '{ABSENT}'")
    assert f"docker network create {ABSENT}" in told["remedy"]


def test_a_program_is_fenced_in_from_its_first_moment(platform: DockerPlatform, name: str) -> None:
    with Listener() as listener:
        near = addresses()
        deploy_program(platform, name, "internet", listener.port, near)

        assert platform.post(f"/invoke/{name}", {}).json() == ["failed"] * len(near)

    assert listener.heard == []


def test_a_program_on_a_named_network_reaches_what_is_there(
    platform: DockerPlatform, name: str
) -> None:
    with Listener() as listener:
        (gateway,) = probe(platform, "named", ("gateway",))
        deploy_program(platform, name, NAMED, listener.port, [gateway, METADATA])

        assert platform.post(f"/invoke/{name}", {}).json() == ["reached", "failed"]


def test_the_python_of_an_image_is_fenced_in_from_its_first_moment(
    platform: DockerPlatform, name: str, tmp_path: Path
) -> None:
    near = addresses()
    attempts = [("udp", address, 53) for address in near]
    with Listener() as listener, hostile_image(tmp_path, listener.port, near) as image:
        platform.must_deploy(name, HANDLER, image=image, network="internet")

        assert probe(platform, name, *attempts) == ["EPERM"] * len(near)
        (users,) = probe(platform, name, ("users",))
        assert 0 not in users
        assert platform.request("DELETE", f"/v1/functions/{name}").status == 204

    assert listener.heard == []


@contextlib.contextmanager
def hostile_image(folder: Path, port: int, near: list[str]) -> Iterator[str]:
    """An image whose Python looks around before it is one."""
    tag = f"{RUN}-hostile:latest"
    places = " ".join(f"/dev/tcp/{address}/{port}" for address in near)
    (folder / "python3").write_text(
        f"#!/bin/bash\nfor place in {places}; do (exec 3<>$place); done 2>/dev/null\n"
        'exec /opt/venv/bin/python3 "$@"\n'
    )
    (folder / "python3").chmod(0o755)
    (folder / "Dockerfile").write_text(
        "FROM faasd-runtime-python:latest\nCOPY python3 /hostile/\nENV PATH=/hostile:$PATH\n"
    )
    docker("build", "--quiet", "--tag", tag, str(folder))
    try:
        yield tag
    finally:
        docker("image", "rm", "--force", tag)


def deploy_program(
    platform: DockerPlatform, name: str, network: str, port: int, near: list[str]
) -> None:
    command = ["bash", "-c", START, str(port), *near]
    platform.must_deploy(
        name, {"server.py": SERVER}, contract="http", command=command, network=network
    )


def test_a_network_is_made_when_it_is_needed_and_removed_in_the_end(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    del runtime_images
    with DockerPlatform(tmp_path) as platform:
        platform.must_deploy("inside", HANDLER)
        before = networks(platform)
        platform.must_deploy("outside", HANDLER, network="internet")
        (made,) = networks(platform)

        assert before == []
        assert made["Options"]["com.docker.network.bridge.enable_icc"] == "false"
        assert not made["EnableIPv6"]

    assert networks(platform) == []


def networks(platform: DockerPlatform) -> list[dict[str, Any]]:
    mine = [one.id for one in left() if one.labels["faasd.node"] == platform.node]
    found = docker("network", "ls", "--quiet", "--no-trunc", "--filter=label=faasd.node").split()
    return inspect("network", *(one for one in found if one in mine))
