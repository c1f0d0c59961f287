"""The controller daemon: puts its parts together, serves, and ends in order."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

from aiohttp import web

from controller.asynchronous import AsyncInvocations
from controller.auth import Keys
from controller.cluster import ClusterServer
from controller.dispatch import Dispatcher
from controller.gateway import Gateway
from controller.http import openapi
from controller.http.app import Parts, build_app
from controller.http.front import Front, Lobby
from controller.http.routes import ROUTES
from controller.registry import Registry
from controller.store.sqlite import SqliteStore
from controller.workers import Workers
from faasd.blobs import BlobStore
from faasd.errors import BadRequest
from faasd.policies.routing.routers import ROUTERS
from faasd.settings import ControllerSettings, is_loopback
from faasd.telemetry import Metrics, get_logger

log = get_logger("controller.daemon")

STORE_FILE = "faasd.db"
_BACKLOG = 1024
_LINGER_S = 10.0


class Controller:
    """Owned by the event loop: `start`, then serve until `aclose`."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self.store = SqliteStore(settings.data / STORE_FILE)
        self.blobs = BlobStore(settings.data / "artifacts")
        self.workers = Workers()
        self.dispatcher = Dispatcher(self.workers, ROUTERS[settings.routing](random.Random()))
        self.registry = Registry(
            self.store,
            self.blobs,
            self.workers,
            code_max_mb=settings.code_max_mb,
            deploy_timeout_s=settings.deploy_timeout_s,
        )
        self.gateway = Gateway(self.registry, self.dispatcher, self.store, self.metrics)
        self.asynchronous = AsyncInvocations(
            self.store,
            self.registry,
            self.gateway,
            concurrency=settings.async_concurrency,
            retention_s=settings.result_retention_s,
            key_retention_s=settings.idempotency_retention_s,
        )
        self.keys = Keys(self.store, open_to_all=is_loopback(settings.host))
        self.cluster = _cluster(settings, self.workers, self.blobs)
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._lobby: Lobby | None = None
        self.port = settings.port

    @property
    def url(self) -> str:
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def open(self) -> None:
        """Take up what is stored. Raises BadRequest when it must not listen where it is told to."""
        await self.store.open()
        self.blobs.open()
        await self.keys.open()
        await self.registry.open()

    async def serve(self) -> None:
        """Listen; workers have joined, or will. Raises BadRequest when the address is taken."""
        if self.cluster is not None:
            await self.cluster.start()
        await self.asynchronous.start()
        app = build_app(
            Parts(
                registry=self.registry,
                workers=self.workers,
                gateway=self.gateway,
                asynchronous=self.asynchronous,
                keys=self.keys,
                blobs=self.blobs,
                metrics=self.metrics,
                openapi=json.dumps(openapi.document(ROUTES)).encode(),
                artifact_max_mb=self._settings.artifact_max_mb,
                code_max_mb=self._settings.code_max_mb,
                patience_s=self._settings.http_patience_s,
            ),
            ROUTES,
        )
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            # Bodies pass through as they were sent; a compressed one is the function's to open.
            auto_decompress=False,
            shutdown_timeout=self._settings.shutdown_grace_s,
            keepalive_timeout=self._settings.http_keep_alive_s,
            # The rest of a body that was refused is read, and dropped, for so long.
            lingering_time=min(_LINGER_S, self._settings.http_patience_s),
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._lobby = lobby = Lobby(
            self.registry,
            self.gateway,
            self.keys,
            hand_over=self._runner.server,
            keep_alive_s=self._settings.http_keep_alive_s,
            patience_s=self._settings.http_patience_s,
        )
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Front(lobby), self._settings.host, self._settings.port, backlog=_BACKLOG
            )
        except OSError as error:
            raise BadRequest(
                f"Cannot listen on {self._settings.host}:{self._settings.port}: {error.strerror}.",
                remedy="End what listens there, or choose another --port.",
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("controller.listening", url=self.url)

    async def aclose(self) -> None:
        """Stop accepting, let running requests end for a while, then stop."""
        if self._server is not None:
            self._server.close()
        if self._lobby is not None:
            await self._lobby.aclose(self._settings.shutdown_grace_s)
        if self._runner is not None:
            await self._runner.cleanup()
        await self.asynchronous.aclose()
        if self.cluster is not None:
            await self.cluster.aclose()
        await self.store.aclose()
        log.info("controller.stopped")

    def artifact(self, sha256: str) -> Path | None:
        """Where a blob lies, for a worker on this machine."""
        return self.blobs.path(sha256) if self.blobs.has(sha256) else None


def _cluster(
    settings: ControllerSettings, workers: Workers, blobs: BlobStore
) -> ClusterServer | None:
    if settings.cluster_port is None or settings.cluster_secret is None:
        return None
    return ClusterServer(
        workers,
        blobs,
        host=settings.cluster_host,
        port=settings.cluster_port,
        secret=settings.cluster_secret.get_secret_value(),
        heartbeat_timeout_s=settings.heartbeat_timeout_s,
    )
