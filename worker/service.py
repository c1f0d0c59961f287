"""One function revision on one worker: carries out what its pool decides.

The pool is asked after every event, and its actions are begun here at once; whatever takes time
runs as a task of this service and comes back as another event. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Sequence
from typing import Any

from faasd import clock
from faasd.errors import (
    BadRequest,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    DeployFailed,
    FaasdError,
    FunctionTimeout,
    HandlerError,
    InstanceDied,
    InternalError,
    OutOfMemory,
    QueueFull,
    StorageFull,
    Unavailable,
    from_problem,
)
from faasd.invocation import (
    FunctionReport,
    Invocation,
    Receiver,
    Reply,
    Revision,
    StartKind,
    Timings,
)
from faasd.policies.ejection import Ejection
from faasd.policies.keepalive import keep_alive
from faasd.policies.lookout import Lookout
from faasd.policies.placement import Placement, Refusal
from faasd.policies.queueing.discipline import ProcessorUse, sharing
from faasd.policies.readahead import ReadAhead
from faasd.streams import Closable
from faasd.telemetry import get_logger
from worker import pool as pools
from worker.calls import Pending, Running
from worker.gpus.desk import GpuDesk
from worker.gpus.ledger import needs_gpu, request_of
from worker.pool import Pool, PoolLimits
from worker.sandbox import Call, Exit, Output, Placed, Progress, Sandbox, Sandboxes, Span
from worker.tally import Tally

log = get_logger("worker.service")

_call_ids = itertools.count(1)
# Across services: one that is ending and its successor hold GPUs under different names.
_generations = itertools.count(1)
_LEAST_LOOK_S = 0.1
# Of functions that name none: what calls of other SLOs are weighed against.
_USUAL_SLO_MS = 1000.0
# Errors that may be the instance's; others are the caller's, or the same in every instance.
_OF_THE_CODE = {"handler_error", "out_of_memory"}
_REMEDIES = {"bad_request": "Send a body that is what its Content-Type says."}


def no_progress(_stage: str, _detail: str) -> None:
    return


class RevisionService:
    """Owned by the event loop; `aclose` ends everything it started."""

    __slots__ = (
        "_cancel_grace_s", "_closed", "_cores", "_cpu_s", "_desk", "_ejection", "_emptied",
        "_generation", "_last_failure", "_lookout", "_loop", "_output", "_pending", "_place",
        "_processor", "_progress", "_replies", "_run_s", "_running", "_sandbox", "_sandboxes",
        "_step_due", "_tally", "_tasks", "_timeout_s", "_waiting_for_template", "_wakeup",
        "_wakeup_due", "_watch", "_watch_due", "_woken", "memory_mb", "pool", "revision",
        "template_mb", "worker_id",
    )  # fmt: skip

    def __init__(
        self,
        revision: Revision,
        *,
        worker_id: str,
        sandboxes: Sandboxes,
        place: Callable[[Revision, Progress], Coroutine[Any, Any, Placed]],
        output: Output,
        desk: GpuDesk,
        template_keep_alive_s: float,
        cancel_grace_s: float,
        woken: Callable[[RevisionService], None],
        emptied: Callable[[RevisionService], None],
        cores: int,
        tally: Tally,
    ) -> None:
        spec = revision.spec
        self.revision = revision
        self.worker_id = worker_id
        self.pool = Pool(
            PoolLimits(
                concurrency=spec.limits.concurrency,
                max_instances=spec.limits.max_instances,
                min_instances=revision.min_instances,
                queue=spec.limits.queue,
                batch=spec.batching.max_size,
                batch_wait_s=spec.batching.max_wait_ms / 1000,
                template_keep_alive_s=template_keep_alive_s,
                slo_s=(spec.slo.latency_ms or _USUAL_SLO_MS) / 1000,
                weights=spec.scheduling.tenants,
            ),
            keep_alive(spec.scaling.keep_alive),
        )
        self._sandboxes = sandboxes
        self._place = place
        self._output = output
        self._desk = desk if needs_gpu(spec.resources) else None
        self._cancel_grace_s = cancel_grace_s
        self._timeout_s = spec.limits.timeout_s
        self._woken = woken
        self._emptied = emptied
        self._cores = cores
        self._processor = ProcessorUse()
        self._lookout = Lookout(cores=cores)
        self._cpu_s: dict[int, float] = {}
        self._run_s = 0.0
        self._tally = tally
        self._ejection = Ejection()
        self._sandbox: Sandbox | None = None
        self._generation = 0
        self._running: dict[int, Running] = {}
        self._pending: dict[int, Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakeup: asyncio.TimerHandle | None = None
        self._last_failure: FaasdError = Unavailable("The function could not be started.")
        self._progress: Progress = no_progress
        self._waiting_for_template: list[asyncio.Future[None]] = []
        self._wakeup_due = math.inf
        self._watch: asyncio.TimerHandle | None = None
        self._watch_due = math.inf
        self._step_due = False
        self._replies: list[tuple[Pending, Reply]] = []
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.template_mb = 0.0
        self.memory_mb = 0.0

    def __repr__(self) -> str:
        return f"<RevisionService {self.revision.key} {self.pool!r}>"

    def invoke(self, invocation: Invocation, receiver: Receiver) -> Pending:
        """Begin it for the receiver. Raises DeadlineExceeded or QueueFull at once."""
        now = clock.monotonic()
        remaining = invocation.remaining_s
        deadline: float | None = None
        if remaining is not None:
            if remaining <= 0:
                raise DeadlineExceeded("The deadline had passed when the invocation arrived.")
            deadline = now + remaining
        pending = Pending(next(_call_ids), invocation, receiver, self, now, deadline)
        wants_decision = self.pool.arrive(
            pending.id,
            now,
            deadline,
            slo_s=invocation.slo_s,
            priority=invocation.priority,
            tenant=invocation.tenant,
            session=invocation.session,
        )
        self._pending[pending.id] = pending
        self._tally.arrived()
        if wants_decision:
            self._step()
        return pending

    async def prepare(self, progress: Progress) -> None:
        """Have one instance ready, for a deploy that is being tried. Raises FaasdError."""
        seen = self.pool.statistics()
        if seen.idle + seen.busy > 0:
            return
        self._progress = progress
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_for_template.append(ready)
        self.pool.hold_template(hold=True)
        floor, self.pool.min_instances = self.pool.min_instances, max(1, self.pool.min_instances)
        try:
            self._step()
            await ready
        finally:
            self._waiting_for_template = [f for f in self._waiting_for_template if f is not ready]
            self.pool.min_instances = floor
            self.pool.hold_template(hold=False)
            self._progress = no_progress
            self._step()

    def retire(self) -> None:
        """Finish what is here, then end everything."""
        self._template_verdict(Conflict("The revision was replaced while it was being tried."))
        self.pool.retire()
        self._step()

    def set_min_instances(self, count: int) -> None:
        self.pool.min_instances = count
        self._step()

    def set_may_grow(self, *, may_grow: bool) -> None:
        if self.pool.may_grow != may_grow:
            self.pool.may_grow = may_grow
            self._step()

    def evict(self) -> None:
        """Give the memory back now; only called when nothing is queued or running."""
        self._carry_out(self.pool.evict())
        self._step()

    def report(self) -> FunctionReport:
        seen = self.pool.statistics()
        return FunctionReport(
            function=self.revision.function,
            revision=self.revision.id,
            template=str(seen.sandbox),
            starting=seen.starting,
            idle=seen.idle,
            busy=seen.busy,
            queued=seen.queued,
            memory_mb=round(self.memory_mb, 1),
            ejected=self._ejection.ejections,
        )

    def pids(self) -> tuple[list[int], dict[int, list[int]]]:
        """Processes of the template, and of each instance by its number."""
        template = self._sandbox.pids() if self._sandbox else []
        return template, {
            number: running.handle.pids()
            for number, running in self._running.items()
            if running.handle is not None
        }

    def measured(self, template_mb: float, private_mb: dict[int, float], pss_mb: float) -> None:
        """What the processes hold; an instance far past its limit is ended."""
        self.template_mb = template_mb
        self.memory_mb = pss_mb
        limit = self.revision.spec.resources.memory_mb
        for number, private in private_mb.items():
            running = self._running.get(number)
            if running is None:
                continue
            running.private_mb = private
            if private > limit:
                self._condemn(
                    running,
                    OutOfMemory(
                        f"The function used {private:.0f} MB of its own memory; "
                        f"[resources] memory_mb = {limit}."
                    ),
                )

    def used_processor(self, cpu_s: dict[int, float]) -> None:
        """Processor time that each instance has used by now: how many of them are of use at once."""
        if self.pool.read_ahead is None:
            return
        used_s = sum(now - self._cpu_s.get(number, 0.0) for number, now in cpu_s.items())
        run_s, self._run_s = self.pool.run_s - self._run_s, self.pool.run_s
        self._cpu_s = cpu_s
        self._processor.observe(used_s, run_s)
        cv2 = self.pool.exec_cv2
        limit = self.revision.spec.limits.max_instances
        if cv2 is None or not self._processor.computes:
            self.pool.at_once = None
        else:
            self.pool.at_once = sharing(cv2, self._cores, limit=limit)

    def gpu_users(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Processes by the names under which GPUs are held: of each instance, of the template.

        Instances that are not attached yet are among them: attach() is where they begin to use one.
        """
        if self._sandbox is None:
            return {}, {}
        instances = self._sandbox.instances()
        return (
            {self._holder(name): instance.pids() for name, instance in instances.items()},
            {self._holder(str(self._generation)): self._sandbox.pids()},
        )

    def spare_on_gpus(self) -> list[tuple[float, str]]:
        """Instances that hold GPUs for nothing, and that no minimum keeps: since when, and which."""
        if self._desk is None:
            return []
        running = self._running
        return [(since, self._holder(running[number].name)) for since, number in self.pool.spare()]

    def end_spare(self, holders: Collection[str]) -> None:
        """End those of these instances that are here."""
        for running in self._running.values():
            if running.handle is not None and self._holder(running.name) in holders:
                self.pool.stopping(running.number)
                running.handle.kill()

    def condemn(self, holder: str, error: FaasdError) -> None:
        """End an instance, or the template with all of them, for what it did or what befell it."""
        if holder == self._holder(str(self._generation)):
            self._condemn_sandbox(error)
            return
        for running in list(self._running.values()):
            if self._holder(running.name) == holder:
                self._condemn(running, error)

    async def aclose(self) -> None:
        """End everything; calls that still wait are told so."""
        self._closed = True
        for alarm in (self._wakeup, self._watch):
            if alarm is not None:
                alarm.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pending in list(self._pending.values()):
            self._drop(pending, Unavailable("The worker is shutting down."))
        self._template_verdict(Unavailable("The worker is shutting down."))
        if self._sandbox is not None:
            await self._sandbox.aclose()
            self._sandbox = None
        for running in self._running.values():
            self._give_back(running)

    def _step(self) -> None:
        """Ask the pool what to do, and when to ask again without an event."""
        if self._closed:
            return
        now = clock.monotonic()
        actions = self.pool.decide(now)
        if actions:
            self._carry_out(actions)
        due = self.pool.next_wakeup(now)
        if due is not None and due < self._wakeup_due:
            self._wake_up_at(due, now)
        if self._desk is not None:
            self._desk.became_idle()
        if self.pool.retired and self.pool.empty and not self._pending:
            self._emptied(self)

    def _wake_up_at(self, due: float, now: float) -> None:
        """Ask the pool again by then. An earlier alarm stays: it costs less than to replace it."""
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup_due = due
        self._wakeup = self._loop.call_later(max(0.001, due - now), self._on_alarm)

    def _on_alarm(self) -> None:
        self._wakeup = None
        self._wakeup_due = math.inf
        self._step()

    def _carry_out(self, actions: list[pools.Action]) -> None:
        for action in actions:
            match action:
                case pools.Dispatch():
                    self._dispatch(action)
                case pools.Fork():
                    self._spawn(self._fork(action.instance))
                case pools.OpenSandbox():
                    self._woken(self)
                    self._spawn(self._open())
                case pools.Stop():
                    self._stop(action.instance)
                case pools.CloseSandbox():
                    self._close_sandbox()
                case pools.Expire():
                    self._drop(self._pending[action.call], _too_late(action.left_s))
                case pools.Displace():
                    self._drop(self._pending[action.call], QueueFull.displaced())
                case pools.Fail():
                    self._drop(self._pending[action.call], self._last_failure)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        generation = self._generation = next(_generations)
        begin = clock.monotonic()
        try:
            placed = await self._place(self.revision, self._progress)
            placed_at = clock.monotonic()
            self._progress("template", "importing the code and running load()")
            sandbox = await self._sandboxes.open(
                self.revision,
                placed,
                died=lambda: self._sandbox_died(generation),
                output=self._output,
            )
        except FaasdError as error:
            self._start_failed(error)
        except Exception as error:  # the boundary of a start: a defect must not stop the service
            log.exception("sandbox.open_failed", revision=self.revision.key)
            self._start_failed(_told(error))
        else:
            if self._closed:
                await sandbox.aclose()
                return
            opened = sandbox.opened
            sandbox.opened = type(opened)(
                opened.kind, (Span("sandbox", begin, placed_at), *opened.spans)
            )
            self._sandbox = sandbox
            serial = sandbox.serial and self.revision.spec.batching.max_size == 1
            self.pool.read_ahead = ReadAhead() if serial else None
            self.pool.sandbox_ready(opened.kind, clock.monotonic())
            log.info(
                "sandbox.ready",
                function=self.revision.function,
                revision=self.revision.id,
                start=opened.kind,
                seconds=round(clock.monotonic() - begin, 3),
            )
            self._step()

    def _start_failed(self, error: FaasdError) -> None:
        log.warning(
            "sandbox.failed", revision=self.revision.key, code=error.code, detail=error.detail
        )
        self._last_failure = error
        final = isinstance(error, DeployFailed | OutOfMemory)
        self.pool.sandbox_failed(clock.monotonic(), final=final)
        if self.pool.failing:
            self._template_verdict(error)
        self._step()

    def _template_verdict(self, error: FaasdError | None) -> None:
        for ready in self._waiting_for_template:
            if ready.done():
                continue
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)

    def _sandbox_died(self, generation: int) -> None:
        if generation != self._generation:
            return
        log.warning("template.died", revision=self.revision.key)
        sandbox, self._sandbox = self._sandbox, None
        self._last_failure = Unavailable("The function's template process ended unexpectedly.")
        self.pool.sandbox_died(clock.monotonic())
        if sandbox is not None:
            self._spawn(sandbox.aclose())
        self._step()

    def _close_sandbox(self) -> None:
        self._generation = next(_generations)
        sandbox, self._sandbox = self._sandbox, None
        self.template_mb = 0.0
        if sandbox is not None:
            self._spawn(sandbox.aclose())

    async def _fork(self, number: int) -> None:
        sandbox = self._sandbox
        asked = clock.monotonic()
        spans = sandbox.opened.spans if sandbox else ()
        name = f"{self.revision.id}-{self._generation}.{number}"
        running = Running(self, number, name, asked, spans)
        self._running[number] = running
        env: dict[str, str] | None = None
        try:
            if sandbox is None:
                raise Unavailable("The sandbox ended.")
            if self._desk is not None:
                env = await self._gpus(self._desk, running, sandbox)
                if env is None:
                    return
                asked = clock.monotonic()
            handle = await sandbox.fork(name, running, env)
        except FaasdError as error:
            self._fork_failed(running, error)
        except Exception as error:  # the boundary of a start, as in _open
            log.exception("instance.fork_failed", revision=self.revision.key)
            self._fork_failed(running, InternalError(f"Starting an instance failed: {error!r}."))
        else:
            now = clock.monotonic()
            running.handle = handle
            running.spans = (*spans, Span("sandbox", asked, now))
            if number not in self._running:
                handle.kill()
                self._give_back(running)
                return
            self.pool.instance_ready(number, now)
            self._template_verdict(None)
            self._step()

    def _fork_failed(self, running: Running, error: FaasdError, *, final: bool = False) -> None:
        error = running.fault or error
        self._running.pop(running.number, None)
        self._last_failure = error
        final = final or isinstance(error, DeployFailed | HandlerError)
        self.pool.instance_failed(running.number, clock.monotonic(), final=final)
        self._give_back(running)
        if self.pool.failing:
            self._template_verdict(_refusal(error, final=final))
        self._step()

    async def _gpus(
        self, desk: GpuDesk, running: Running, sandbox: Sandbox
    ) -> dict[str, str] | None:
        """What tells an instance its GPUs, or None when it is not to be started here."""
        if self._belongs_elsewhere(desk, sandbox):
            self._move(running)
            return None
        holder = self._holder(running.name)
        try:
            grant = await desk.acquire(holder, self.revision.spec.resources, within=sandbox.devices)
        except Unavailable as error:
            if self._belongs_elsewhere(desk, sandbox):
                self._move(running)
            else:
                # It has waited already: who waits for it is told, unless another sandbox follows.
                self._fork_failed(running, error, final=sandbox is self._sandbox)
            return None
        return grant.env

    def _belongs_elsewhere(self, desk: GpuDesk, sandbox: Sandbox) -> bool:
        """Whether no GPU of the sandbox is to be had, others are, and no instance is left in it."""
        if sandbox.devices is None or sandbox is not self._sandbox:
            return False
        holding = {one.instance for one in desk.ledger.holdings}
        if any(
            one.fault is None and self._holder(one.name) in holding
            for one in self._running.values()
        ):
            return False
        wanted = request_of(self.revision.spec.resources)
        here = desk.ledger.plan("", wanted, within=sandbox.devices)
        return isinstance(here, Refusal) and isinstance(desk.ledger.plan("", wanted), Placement)

    def _move(self, running: Running) -> None:
        """Give the sandbox up for one with other GPUs."""
        log.info("sandbox.moved", revision=self.revision.key)
        self._running.pop(running.number, None)
        self.pool.sandbox_closed()
        self.pool.instance_failed(running.number, clock.monotonic(), final=False)
        self._close_sandbox()
        self._step()

    def _holder(self, name: str) -> str:
        """The name under which GPUs are held, the only one of its kind on the node."""
        return f"{self.revision.function}@{name}"

    def _give_back(self, running: Running) -> None:
        """What the instance held of GPUs is free. Safe to call twice."""
        if self._desk is not None:
            self._desk.release(self._holder(running.name))

    def _stop(self, number: int) -> None:
        running = self._running.get(number)
        if running is not None and running.handle is not None:
            running.handle.kill()

    def _dispatch(self, action: pools.Dispatch) -> None:
        running = self._running[action.instance]
        assert running.handle is not None
        now = clock.monotonic()
        serial = self.pool.read_ahead is not None
        held = running.calls
        calls: list[Call] = []
        for identity, kind in zip(action.calls, action.kinds, strict=True):
            pending = self._pending[identity]
            pending.instance = running
            pending.kind = kind
            if serial and held:
                self._watch_deadline(pending, now)
            else:
                self._turn_came(pending, now)
            held[identity] = pending
            calls.append((identity, pending.meta(now), pending.invocation.body))
            self._tally.started(kind)
        if not serial:
            self._send(running, calls)
            return
        for call in calls:
            self._send(running, (call,))
        if self._tally.outstanding == 1:
            self._look_out(running)

    def _look_out(self, running: Running) -> None:
        """It is the only call of the node: its reply may be here sooner than sleep would end."""
        ahead = self.pool.read_ahead
        if ahead is not None and ahead.depth:
            for_s = self._lookout.for_s(ahead.mean_s)
            if for_s:
                # Not at once: who began the call is not told of its end before that has returned.
                self._loop.call_soon(self._look_now, running, for_s)

    def _look_now(self, running: Running, for_s: float) -> None:
        if running.calls and running.handle is not None:
            self._lookout.ended(in_time=running.handle.look_out(for_s))

    def _send(self, running: Running, calls: Sequence[Call]) -> None:
        assert running.handle is not None
        try:
            running.handle.call(calls)
        except (ValueError, TypeError, OverflowError) as error:
            # What cannot be packed reached nobody; it must not wait for an answer. Answering asks
            # the pool again, which may only happen once its present actions are carried out.
            told = f"The invocation could not be sent to the function: {error}."
            for identity, _meta, _body in calls:
                pending = running.calls.pop(identity)
                self._loop.call_soon(self._unsent, pending, BadRequest(told))

    def _unsent(self, pending: Pending, error: FaasdError) -> None:
        self.failed(pending, error, exec_ms=0)
        self.caught_up()

    def _turn_came(self, pending: Pending, now: float) -> None:
        """Its instance runs it from here on: the function's time limit begins."""
        pending.dispatched = now
        due = now + self._timeout_s
        if pending.deadline is not None and pending.deadline < due:
            due = pending.deadline
        pending.due = due
        if due < self._watch_due:
            self._watch_until(due, now)

    def _watch_deadline(self, pending: Pending, now: float) -> None:
        """It waits in an instance for its turn, where only its caller's deadline counts."""
        pending.dispatched = now
        pending.due = math.inf if pending.deadline is None else pending.deadline
        if pending.due < self._watch_due:
            self._watch_until(pending.due, now)

    def _watch_until(self, due: float, now: float) -> None:
        # One alarm for all calls. Most end long before they are due: it then finds nothing.
        if self._watch is not None:
            self._watch.cancel()
        self._watch_due = due
        self._watch = self._loop.call_later(max(0.0, due - now), self._look_for_late)

    def _look_for_late(self) -> None:
        self._watch, self._watch_due = None, math.inf
        now = clock.monotonic()
        next_due = math.inf
        for pending in [one for run in self._running.values() for one in run.calls.values()]:
            if pending.due > now:
                next_due = min(next_due, pending.due)
                continue
            pending.due = math.inf
            if pending.deadline is not None and pending.deadline <= now:
                self._deadline_passed(pending)
            else:
                self._timed_out(pending)
        if next_due < self._watch_due:
            self._watch_until(next_due, now)

    def _timed_out(self, pending: Pending) -> None:
        limit = self.revision.spec.limits.timeout_s
        self._interrupt(
            pending,
            FunctionTimeout(f"The function ran past its limit: [limits] timeout_s = {limit:g}."),
            grace_s=0.0 if self._alone(pending) else self._cancel_grace_s,
        )

    def _deadline_passed(self, pending: Pending) -> None:
        self._interrupt(
            pending,
            DeadlineExceeded("The caller's deadline (Faasd-Deadline-Ms) passed while it ran."),
            grace_s=self._cancel_grace_s,
        )

    def _alone(self, pending: Pending) -> bool:
        """Whether no other call would be hurt if its instance were ended."""
        if self.pool.read_ahead is not None:
            return True
        return pending.instance is not None and len(pending.instance.calls) <= 1

    def _interrupt(self, pending: Pending, reason: FaasdError, *, grace_s: float) -> None:
        """Answer the caller now, and stop the handler: politely first when there is grace."""
        running = pending.instance
        if running is None or pending.id not in running.calls or pending.stop_reason is not None:
            return
        pending.stop_reason = reason
        self._note_cost(pending, reason, (clock.monotonic() - pending.dispatched) * 1000)
        pending.fail(reason)
        if grace_s <= 0 and not self._others_need(running, pending):
            self._kill(running, reason)
            return
        self.pool.doubt(pending.id)
        if running.handle is not None:
            running.handle.cancel(pending.id)
        self._look_again(pending, grace_s)

    def _look_again(self, pending: Pending, delay_s: float) -> None:
        if pending.timer is not None:
            pending.timer.cancel()
        pending.timer = asyncio.get_running_loop().call_later(
            delay_s, self._kill_if_still_running, pending
        )

    def _kill_if_still_running(self, pending: Pending) -> None:
        running = pending.instance
        if running is None or pending.id not in running.calls:
            return
        if self._others_need(running, pending):
            # Somebody still waits for what the same process does; it gets no further calls.
            self._look_again(pending, max(_LEAST_LOOK_S, self._cancel_grace_s))
            return
        self._kill(running, pending.stop_reason or Cancelled("The caller went away."))

    def _others_need(self, running: Running, pending: Pending) -> bool:
        """Whether ending an instance for a call would hurt another one that it runs."""
        if self.pool.read_ahead is not None:
            # What waits behind its turn is queued again, and what runs before it is not its.
            return next(iter(running.calls.values())) is not pending
        return any(other.stop_reason is None for other in running.calls.values())

    def _kill(self, running: Running, reason: FaasdError) -> None:
        running.why_killed = reason
        self.pool.stopping(running.number)
        if running.handle is not None:
            running.handle.kill()

    def _condemn(self, running: Running, fault: FaasdError) -> None:
        """End an instance for a reason that is every call's on it."""
        if running.fault is not None or running.why_killed is not None:
            return
        running.fault = fault
        if running.handle is not None:
            self.pool.stopping(running.number)
            running.handle.kill()
        elif self._sandbox is not None:
            starting = self._sandbox.instances().get(running.name)
            if starting is not None:
                starting.kill()

    def _condemn_sandbox(self, fault: FaasdError) -> None:
        """End the template, and fail what was started from it, for a reason that will not go away."""
        for running in list(self._running.values()):
            self._condemn(running, fault)
        self._close_sandbox()
        self._start_failed(fault)

    def abandoned(self, pending: Pending) -> None:
        """The caller is gone: drop the call if it waits, stop it if it runs."""
        self.pool.cancel(pending.id)
        if pending.instance is None:
            self._forget(pending)
            self._step()
            return
        if pending.stream is not None:
            pending.stream.abandon()
        self._interrupt(pending, Cancelled("The caller went away."), grace_s=self._cancel_grace_s)

    def chunks(self, pending: Pending) -> AsyncIterator[bytes]:
        """The body of a streamed reply; closing it early cancels the invocation."""
        return Closable(self._chunks(pending), unread=lambda: self.abandoned(pending))

    async def _chunks(self, pending: Pending) -> AsyncGenerator[bytes, None]:
        stream = pending.stream
        assert stream is not None
        finished = False
        try:
            while (chunk := await stream.read()) is not None:
                yield chunk
            finished = True
        except FaasdError:
            finished = True
            raise
        finally:
            if not finished:
                self.abandoned(pending)

    def answered(self, pending: Pending, reply: Reply | None, took_s: float | None) -> None:
        """A call came to its end; `reply` is None for the end of a stream."""
        self._forget(pending)
        if pending.stream is not None:
            pending.stream.end()
        elif reply is not None:
            running = pending.instance
            if self.pool.waiting and running and running.handle and running.handle.tells_rounds:
                # The instance has nothing to do until it gets more; who waits for this, waits
                # for the others of its round anyway.
                self._replies.append((pending, reply))
            else:
                pending.answer(reply)
        self._finished(pending, took_s)
        if self._ejection.watching:
            self._judge(pending, None)

    def failed(self, pending: Pending, error: FaasdError, *, exec_ms: float) -> None:
        """A call ended in an error that the instance survived."""
        self._forget(pending)
        self._note_cost(pending, error, exec_ms)
        pending.fail(error)
        self._finished(pending, exec_ms / 1000)
        self._judge(pending, error)

    def _judge(self, pending: Pending, error: FaasdError | None) -> None:
        """What the end of a call says about its instance."""
        running = pending.instance
        if running is None:
            return
        if error is None:
            self._ejection.succeeded(running.number)
        elif error.code in _OF_THE_CODE and pending.stop_reason is None:
            self._ailing(running, pending)
        if running.ejected and not running.calls:
            self._stop(running.number)

    def _ailing(self, running: Running, pending: Pending) -> None:
        """The function's code failed; an instance where it does so always is to be replaced."""
        if self.revision.spec.relayed:
            return  # What failed is a program beside the instance, and no fork replaces that.
        now, number = clock.monotonic(), running.number
        if not self._ejection.failed(number, pending.dispatched, now):
            return
        if self.pool.replaceable(number):
            log.warning("instance.ejected", revision=self.revision.key, instance=running.name)
            self._ejection.ejected(number, self.pool.newest, now)
            self.pool.stopping(number)
            running.ejected = True

    def _finished(self, pending: Pending, took_s: float | None) -> None:
        now = clock.monotonic()
        pool = self.pool
        pool.finished(pending.id, now, took_s)
        if pool.read_ahead is not None and pending.instance is not None:
            for following in pending.instance.calls.values():
                self._turn_came(following, now)
                break
        if self._step_due:
            return
        if pool.waiting or pool.retired or self._desk is not None or self._idle_ends_first(now):
            # Once for all that ended in this round of the loop.
            self._step_due = True
            running = pending.instance
            if running is None or running.handle is None or not running.handle.tells_rounds:
                self._loop.call_soon(self.caught_up)

    def _idle_ends_first(self, now: float) -> bool:
        """Whether the pool has something to do before the alarm that is set."""
        return now + self.pool.keep_alive.idle_s() < self._wakeup_due

    def caught_up(self) -> None:
        """Every end of a call that is known by now has been told."""
        try:
            if self._step_due:
                self._step_due = False
                self._step()
        finally:
            self._tell_replies()

    def _tell_replies(self) -> None:
        """Tell the callers that stood back for the instance's next calls."""
        replies, self._replies = self._replies, []
        for pending, reply in replies:
            try:
                pending.answer(reply)
            except Exception:  # the boundary of an invocation: others wait for their replies
                log.exception("invocation.receiver_failed")

    def instance_lost(self, running: Running) -> None:
        """Nothing more is to be sent there: it would be lost too."""
        for call in running.calls:
            self.pool.doubt(call)
            return

    def instance_closed(self, running: Running, end: Exit) -> None:
        """An instance is gone: every call on it is answered with the reason."""
        if running.fault is not None and running.handle is None:
            self._fork_failed(running, running.fault)
            return
        self._running.pop(running.number, None)
        self._ejection.gone(running.number)
        lost = self.pool.instance_gone(running.number, clock.monotonic())
        alone = len(lost) == 1
        for identity in lost:
            pending = running.calls.pop(identity, None)
            if pending is None:
                continue
            self._forget(pending)
            error = _fate(pending, running, end, alone=alone)
            self._note_cost(pending, error, (clock.monotonic() - pending.dispatched) * 1000)
            pending.fail(error)
        for pending in running.calls.values():
            # It had not begun: the pool has it in its queue again.
            self._tally.returned(pending.kind)
            pending.instance, pending.due = None, math.inf
        running.calls.clear()
        self._give_back(running)
        self._step()

    def _forget(self, pending: Pending) -> None:
        if pending.timer is not None:
            pending.timer.cancel()
        if self._pending.pop(pending.id, None) is not None:
            self._tally.ended(ran=pending.instance is not None)

    def _drop(self, pending: Pending, error: FaasdError) -> None:
        self._forget(pending)
        self._note_cost(pending, error, 0.0)
        pending.fail(error)

    def _note_cost(self, pending: Pending, error: FaasdError, exec_ms: float) -> None:
        error.extra["timings"] = self.timings(pending, exec_ms).as_list()
        error.extra["start"] = str(pending.kind)
        error.extra["worker"] = self.worker_id

    def user_error(self, problem: dict[str, Any]) -> FaasdError:
        """What an instance said of a call, as an error of ours."""
        code = str(problem.get("code"))
        message = str(problem.get("message", ""))
        if code in ("bad_request", "unserialisable_result", "cancelled"):
            return from_problem({"code": code, "detail": message, "remedy": _REMEDIES.get(code)})
        kind = str(problem.get("type"))
        trace = str(problem.get("traceback", ""))
        detail = f"The function raised {kind}" + (f": {message}" if message else "") + "."
        if code == "out_of_memory":
            limit = self.revision.spec.resources.memory_mb
            return OutOfMemory(f"{detail} [resources] memory_mb = {limit}.", traceback=trace)
        return HandlerError(detail, traceback=trace)

    def timings(self, pending: Pending, exec_ms: float) -> Timings:
        """How the time from arrival to dispatch divides: starts that it waited for, and queue."""
        end = pending.dispatched or clock.monotonic()
        if pending.kind is StartKind.WARM:
            return Timings((end - pending.arrived) * 1000, 0.0, 0.0, 0.0, exec_ms)
        phases = {"sandbox": 0.0, "libs": 0.0, "load": 0.0}
        if pending.instance is not None:
            for span in pending.instance.spans:
                overlap = min(span.end, end) - max(span.begin, pending.arrived)
                if overlap > 0:
                    phases[span.phase] += overlap * 1000
        queue = max(0.0, (end - pending.arrived) * 1000 - sum(phases.values()))
        return Timings(queue=queue, exec=exec_ms, **phases)

    def idle_holders(self) -> tuple[float | None, float]:
        """Since when all of this is unused (None while in use), and what ending it would free."""
        seen = self.pool.statistics()
        evictable = self.pool.min_instances == 0 and (seen.idle or seen.sandbox == "ready")
        return (self.pool.idle_since() if evictable else None), self.memory_mb


def _too_late(left_s: float) -> DeadlineExceeded:
    if left_s <= 0:
        return DeadlineExceeded("The deadline passed while it waited.")
    return DeadlineExceeded(
        f"It was not started: the function hardly ever ends within the {left_s * 1000:.0f} ms that "
        "were left to the deadline.",
    )


def _fate(pending: Pending, running: Running, end: Exit, *, alone: bool) -> FaasdError:
    """What a call is told whose instance is gone."""
    if running.why_killed is not None and (alone or pending.stop_reason is not None):
        return running.why_killed
    shared = running.fault or end.reason
    if shared is None:
        return InstanceDied(f"The instance {end.detail} while it served the invocation.")
    # An error of its own: what the call cost stands in it.
    return from_problem(shared.to_problem())


def _refusal(error: FaasdError, *, final: bool) -> FaasdError:
    """What a deploy is told of an instance that did not start; `final` when it is not tried again."""
    if isinstance(error, DeployFailed | OutOfMemory) or (final and isinstance(error, Unavailable)):
        return error
    return DeployFailed(error.detail, remedy=error.remedy if final else None)


def _told(error: Exception) -> FaasdError:
    """What a start that failed where it must not is to its caller."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("The worker's disk is full.")
    return InternalError(f"Starting the function failed: {error!r}.")
