"""Workers, keys, health and metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from controller.auth import DEFAULT_NAMESPACE, ROLES
from controller.http.app import PARTS
from controller.http.bodies import read_json
from controller.http.parameters import name_of
from controller.store.port import StoredKey
from controller.workers import WorkerStatus
from faasd import clock
from faasd.errors import BadRequest, NotFound, Unavailable


async def list_workers(request: web.Request) -> web.Response:
    return web.json_response({"workers": request.app[PARTS].workers.describe()})


async def drain(request: web.Request) -> web.Response:
    request.app[PARTS].workers.drain(request.match_info["id"])
    return web.json_response({"id": request.match_info["id"], "status": "draining"}, status=202)


async def create_key(request: web.Request) -> web.Response:
    wanted = await read_json(request)
    unknown = set(wanted) - {"name", "role", "namespace"}
    if unknown:
        raise BadRequest(
            f"Unknown members {', '.join(sorted(unknown))[:80]}.",
            remedy="Accepted are name, role and namespace.",
        )
    values = {"name": "key", "role": "invoke", "namespace": DEFAULT_NAMESPACE, **wanted}
    if not all(isinstance(value, str) for value in values.values()):
        raise BadRequest(
            "name, role and namespace must be strings.",
            remedy='Send e.g. {"name": "ci", "role": "deploy", "namespace": "default"}.',
        )
    name_of(values["namespace"])
    keys = request.app[PARTS].keys
    if values["role"] in ROLES and values["role"] != "admin" and not keys.exist:
        raise BadRequest(
            "The first key must be an admin's: from then on every call needs a key.",
            remedy="Make it with `faasd keys create NAME --role admin`.",
        )
    key, secret = await keys.create(**values)
    return web.json_response({**_shown(key), "key": secret}, status=201)


async def list_keys(request: web.Request) -> web.Response:
    found = await request.app[PARTS].keys.list()
    return web.json_response({"keys": [_shown(key) for key in found]})


async def remove_key(request: web.Request) -> web.Response:
    if not await request.app[PARTS].keys.remove(request.match_info["id"]):
        raise NotFound("There is no such key.", remedy="List them with `faasd keys ls`.")
    return web.Response(status=204)


def _shown(key: StoredKey) -> dict[str, Any]:
    return {**asdict(key), "created_at": clock.iso(key.created_at)}


async def healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    if not request.app[PARTS].workers.ready:
        raise Unavailable(
            "No worker is connected.", remedy="Start one with `faasd worker`.", retry_after_s=1.0
        )
    return web.json_response({"status": "ok"})


async def metrics(request: web.Request) -> web.Response:
    parts = request.app[PARTS]
    gauges = parts.metrics
    for gauge in (
        *(gauges.queued, gauges.instances, gauges.ejected, gauges.memory),
        *(gauges.workers, gauges.backlog),
    ):
        gauge.clear()
    counts = dict.fromkeys(WorkerStatus, 0)
    for member in parts.workers.members():
        counts[member.status] += 1
        if member.status is WorkerStatus.LOST:
            continue
        worker = member.link.worker_id
        for seen in member.link.report().functions:
            gauges.queued.labels(worker, seen.function).inc(seen.queued)
            gauges.ejected.labels(worker, seen.function).inc(seen.ejected)
            gauges.memory.labels(worker, seen.function).inc(seen.memory_mb * (1 << 20))
            for state in ("starting", "idle", "busy"):
                gauges.instances.labels(worker, seen.function, state).inc(getattr(seen, state))
    for key, count in parts.gateway.dispatcher.waiting().items():
        gauges.queued.labels("", key.partition("@")[0]).inc(count)
    for status, count in counts.items():
        gauges.workers.labels(str(status)).set(count)
    for state, count in (await parts.asynchronous.backlog()).items():
        gauges.backlog.labels(state).set(count)
    return web.Response(
        body=gauges.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )
