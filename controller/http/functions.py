"""/v1/functions and /v1/artifacts: deploy, list, remove, roll back, logs, uploads."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from controller.http.app import CALLER, FOLLOWERS, PARTS, REQUEST_ID
from controller.http.bodies import chunks, in_time, read_json
from controller.http.parameters import full_name, query_flag, query_int
from controller.http.replies import problem_object
from controller.links import Progress
from controller.registry import Function
from faasd import clock
from faasd.blobs import check_digest
from faasd.errors import BadRequest, BodyTooLarge, FaasdError, InternalError, NotFound
from faasd.invocation import LogLine
from faasd.spec import MAX_SPEC_BYTES, FunctionSpec, parse_spec
from faasd.telemetry import get_logger

log = get_logger("controller.http")

_EVENTS = "text/event-stream"
_FORM_REMEDY = "Send the form as /openapi.json describes it; `faasd deploy DIR` does."
_SSE = {"Content-Type": _EVENTS, "Cache-Control": "no-cache"}


async def deploy(request: web.Request) -> web.StreamResponse:
    parts = request.app[PARTS]
    name = full_name(request)
    spec, code, artifacts = await _read_form(request)
    if spec.name != request.match_info["name"]:
        raise BadRequest(
            f"The spec's name is {spec.name!r}, the address says {request.match_info['name']!r}.",
            remedy="Use the same name in both.",
        )

    async def work(progress: Progress) -> tuple[int, dict[str, Any]]:
        deployment = await parts.registry.deploy(name, spec, code, artifacts, progress)
        return (201 if deployment.created else 200), _shown(deployment.function, _present(request))

    return await _with_progress(request, work)


async def rollback(request: web.Request) -> web.StreamResponse:
    name = full_name(request)
    body = await read_json(request)
    wanted = body.get("revision")
    if set(body) - {"revision"} or not isinstance(wanted, str | None):
        raise BadRequest(
            "The body of a rollback holds nothing but a revision, as a string.",
            remedy='Send {"revision": "..."}, or {} for the one before.',
        )

    async def work(progress: Progress) -> tuple[int, dict[str, Any]]:
        function = await request.app[PARTS].registry.rollback(name, wanted, progress)
        return 200, _shown(function, _present(request))

    return await _with_progress(request, work)


async def _with_progress(
    request: web.Request, work: Callable[[Progress], Awaitable[tuple[int, dict[str, Any]]]]
) -> web.StreamResponse:
    """Run it to its end, whether or not the caller stays; with events while it runs if asked."""
    events: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(lambda stage, detail: events.put_nowait((stage, detail))))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    if _EVENTS not in request.headers.get("Accept", ""):
        status, body = await asyncio.shield(task)
        return web.json_response(body, status=status)
    response = web.StreamResponse(headers={**_SSE, "faasd-request-id": request[REQUEST_ID]})
    await response.prepare(request)
    task.add_done_callback(lambda _done: events.put_nowait(None))
    while (event := await events.get()) is not None:
        await _send(response, "progress", {"stage": event[0], "detail": event[1]})
    await _send(response, *_outcome(request, task))
    await response.write_eof()
    return response


def _outcome(
    request: web.Request, task: asyncio.Future[tuple[int, dict[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    """The last event: its name and its data."""
    try:
        return "result", task.result()[1]
    except FaasdError as error:
        told = error.to_problem()
    except Exception:  # the boundary of a request whose status has gone out already
        log.exception("request.failed", path=request.path, request_id=request[REQUEST_ID])
        told = InternalError("The request could not be completed.").to_problem()
    return "error", problem_object(told, request[REQUEST_ID])


async def _send(response: web.StreamResponse, event: str, data: Any) -> None:
    await response.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())


async def _read_form(request: web.Request) -> tuple[FunctionSpec, str, dict[str, str]]:
    parts = request.app[PARTS]
    spec: FunctionSpec | None = None
    code: str | None = None
    artifacts: dict[str, str] = {}
    if not request.content_type.startswith("multipart/"):
        raise BadRequest(
            "A deploy is a multipart form with the parts spec and code.",
            remedy=_FORM_REMEDY,
        )
    try:
        form = await request.multipart()
        while (part := await in_time(request, form.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise BadRequest("Parts within parts are not accepted.", remedy=_FORM_REMEDY)
            if part.name == "spec":
                content_type = part.headers.get("Content-Type", "application/toml")
                spec = parse_spec(await _read_part(request, part, MAX_SPEC_BYTES), content_type)
            elif part.name == "code":
                code = await parts.blobs.put(
                    _part_chunks(request, part), sha256=None, max_mb=parts.code_max_mb
                )
            elif part.name == "artifacts":
                artifacts = _digests(await _read_part(request, part, MAX_SPEC_BYTES))
            else:
                raise BadRequest(
                    f"Unknown part {str(part.name)[:40]!r}: accepted are spec, code, artifacts.",
                    remedy=_FORM_REMEDY,
                )
    except (ValueError, AssertionError, LookupError, HttpProcessingError) as error:
        raise BadRequest(
            f"The multipart form is malformed: {str(error)[:200]}.", remedy=_FORM_REMEDY
        ) from None
    if spec is None or code is None:
        raise BadRequest("The form needs both parts: spec and code.", remedy=_FORM_REMEDY)
    return spec, code, artifacts


async def _part_chunks(request: web.Request, part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await in_time(request, part.read_chunk(1 << 18)):
        yield chunk


async def _read_part(request: web.Request, part: BodyPartReader, limit: int) -> bytes:
    body = bytearray()
    async for chunk in _part_chunks(request, part):
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(
                f"The part {part.name} has more than {limit} bytes.",
                remedy="Keep data out of function.toml: ship it as files or artifacts.",
            )
    return bytes(body)


def _digests(text: bytes) -> dict[str, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The part artifacts is not JSON: {error}.", remedy=_FORM_REMEDY) from None
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise BadRequest(
            "artifacts must be a JSON object of names and SHA-256 digests.", remedy=_FORM_REMEDY
        )
    return {str(name): check_digest(digest) for name, digest in value.items()}


async def list_functions(request: web.Request) -> web.Response:
    found = request.app[PARTS].registry.list(request[CALLER].namespace)
    present = _present(request)
    return web.json_response({"functions": [_shown(function, present) for function in found]})


async def show_function(request: web.Request) -> web.Response:
    function = request.app[PARTS].registry.get(full_name(request))
    return web.json_response(_shown(function, _present(request)))


async def remove(request: web.Request) -> web.Response:
    await request.app[PARTS].registry.remove(full_name(request))
    return web.Response(status=204)


def _present(request: web.Request) -> dict[str, dict[str, float]]:
    """What all workers together have of each function that has anything there."""
    found: dict[str, dict[str, float]] = {}
    for member in request.app[PARTS].workers.members():
        for seen in member.link.report().functions:
            totals = found.setdefault(seen.function, defaultdict(float))
            for key in ("starting", "idle", "busy", "queued", "memory_mb"):
                totals[key] += getattr(seen, key)
    return found


def _shown(function: Function, present: dict[str, dict[str, float]]) -> dict[str, Any]:
    namespace, _, name = function.name.partition("/")
    totals = present.get(function.name, defaultdict(float))
    return {
        "name": name,
        "namespace": namespace,
        "revision": function.active.id,
        "runtime": function.active.spec.runtime,
        "created_at": clock.iso(function.created_at),
        "url": f"/invoke/{name}",
        "spec": function.active.spec.model_dump(mode="json"),
        "revisions": [
            {
                "revision": stored.revision.id,
                "created_at": clock.iso(stored.created_at),
                "active": stored.revision.id == function.active.id,
            }
            for stored in function.history
        ],
        "instances": {key: int(totals[key]) for key in ("starting", "idle", "busy")},
        "queued": int(totals["queued"]),
        "memory_mb": round(totals["memory_mb"], 1),
    }


async def logs(request: web.Request) -> web.StreamResponse:
    """The lines of all workers as server-sent events, merged as they come."""
    name = full_name(request)
    parts = request.app[PARTS]
    parts.registry.get(name)
    tail = query_int(request, "tail", default=100, least=0, most=10_000)
    follow = query_flag(request, "follow")
    response = web.StreamResponse(headers={**_SSE, "faasd-request-id": request[REQUEST_ID]})
    await response.prepare(request)
    lines: asyncio.Queue[LogLine | None] = asyncio.Queue(maxsize=1000)
    sources = [
        asyncio.ensure_future(_pump(member.link.logs(name, tail=tail, follow=follow), lines))
        for member in parts.workers.members()
        if member.status != "lost"
    ]
    open_sources = len(sources)
    followers = request.app[FOLLOWERS]
    task = asyncio.current_task()
    assert task is not None
    followers.add(task)
    try:
        while open_sources:
            line = await lines.get()
            if line is None:
                open_sources -= 1
            else:
                await _send(response, "log", line.to_plain())
        await response.write_eof()
    finally:
        followers.discard(task)
        for source in sources:
            source.cancel()
        await asyncio.gather(*sources, return_exceptions=True)
    return response


async def _pump(source: AsyncIterator[LogLine], lines: asyncio.Queue[LogLine | None]) -> None:
    try:
        async for line in source:
            await lines.put(line)
    except FaasdError:
        log.debug("logs.worker_left")
    except Exception:  # the boundary of one worker's lines: the others' go on
        log.exception("logs.failed")
    await lines.put(None)


async def head_artifact(request: web.Request) -> web.Response:
    sha256 = check_digest(request.match_info["sha256"])
    if not request.app[PARTS].blobs.has(sha256):
        raise NotFound("The artifact has not been uploaded.", remedy="PUT it to this address.")
    return web.Response()


async def put_artifact(request: web.Request) -> web.Response:
    parts = request.app[PARTS]
    sha256 = check_digest(request.match_info["sha256"])
    if parts.blobs.has(sha256):
        return web.json_response({"sha256": sha256}, status=200)
    await parts.blobs.put(chunks(request), sha256=sha256, max_mb=parts.artifact_max_mb)
    return web.json_response({"sha256": sha256}, status=201)
