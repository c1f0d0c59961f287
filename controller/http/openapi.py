"""The OpenAPI document of the API, served at /openapi.json."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from faasd import __version__
from faasd.spec import FunctionSpec


def document() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "faasd", "version": __version__},
        "paths": {},
        "components": {"schemas": {"FunctionSpec": FunctionSpec.model_json_schema()}},
    }


async def show_openapi(_request: web.Request) -> web.Response:
    return web.json_response(document())
