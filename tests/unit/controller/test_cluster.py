"""Controller and workers over loopback TCP: joining, serving, falling silent, leaving."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.cluster import ClusterServer, RemoteLink
from controller.workers import Member, Workers, WorkerStatus
from faasd.blobs import BlobStore
from faasd.bridges import awaited
from faasd.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    DeployFailed,
    FaasdError,
    FunctionNotFound,
    HandlerError,
    InternalError,
    NotFound,
    Unavailable,
    WorkerLost,
)
from faasd.framing import Connection
from faasd.greeting import greet_controller
from faasd.invocation import ArtifactRef, Load, Reply, Revision, StartKind, WorkerReport
from faasd.settings import WorkerSettings, build
from faasd.wire import Answer, Channel, Request, Serve
from tests.loops import in_loop, until
from tests.unit.worker.nodes import (
    ARCHIVE,
    CODE,
    GatedSandboxes,
    Held,
    call,
    outcome,
    revision,
)
from worker.node import Node
from worker.sandboxes.fake import FakeSandboxes
from worker.uplink import RemoteSource, Uplink

SECRET = "a secret of the tests"


class Controller:
    """The part of a controller that workers see."""

    def __init__(self, folder: Path, *, port: int = 0, silence_s: float = 1000) -> None:
        self.workers = Workers()
        self.blobs = BlobStore(folder / "blobs")
        self.server = ClusterServer(
            self.workers,
            self.blobs,
            host="127.0.0.1",
            port=port,
            secret=SECRET,
            heartbeat_timeout_s=silence_s,
        )

    async def store(self, content: bytes) -> str:
        async def whole() -> AsyncIterator[bytes]:
            yield content

        return await self.blobs.put(whole(), sha256=None, max_mb=100)

    def member(self, name: str = "n1") -> Member | None:
        """The worker of that name, while it is connected."""
        found = [m for m in self.workers.members() if m.link.worker_id == name]
        return found[0] if found and found[0].status is not WorkerStatus.LOST else None

    def link(self, name: str = "n1") -> RemoteLink:
        member = self.member(name)
        assert member is not None
        assert isinstance(member.link, RemoteLink)
        return member.link

    def ask(self, *args: Any, **kwargs: Any) -> asyncio.Future[Reply]:
        return asyncio.ensure_future(awaited(self.link().invoke, call(*args, **kwargs)))


@contextlib.asynccontextmanager
async def controlling(folder: Path, **options: Any) -> AsyncIterator[Controller]:
    controller = Controller(folder, **options)
    controller.blobs.open()
    await controller.store(ARCHIVE)
    await controller.server.start()
    try:
        yield controller
    finally:
        await controller.server.aclose()


class Worker:
    """A node and its connection."""

    def __init__(
        self,
        folder: Path,
        port: int,
        sandboxes: FakeSandboxes | None = None,
        *,
        name: str = "n1",
        secret: str = SECRET,
        heartbeat_s: float = 0.01,
        grace_s: float = 0.0,
    ) -> None:
        settings = {"memory_budget_mb": 4096, "cancel_grace_s": 1000, "shutdown_grace_s": grace_s}
        built = build(WorkerSettings, data=folder / name, runtime="fake", id=name, **settings)
        self.node = Node(built, sandboxes or FakeSandboxes())
        self.uplink = Uplink(
            self.node,
            address=f"127.0.0.1:{port}",
            secret=secret,
            heartbeat_s=heartbeat_s,
        )


@contextlib.asynccontextmanager
async def started(worker: Worker) -> AsyncIterator[Worker]:
    await worker.node.start()
    await worker.uplink.start()
    try:
        yield worker
    finally:
        await worker.uplink.aclose()
        await worker.node.aclose()


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, sandboxes: FakeSandboxes | None = None, **options: Any
) -> AsyncIterator[tuple[Controller, Worker]]:
    """A controller with one worker that has joined."""
    async with controlling(folder) as controller:
        worker = Worker(folder, controller.server.port, sandboxes, **options)
        async with started(worker):
            await until(controller.member)
            yield controller, worker


async def hang(_request: Request) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


@contextlib.asynccontextmanager
async def greeted(controller: Controller, serve: Serve = hang) -> AsyncIterator[Channel]:
    """A connection that proved itself, and by itself serves nothing."""
    _, connection = await asyncio.get_running_loop().create_connection(
        Connection, "127.0.0.1", controller.server.port
    )
    await greet_controller(connection, SECRET)
    channel = Channel(connection, serve=serve, note=lambda _method, _payload: None)
    served = asyncio.ensure_future(channel.run())
    try:
        yield channel
    finally:
        channel.close()
        await served


def state(name: str, load: list[int] | None = None) -> list[Any]:
    """What a worker of that name says of itself."""
    return [WorkerReport(name, 2, 1.0, 1.0, 0.0, 2, [], [], []).to_plain(), load or [0, 0, 0]]


@in_loop
async def test_a_worker_that_joins_is_up_and_known_by_its_report(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, _worker):
        [described] = controller.workers.describe()

        assert (described["id"], described["status"]) == ("n1", "up")
        assert controller.link().report().memory_budget_mb == 4096


@in_loop
async def test_a_worker_learns_the_revisions_that_were_active_before_it_came(
    tmp_path: Path,
) -> None:
    async with controlling(tmp_path) as controller:
        controller.workers.activate(revision())
        async with started(Worker(tmp_path, controller.server.port)):
            await until(controller.member)
            reply = await awaited(controller.link().invoke, call(b"hello"))

    assert (reply.status, reply.body, reply.worker) == (200, b"hello", "n1")
    assert (reply.start, reply.chunks) == (StartKind.COLD, None)
    assert reply.timings.exec >= 0


@in_loop
async def test_many_invocations_share_the_connection(tmp_path: Path) -> None:
    held = Held()
    async with cluster(tmp_path, FakeSandboxes({"hold": held})) as (controller, _worker):
        controller.workers.activate(revision("hold", limits={"max_instances": 50}))
        calls = [controller.ask(str(n).encode(), "hold") for n in range(50)]
        await until(lambda: len(held.running) == 50)
        for body, future in held.running.items():
            future.set_result(body * 2)

        assert [(await one).body for one in calls] == [str(n).encode() * 2 for n in range(50)]


@in_loop
async def test_errors_cross_with_all_they_carry(tmp_path: Path) -> None:
    def fail(body: bytes) -> None:
        raise KeyError(body)

    async with cluster(tmp_path, FakeSandboxes({"fail": fail})) as (controller, _worker):
        controller.workers.activate(revision("fail"))
        with pytest.raises(HandlerError, match="KeyError") as raised:
            await awaited(controller.link().invoke, call(b"k", "fail"))
        assert (raised.value.extra["worker"], raised.value.extra["start"]) == ("n1", "cold")
        assert len(raised.value.extra["timings"]) == 5

        with pytest.raises(FunctionNotFound, match="r2"):
            await awaited(controller.link().invoke, call(identity="r2"))
        with pytest.raises(DeadlineExceeded):
            await awaited(controller.link().invoke, call(name="fail", remaining_s=0))


@in_loop
async def test_an_invocation_that_is_cancelled_is_stopped_on_the_worker(tmp_path: Path) -> None:
    held = Held()
    async with cluster(tmp_path, FakeSandboxes({"hold": held})) as (controller, _worker):
        controller.workers.activate(revision("hold"))
        asked = controller.ask(b"1", "hold")
        await until(lambda: held.running)

        asked.cancel()

        await until(lambda: held.cancelled == [b"1"])


class Counting:
    """A handler that yields so many chunks, then waits for `finish`."""

    def __init__(self, count: int, *, chunk: bytes = b"x") -> None:
        self.count = count
        self.chunk = chunk
        self.finish = asyncio.Event()
        self.produced = 0
        self.ended = asyncio.Event()

    async def __call__(self, _body: bytes) -> Any:
        return self.run()

    async def run(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(self.count):
                self.produced += 1
                yield self.chunk
            await self.finish.wait()
        finally:
            self.ended.set()


@in_loop
async def test_a_stream_crosses_chunk_by_chunk(tmp_path: Path) -> None:
    counting = Counting(3)
    async with cluster(tmp_path, FakeSandboxes({"count": counting})) as (controller, _worker):
        controller.workers.activate(revision("count"))
        reply = await awaited(controller.link().invoke, call(name="count"))
        assert reply.chunks is not None
        early = [await anext(reply.chunks) for _ in range(3)]
        assert not counting.ended.is_set()

        counting.finish.set()
        assert [chunk async for chunk in reply.chunks] == []
        assert early == [b"x"] * 3


@pytest.mark.parametrize("taken", [0, 2])
@in_loop
async def test_a_stream_closed_early_stops_the_handler(tmp_path: Path, taken: int) -> None:
    counting = Counting(3)
    async with cluster(tmp_path, FakeSandboxes({"count": counting})) as (controller, worker):
        controller.workers.activate(revision("count"))
        reply = await awaited(controller.link().invoke, call(name="count"))
        assert reply.chunks is not None
        for _ in range(taken):
            await anext(reply.chunks)

        await reply.chunks.aclose()  # type: ignore[attr-defined]

        await counting.ended.wait()
        await until(lambda: worker.node.report().functions[0].idle == 1)


@in_loop
async def test_a_stream_that_is_not_read_holds_up_its_function_and_no_other(tmp_path: Path) -> None:
    counting = Counting(200, chunk=b"x" * (1 << 16))
    counting.finish.set()
    async with cluster(tmp_path, FakeSandboxes({"count": counting})) as (controller, _worker):
        controller.workers.activate(revision("count"))
        controller.workers.activate(revision())
        reply = await awaited(controller.link().invoke, call(name="count"))
        assert reply.chunks is not None
        await until(lambda: counting.produced > 32)
        for _ in range(20):
            await awaited(controller.link().invoke, call())

        assert counting.produced < 40
        assert sum([len(chunk) async for chunk in reply.chunks]) == 200 << 16


@in_loop
async def test_files_are_fetched_over_the_connection_and_verified(tmp_path: Path) -> None:
    weights = bytes(range(256)) * (3 << 12)
    stages: list[str] = []
    async with cluster(tmp_path) as (controller, _worker):
        digest = await controller.store(weights)
        wanted = replace(revision(), artifacts={"weights": ArtifactRef(digest, "w.bin")})
        await controller.link().prepare(wanted, lambda stage, _detail: stages.append(stage))

        fetched = tmp_path / "n1" / "artifacts"
        names = {path.name for path in fetched.glob("??/*")}
        assert names == {CODE, hashlib.sha256(weights).hexdigest()}
        assert (fetched / digest[:2] / digest).read_bytes() == weights
        assert (await awaited(controller.link().invoke, call())).start is StartKind.WARM
    assert stages.count("fetch") == 2


@in_loop
async def test_a_file_that_the_controller_has_not_fails_the_deploy(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, worker):
        wanted = replace(revision(), artifacts={"weights": ArtifactRef("0" * 64, "w.bin")})
        with pytest.raises(NotFound, match="000000000000"):
            await controller.link().prepare(wanted, lambda _stage, _detail: None)

        await until(lambda: not worker.node.report().functions)


@in_loop
async def test_a_deploy_that_the_worker_refuses_says_why(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, _worker):
        with pytest.raises(DeployFailed, match="cobol") as refused:
            await controller.link().prepare(revision(runtime="cobol"), lambda _stage, _detail: None)

    assert refused.value.remedy


@in_loop
async def test_a_deploy_that_is_given_up_is_given_up_on_the_worker(tmp_path: Path) -> None:
    sandboxes = GatedSandboxes()
    async with cluster(tmp_path, sandboxes) as (controller, worker):
        link = controller.link()
        preparing = asyncio.ensure_future(link.prepare(revision(), lambda _stage, _detail: None))
        await until(lambda: sandboxes.asked)

        preparing.cancel()

        await until(lambda: not worker.node.report().functions)


@in_loop
async def test_without_a_connection_there_are_no_files() -> None:
    with pytest.raises(WorkerLost):
        await anext(RemoteSource().read(CODE))


@in_loop
async def test_a_retired_revision_is_retired_on_the_worker(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, worker):
        controller.workers.activate(revision())
        await awaited(controller.link().invoke, call())

        controller.workers.retire("default/echo", "r1")

        await until(lambda: not worker.node.report().functions)
        with pytest.raises(FunctionNotFound):
            await awaited(controller.link().invoke, call())


@in_loop
async def test_reports_keep_the_controllers_view_fresh(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, _worker):
        controller.workers.activate(revision())
        await awaited(controller.link().invoke, call())

        await until(lambda: [f.idle for f in controller.link().report().functions] == [1])
        assert controller.link().report().starts == {"cold": 1}


@in_loop
async def test_logs_cross_as_a_tail_and_as_they_come(tmp_path: Path) -> None:
    sandboxes = FakeSandboxes()
    async with cluster(tmp_path, sandboxes) as (controller, worker):
        controller.workers.activate(revision())
        await awaited(controller.link().invoke, call())
        [sandbox] = sandboxes.open_sandboxes
        for n in range(3):
            sandbox.output("i1", "q1", "stdout", f"line {n}")

        tail = controller.link().logs("default/echo", tail=2, follow=False)
        lines = [line async for line in tail]
        assert lines == worker.node.logs("default/echo", tail=2)
        assert [line.line for line in lines] == ["line 1", "line 2"]

        followed = controller.link().logs("default/echo", tail=1, follow=True)
        assert (await anext(followed)).line == "line 2"
        sandbox.output("i1", "q2", "stderr", "more")
        assert (await anext(followed)).line == "more"
        await followed.aclose()  # type: ignore[attr-defined]
        await until(lambda: not worker.node._logs._followers)


@in_loop
async def test_a_worker_that_falls_silent_is_lost_with_all_that_it_ran(tmp_path: Path) -> None:
    async with controlling(tmp_path, silence_s=0.2) as controller, greeted(controller) as silent:
        await silent.call("join", state("n1"))
        asked = controller.ask()

        assert isinstance(await outcome(asked), WorkerLost)
        await until(lambda: not controller.member())
        assert [one["status"] for one in controller.workers.describe()] == ["lost"]
        with pytest.raises(Unavailable):
            controller.workers.choose("default/echo@r1")


@in_loop
async def test_a_worker_that_hangs_up_is_lost_at_once(tmp_path: Path) -> None:
    async with controlling(tmp_path) as controller:
        async with greeted(controller) as channel:
            await channel.call("join", state("n1"))
            asked = controller.ask()
            await asyncio.sleep(0)

        assert isinstance(await outcome(asked), WorkerLost)
        await until(lambda: not controller.member())


@in_loop
async def test_a_name_that_is_connected_is_refused_to_another_until_it_is_free(
    tmp_path: Path,
) -> None:
    async with controlling(tmp_path) as controller:
        async with greeted(controller) as first, greeted(controller) as second:
            await first.call("join", state("n1"))
            with pytest.raises(Conflict, match="n1") as refused:
                await second.call("join", state("n1"))
            assert "--id" in refused.value.remedy

            await second.call("join", state("n2"))
            assert {one["id"] for one in controller.workers.describe()} == {"n1", "n2"}

        await until(lambda: not controller.member("n1"))
        async with greeted(controller) as third:
            await third.call("join", state("n1"))
            assert controller.member("n1")


@in_loop
async def test_a_connection_joins_once(tmp_path: Path) -> None:
    async with controlling(tmp_path) as controller, greeted(controller) as channel:
        await channel.call("join", state("n1"))
        for name in ("n1", "n2"):
            with pytest.raises(Conflict):
                await channel.call("join", state(name))

        assert [one["id"] for one in controller.workers.describe()] == ["n1"]


@in_loop
async def test_requests_that_mean_nothing_are_refused_on_both_sides(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, _worker), greeted(controller) as stranger:
        for channel in (stranger, controller.link()._channel):
            with pytest.raises(BadRequest, match="nonsense"):
                await channel.call("nonsense", None)
        with pytest.raises(BadRequest, match="artifact"):
            await stranger.call("artifact", CODE)
        with pytest.raises(InternalError):
            await stranger.call("join", [{"id": "n2"}, [0, 0, 0]])

        await stranger.call("join", state("n2"))
        with pytest.raises(BadRequest, match="SHA-256"):
            await stranger.call("artifact", "../../etc/passwd")
        with pytest.raises(NotFound):
            await stranger.call("artifact", "0" * 64)


@in_loop
async def test_a_report_that_is_none_ends_the_connection_it_came_on_only(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, _worker), greeted(controller) as strange:
        await strange.call("join", state("n2"))
        strange.notify("report", ["not", "a", "report"])

        await until(lambda: not controller.member("n2"))
        assert controller.member("n1")


@in_loop
async def test_a_worker_with_another_secret_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    async with controlling(tmp_path) as controller:
        worker = Worker(tmp_path, controller.server.port, secret="another secret, as long")
        with capture_logs() as said:
            async with started(worker):
                await until(lambda: any(line["event"] == "controller.refused" for line in said))

        refusal = next(line for line in said if line["event"] == "controller.refused")
        assert "FAASD_CLUSTER_SECRET" in refusal["remedy"]
        assert controller.workers.describe() == []


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\0\0\1\xc1", b""])
@in_loop
async def test_strangers_at_the_port_are_hung_up_on(tmp_path: Path, said: bytes) -> None:
    async with cluster(tmp_path) as (controller, _worker):
        reader, writer = await asyncio.open_connection("127.0.0.1", controller.server.port)
        writer.write(said)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

        assert [one["status"] for one in controller.workers.describe()] == ["up"]


@in_loop
async def test_a_worker_that_leaves_politely_gets_nothing_new_and_finishes_what_it_has(
    tmp_path: Path,
) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with cluster(tmp_path, sandboxes, grace_s=1000) as (controller, worker):
        controller.workers.activate(revision("hold", limits={"max_instances": 1}))
        ran, waited = controller.ask(b"1", "hold"), controller.ask(b"2", "hold")
        await until(lambda: held.running)

        leaving = asyncio.ensure_future(worker.uplink.aclose())
        await until(lambda: controller.workers.describe()[0]["status"] == "draining")
        with pytest.raises(Unavailable):
            controller.workers.choose("default/hold@r1")
        with pytest.raises(Unavailable, match="shutting down"):
            await awaited(controller.link().invoke, call(b"3", "hold"))
        held.finish()
        await until(lambda: b"2" in held.running)
        held.finish()

        assert [(await one).body for one in (ran, waited)] == [b"done", b"done"]
        await leaving
        await until(lambda: not controller.member())


@in_loop
async def test_a_worker_leaves_only_when_its_last_stream_was_taken(tmp_path: Path) -> None:
    counting = Counting(24, chunk=b"x" * (1 << 16))
    counting.finish.set()
    sandboxes = FakeSandboxes({"count": counting})
    async with cluster(tmp_path, sandboxes, grace_s=1000) as (controller, worker):
        controller.workers.activate(revision("count"))
        reply = await awaited(controller.link().invoke, call(name="count"))
        await counting.ended.wait()

        leaving = asyncio.ensure_future(worker.uplink.aclose())
        await until(lambda: controller.workers.describe()[0]["status"] == "draining")
        await until(lambda: worker.node.report().functions[0].busy == 0)
        assert reply.chunks is not None

        assert sum([len(chunk) async for chunk in reply.chunks]) == 24 << 16
        await leaving


@in_loop
async def test_a_worker_whose_connection_breaks_stops_what_it_ran_and_comes_back(
    tmp_path: Path,
) -> None:
    held = Held()
    async with cluster(tmp_path, FakeSandboxes({"hold": held})) as (controller, _worker):
        controller.workers.activate(revision("hold"))
        broken = controller.link()
        asked = controller.ask(b"1", "hold")
        await until(lambda: held.running)

        broken._channel.close()

        assert isinstance(await outcome(asked), WorkerLost)
        await until(lambda: held.cancelled == [b"1"])
        await until(lambda: controller.member() and controller.link() is not broken)
        again = controller.ask(b"2", "hold")
        await until(lambda: held.running)
        held.finish()
        assert (await again).start is StartKind.WARM


@in_loop
async def test_workers_join_the_controllers_successor_and_drop_what_it_does_not_know(
    tmp_path: Path,
) -> None:
    async with controlling(tmp_path) as first:
        worker = Worker(tmp_path, first.server.port)
        await worker.node.start()
        await worker.uplink.start()
        await until(first.member)
        for identity in ("r1", "r2"):
            first.workers.activate(revision(identity=identity))
            await awaited(first.link().invoke, call(identity=identity))
    await until(lambda: worker.uplink._channel is None)

    async with controlling(tmp_path, port=first.server.port) as second:
        second.workers.activate(revision(identity="r2"))
        await until(second.member)
        assert (await awaited(second.link().invoke, call(identity="r2"))).start is StartKind.WARM
        with pytest.raises(FunctionNotFound):
            await awaited(second.link().invoke, call(identity="r1"))
        await worker.uplink.aclose()
    await worker.node.aclose()


@in_loop
async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async with controlling(tmp_path) as controller:
        other = Controller(tmp_path, port=controller.server.port)

        with pytest.raises(BadRequest, match=str(controller.server.port)) as refused:
            await other.server.start()
        assert "port" in refused.value.remedy


@pytest.mark.parametrize("address", ["", "8081", "host:", ":8081", "host:port", "host:-1"])
@in_loop
async def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    node = Node(build(WorkerSettings, data=tmp_path), FakeSandboxes())

    with pytest.raises(BadRequest, match="HOST:PORT"):
        Uplink(node, address=address, secret=SECRET, heartbeat_s=1)


def test_a_revision_crosses_unchanged() -> None:
    sent = replace(revision(minimum=3), artifacts={"w": ArtifactRef("0" * 64, "w.bin")})

    assert Revision.from_plain(sent.to_plain()) == sent


@in_loop
async def test_each_answer_says_what_the_worker_has_in_hand(tmp_path: Path) -> None:
    held = Held()
    sandboxes = FakeSandboxes({"hold": held})
    async with cluster(tmp_path, sandboxes, heartbeat_s=1000) as (controller, _worker):
        controller.workers.activate(revision())
        controller.workers.activate(revision("hold", limits={"max_instances": 1}))
        load, seen = controller.link().load, []
        waiting = [controller.ask(body, "hold") for body in (b"1", b"2")]
        await until(lambda: held.running)

        await awaited(controller.link().invoke, call())
        assert (load.outstanding, load.running) == (2, 1)
        seen.append(load.seq)
        with pytest.raises(FunctionNotFound):
            await awaited(controller.link().invoke, call(name="unknown"))
        seen.append(load.seq)
        held.finish()
        await waiting[0]
        assert load.outstanding == 1
        seen.append(load.seq)
        await until(lambda: b"2" in held.running)
        held.finish()
        await waiting[1]

        assert controller.link().load is load
        assert (load.outstanding, load.running) == (0, 0)
        assert seen == sorted(seen)
        assert load.seq > seen[-1]


@in_loop
async def test_reports_say_what_the_worker_has_in_hand(tmp_path: Path) -> None:
    async with controlling(tmp_path) as controller, greeted(controller) as channel:
        await channel.call("join", state("n1", [5, 3, 2]))
        assert controller.link().load == Load(5, 3, 2)

        channel.notify("report", state("n1", [6, 1, 1]))
        await until(lambda: controller.link().load == Load(6, 1, 1))


HEAD: list[Any] = [200, "text/plain", {}, "warm", [0.0, 0.0, 0.0, 0.0, 0.0], [1, 0, 0], None]
REPLIES: dict[str, Any] = {
    "none": None,
    "too little": HEAD,
    "too much": [*HEAD, b"", b""],
    "a status that is none": ["200", *HEAD[1:], b""],
    "headers that are none": [200, "", [], *HEAD[3:], b""],
    "an unknown start": [200, "", {}, "hot", *HEAD[4:], b""],
    "times that are none": [200, "", {}, "warm", None, [1, 0, 0], b""],
    "too many times": [200, "", {}, "warm", [0.0] * 6, [1, 0, 0], b""],
    "a load that is none": [*HEAD[:5], ["1", 0, 0], b""],
    "a load of two": [*HEAD[:5], [1, 0], b""],
    "a text for a body": [*HEAD, "body"],
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES.keys())
@in_loop
async def test_a_worker_that_answers_nonsense_is_lost_and_no_other(
    tmp_path: Path, reply: Any
) -> None:
    async def nonsense(_request: Request) -> Answer:
        return Answer(reply)

    async with cluster(tmp_path) as (controller, _worker), greeted(controller, nonsense) as strange:
        controller.workers.activate(revision())
        await strange.call("join", state("n2"))

        with pytest.raises(WorkerLost):
            await awaited(controller.link("n2").invoke, call())

        await until(lambda: not controller.member("n2"))
        assert (await awaited(controller.link("n1").invoke, call())).body == b"x"


@in_loop
async def test_a_receiver_that_fails_harms_nobody_else(tmp_path: Path) -> None:
    class Failing:
        told = 0

        def answered(self, _reply: Reply) -> None:
            self.told += 1
            raise ZeroDivisionError

        def failed(self, _error: FaasdError) -> None:
            self.told += 1
            raise ZeroDivisionError

    async with cluster(tmp_path) as (controller, _worker):
        controller.workers.activate(revision())
        receiver, link = Failing(), controller.link()
        link.invoke(call(), receiver)
        link.invoke(call(name="unknown"), receiver)
        await until(lambda: receiver.told == 2)

        assert (await awaited(link.invoke, call())).body == b"x"
        assert controller.link() is link


@in_loop
async def test_an_invocation_that_no_frame_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (controller, _worker):
        controller.workers.activate(revision())
        strange = replace(call(), headers={"name": "\udcff"})
        with pytest.raises(BadRequest):
            await awaited(controller.link().invoke, strange)

        assert (await awaited(controller.link().invoke, call())).body == b"x"


class SharedWorker:
    """A node with a connection to each of these controllers."""

    def __init__(
        self, folder: Path, *controllers: Controller, sandboxes: FakeSandboxes | None = None
    ) -> None:
        settings = {"memory_budget_mb": 4096, "cancel_grace_s": 1000, "shutdown_grace_s": 1000}
        built = build(WorkerSettings, data=folder / "n1", runtime="fake", id="n1", **settings)
        self.node = Node(built, sandboxes or FakeSandboxes())
        self.uplinks = [
            Uplink(
                self.node,
                address=f"127.0.0.1:{controller.server.port}",
                secret=SECRET,
                heartbeat_s=0.01,
            )
            for controller in controllers
        ]

    async def aclose(self) -> None:
        await asyncio.gather(*(uplink.aclose() for uplink in self.uplinks))
        await self.node.aclose()


@contextlib.asynccontextmanager
async def shared(
    folder: Path, sandboxes: FakeSandboxes | None = None
) -> AsyncIterator[tuple[Controller, Controller, SharedWorker]]:
    """Two controllers, and one worker that has joined both."""
    async with controlling(folder / "c1") as first, controlling(folder / "c2") as second:
        worker = SharedWorker(folder, first, second, sandboxes=sandboxes)
        await worker.node.start()
        for uplink in worker.uplinks:
            await uplink.start()
        try:
            await until(lambda: first.member() and second.member())
            yield first, second, worker
        finally:
            await worker.aclose()


@in_loop
async def test_one_worker_serves_several_controllers(tmp_path: Path) -> None:
    async with shared(tmp_path) as (first, second, _worker):
        first.workers.activate(revision(identity="r1"))
        second.workers.activate(revision(identity="r2"))

        assert (await awaited(first.link().invoke, call(identity="r1"))).body == b"x"
        assert (await awaited(second.link().invoke, call(identity="r2"))).body == b"x"


@in_loop
async def test_each_controller_hears_of_the_load_of_all(tmp_path: Path) -> None:
    held = Held()
    async with shared(tmp_path, FakeSandboxes({"hold": held})) as (first, second, _worker):
        first.workers.activate(revision("hold"))
        second.workers.activate(revision())
        asked = first.ask(b"1", "hold")
        await until(lambda: held.running)

        await awaited(second.link().invoke, call())
        assert (second.link().load.outstanding, second.link().load.running) == (1, 1)
        held.finish()
        await asked


@in_loop
async def test_a_revision_that_both_deployed_outlives_its_retirement_by_one(
    tmp_path: Path,
) -> None:
    async with shared(tmp_path) as (first, second, worker):
        first.workers.activate(revision())
        second.workers.activate(revision())
        await awaited(first.link().invoke, call())

        first.workers.retire("default/echo", "r1")
        await first.link()._channel.call("logs", ["default/echo", 0, False])
        assert (await awaited(second.link().invoke, call())).start is StartKind.WARM

        second.workers.retire("default/echo", "r1")
        await until(lambda: not worker.node.report().functions)


@in_loop
async def test_losing_one_controller_stops_its_invocations_and_no_others(tmp_path: Path) -> None:
    held = Held()
    async with shared(tmp_path, FakeSandboxes({"hold": held})) as (first, second, worker):
        for controller in (first, second):
            controller.workers.activate(revision("hold"))
        lost, kept = first.ask(b"lost", "hold"), second.ask(b"kept", "hold")
        await until(lambda: len(held.running) == 2)

        await first.server.aclose()

        assert isinstance(await outcome(lost), WorkerLost)
        await until(lambda: held.cancelled == [b"lost"])
        held.finish()
        assert (await kept).body == b"done"
        assert second.member()
        await until(lambda: worker.uplinks[0]._channel is None)


@in_loop
async def test_files_come_from_the_controller_that_deployed_them(tmp_path: Path) -> None:
    async with shared(tmp_path) as (first, second, _worker):
        digests = [await one.store(text) for one, text in ((first, b"one"), (second, b"two"))]
        for controller, identity, digest in zip(
            (first, second), ("r1", "r2"), digests, strict=True
        ):
            wanted = replace(
                revision(identity=identity), artifacts={"w": ArtifactRef(digest, "w.bin")}
            )
            await controller.link().prepare(wanted, lambda _stage, _detail: None)

        for digest, text in zip(digests, (b"one", b"two"), strict=True):
            assert (tmp_path / "n1" / "artifacts" / digest[:2] / digest).read_bytes() == text


@in_loop
async def test_a_worker_that_leaves_tells_all_before_it_waits_for_any(tmp_path: Path) -> None:
    held = Held()
    async with shared(tmp_path, FakeSandboxes({"hold": held})) as (first, second, worker):
        first.workers.activate(revision("hold"))
        asked = first.ask(b"1", "hold")
        await until(lambda: held.running)

        leaving = asyncio.ensure_future(worker.aclose())
        for controller in (first, second):
            await until(
                lambda one=controller: one.workers.describe()[0]["status"] == "draining"  # type: ignore[misc]
            )
        assert not leaving.done()
        held.finish()

        assert (await asked).body == b"done"
        await leaving
        await until(lambda: not first.member() and not second.member())
