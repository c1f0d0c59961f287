"""The client for programs that run an event loop: one method for each call of the HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp

from faasd.client import bodies, target
from faasd.client.answers import (
    ClusterStatus,
    Function,
    Invocation,
    InvokeResult,
    Key,
    LogLine,
    Progress,
    Submitted,
    Worker,
    read,
    read_list,
)
from faasd.client.deploy import deploy
from faasd.client.items import Events, decoder_for, json_object, problem_of
from faasd.client.transport import Transport, Unreachable, segment
from faasd.errors import BadRequest, Conflict, FaasdError, HandlerError, Unavailable, from_problem

DEADLINE_GRACE_S = 10.0
FIRST_POLL_S = 0.05
LONGEST_POLL_S = 2.0


class AsyncClient:
    """Speaks to one controller as one caller. Not thread-safe; owned by the loop that first uses it.

    `url` and `key` default to FAASD_URL and FAASD_API_KEY. `timeout_s` bounds every call but deploys
    and streams; without it invocations wait as long as they take, and other calls a minute. Every
    method raises the class of `faasd.errors` that the controller's problem names, and Unreachable
    when no controller answers.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        namespace: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._transport = Transport(target.resolve(url, key, namespace), timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        return self._transport.target.url

    async def aclose(self) -> None:
        """Close the connections; a later call opens new ones."""
        await self._transport.aclose()

    async def deploy(
        self,
        path: Path | str,
        name: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> Function:
        """Deploy the function in the folder `path`, returning once it serves.

        `name` takes the place of the one in function.toml, and `settings`, by keys such as
        "limits.timeout_s", the place of its other values. `on_progress` is called on the client's
        loop with each step. Equal content makes no new revision.
        """
        tell = on_progress or _silent
        return await deploy(self._transport, Path(path), tell, name=name, settings=settings)

    async def functions(self) -> list[Function]:
        answer = await self._transport.json("GET", "/v1/functions")
        return read_list(Function, answer, "functions")

    async def function(self, name: str) -> Function:
        return read(Function, await self._transport.json("GET", _function(name)))

    async def remove(self, name: str) -> None:
        """Remove a function; what runs is finished."""
        await self._transport.json("DELETE", _function(name))

    async def rollback(self, name: str, revision: str | None = None) -> Function:
        """Make an earlier revision the active one: the one before, unless named."""
        body = {} if revision is None else {"revision": revision}
        path = f"{_function(name)}/rollback"
        # The revision is started first, which takes as long as it takes.
        answer = await self._transport.json("POST", path, json=body, timeout_s=self._timeout_s)
        return read(Function, answer)

    async def logs(
        self, name: str, *, follow: bool = False, tail: int = 100
    ) -> AsyncGenerator[LogLine, None]:
        """The last `tail` lines the function printed, and with `follow` the coming ones."""
        query = f"tail={int(tail)}" + ("&follow=1" if follow else "")
        async with self._transport.request("GET", f"{_function(name)}/logs?{query}") as response:
            if not response.ok or response.content_type != bodies.EVENTS:
                raise self._transport.foreign(response)
            events = Events()
            async for chunk in response.content.iter_any():
                for event in events.feed(chunk):
                    if event.name == "error":
                        raise problem_of(event)
                    if event.name == "log":
                        yield read(LogLine, json_object(event.data))

    async def invoke(
        self,
        name: str,
        value: Any = None,
        *,
        content_type: str | None = None,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
        request_id: str | None = None,
    ) -> InvokeResult:
        """Invoke a function and wait for its whole result.

        Bytes and str are sent as they are, None as no body, anything else as JSON. Past `deadline_s`
        the controller gives the invocation up and DeadlineExceeded is raised.
        """
        kind, body = bodies.encode(value, content_type)
        timeout_s = self._timeout_s
        if timeout_s is None and deadline_s is not None:
            # The controller keeps the deadline; this only ends the wait for one that hangs.
            timeout_s = deadline_s + DEADLINE_GRACE_S
        headers = _headers(kind, deadline_s, idempotency_key, request_id)
        async with self._invocation(name, body, headers, timeout_s=timeout_s) as response:
            self._check_invoked(response)
            return _result(response, await response.read())

    async def stream(
        self,
        name: str,
        value: Any = None,
        *,
        content_type: str | None = None,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
        request_id: str | None = None,
        sse: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """Invoke a function and yield what it yields, as it arrives.

        JSON items come decoded, text as str and bytes as bytes, in whatever pieces arrive; a function
        that does not stream gives its one value. With `sse` the items travel as server-sent events
        and each comes as its text, JSON items undecoded. Leaving the iteration cancels the invocation.
        """
        kind, body = bodies.encode(value, content_type)
        headers = _headers(kind, deadline_s, idempotency_key, request_id)
        headers["Accept"] = bodies.EVENTS if sse else "*/*"
        async with self._invocation(name, body, headers) as response:
            self._check_invoked(response)
            decoder = decoder_for(response.headers.get("Content-Type", ""))
            async for chunk in response.content.iter_any():
                for item in decoder.feed(chunk):
                    yield item
            for item in decoder.finish():
                yield item

    async def submit(
        self,
        name: str,
        value: Any = None,
        *,
        content_type: str | None = None,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
        request_id: str | None = None,
    ) -> str:
        """Queue an invocation, which is retried until it succeeds or is dead; its id."""
        kind, body = bodies.encode(value, content_type)
        headers = _headers(kind, deadline_s, idempotency_key, request_id)
        path = f"/invoke/{segment(name)}?mode=async"
        answer = await self._transport.json("POST", path, data=body or None, headers=headers)
        return read(Submitted, answer).id

    async def invocation(self, invocation_id: str) -> Invocation:
        return read(Invocation, await self._transport.json("GET", _invocation(invocation_id)))

    async def result(self, invocation_id: str, wait_s: float | None = None) -> InvokeResult:
        """The result of a queued invocation, waiting up to `wait_s` seconds, or for good, for it.

        Raises the error of the last attempt when the invocation is dead, and Conflict when it is not
        finished in time; 0 asks once.
        """
        try:
            async with asyncio.timeout(None if wait_s is None or wait_s <= 0 else wait_s):
                for pause_s in _pauses():
                    invocation = await self.invocation(invocation_id)
                    if invocation.status in {"succeeded", "dead"} or wait_s == 0:
                        break
                    await asyncio.sleep(pause_s)
        except TimeoutError:
            raise _unfinished(invocation_id, "not finished") from None
        if invocation.status == "dead":
            raise _death(invocation)
        if invocation.status != "succeeded":
            raise _unfinished(invocation_id, invocation.status)
        return await self._stored_result(invocation)

    async def invocations(
        self, status: str | None = None, function: str | None = None, limit: int = 100
    ) -> list[Invocation]:
        """Queued and finished invocations, newest first, without their results."""
        given = {"status": status, "function": function, "limit": str(limit)}
        query = {name: value for name, value in given.items() if value is not None}
        answer = await self._transport.json("GET", f"/v1/invocations?{urlencode(query)}")
        return read_list(Invocation, answer, "invocations")

    async def redrive(self, invocation_id: str) -> None:
        """Queue a dead invocation again."""
        await self._transport.json("POST", f"{_invocation(invocation_id)}/redrive")

    async def workers(self) -> list[Worker]:
        answer = await self._transport.json("GET", "/v1/workers")
        return read_list(Worker, answer, "workers")

    async def drain(self, worker: str) -> None:
        """Give a worker no more invocations; it finishes what it has."""
        await self._transport.json("POST", f"/v1/workers/{segment(worker)}/drain")

    async def create_key(self, name: str, role: str, namespace: str = "default") -> Key:
        """Make an API key; its secret is in this answer only."""
        body = {"name": name, "role": role, "namespace": namespace}
        return read(Key, await self._transport.json("POST", "/v1/keys", json=body))

    async def keys(self) -> list[Key]:
        answer = await self._transport.json("GET", "/v1/keys")
        return read_list(Key, answer, "keys")

    async def delete_key(self, key_id: str) -> None:
        await self._transport.json("DELETE", f"/v1/keys/{segment(key_id)}")

    async def status(self) -> ClusterStatus:
        """The workers, what they hold, and the functions, at one moment."""
        ready = await self._is_ready()
        workers, functions = await self.workers(), await self.functions()
        return ClusterStatus(self.url, ready, tuple(workers), tuple(functions))

    async def _is_ready(self) -> bool:
        try:
            async with self._transport.request("GET", "/readyz") as response:
                return response.ok
        except Unreachable:
            raise
        except Unavailable:
            return False

    def _invocation(
        self, name: str, body: bytes, headers: dict[str, str], timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._transport.request(
            "POST",
            f"/invoke/{segment(name)}",
            timeout_s=timeout_s,
            data=body or None,
            headers=headers,
        )

    def _check_invoked(self, response: aiohttp.ClientResponse) -> None:
        # A function may answer with any status; only the controller sends this header.
        if "faasd-request-id" not in response.headers:
            raise self._transport.foreign(response)

    async def _stored_result(self, invocation: Invocation) -> InvokeResult:
        path = f"{_invocation(invocation.id)}/result"
        async with self._transport.request("GET", path) as response:
            result = _result(response, await response.read())
        return replace(
            result,
            start_kind=result.start_kind or invocation.start or "",
            timings=result.timings or invocation.timings or {},
            worker=result.worker or _last_worker(invocation),
            revision=result.revision or invocation.revision or "",
            request_id=invocation.id,
        )


def _function(name: str) -> str:
    return f"/v1/functions/{segment(name)}"


def _invocation(invocation_id: str) -> str:
    return f"/v1/invocations/{segment(invocation_id)}"


def _silent(progress: Progress) -> None:
    """Tell nobody."""


def _headers(
    content_type: str | None,
    deadline_s: float | None,
    idempotency_key: str | None,
    request_id: str | None,
) -> dict[str, str]:
    if deadline_s is not None and deadline_s <= 0:
        raise BadRequest("The deadline must lie ahead.", remedy="Give seconds above 0.")
    given = {
        "Content-Type": content_type,
        "Faasd-Deadline-Ms": None if deadline_s is None else str(max(1, round(deadline_s * 1000))),
        "Idempotency-Key": idempotency_key,
        "Faasd-Request-Id": request_id,
    }
    headers = {name: value for name, value in given.items() if value is not None}
    for name, value in headers.items():
        if not value.isprintable():
            raise BadRequest(f"{name} must be one line of printable text.")
    return headers


def _result(response: aiohttp.ClientResponse, body: bytes) -> InvokeResult:
    headers = response.headers
    return InvokeResult(
        status=response.status,
        content_type=headers.get("Content-Type", ""),
        body=body,
        start_kind=headers.get("faasd-start", ""),
        timings=bodies.timings(headers.get("Server-Timing", "")),
        worker=headers.get("faasd-worker", ""),
        revision=headers.get("faasd-revision", ""),
        request_id=headers.get("faasd-request-id", ""),
        replayed=headers.get("Idempotency-Replayed", "") == "true",
    )


def _pauses() -> Iterator[float]:
    pause_s = FIRST_POLL_S
    while True:
        yield pause_s
        pause_s = min(LONGEST_POLL_S, pause_s * 1.5)


def _death(invocation: Invocation) -> FaasdError:
    if invocation.error is not None:
        return from_problem(invocation.error)
    return HandlerError(f"The invocation {invocation.id} is dead.")


def _unfinished(invocation_id: str, state: str) -> FaasdError:
    return Conflict(
        f"The invocation {invocation_id} is {state}.",
        remedy="Ask again later, or allow a longer wait.",
    )


def _last_worker(invocation: Invocation) -> str:
    return (invocation.attempts[-1].worker or "") if invocation.attempts else ""
