"""The table of the API's calls: the one list that the server, its roles and OpenAPI agree on."""

from __future__ import annotations

from controller.http import cluster, functions, invoke
from controller.http.app import Route
from controller.http.openapi import show_openapi

ROUTES = [
    Route("POST", "/invoke/{endpoint}", invoke.invoke, "invoke"),
    Route("GET", "/v1/functions", functions.list_functions, "invoke"),
    Route("GET", "/v1/functions/{name}", functions.show_function, "invoke"),
    Route("PUT", "/v1/functions/{name}", functions.deploy, "deploy"),
    Route("DELETE", "/v1/functions/{name}", functions.remove, "deploy"),
    Route("POST", "/v1/functions/{name}/rollback", functions.rollback, "deploy"),
    Route("GET", "/v1/functions/{name}/logs", functions.logs, "deploy"),
    Route("HEAD", "/v1/artifacts/{sha256}", functions.head_artifact, "deploy"),
    Route("PUT", "/v1/artifacts/{sha256}", functions.put_artifact, "deploy"),
    Route("GET", "/v1/invocations", invoke.list_invocations, "invoke"),
    Route("GET", "/v1/invocations/{id}", invoke.show_invocation, "invoke"),
    Route("GET", "/v1/invocations/{id}/result", invoke.show_result, "invoke"),
    Route("POST", "/v1/invocations/{id}/redrive", invoke.redrive, "deploy"),
    Route("GET", "/v1/workers", cluster.list_workers, "deploy"),
    Route("POST", "/v1/workers/{id}/drain", cluster.drain, "admin"),
    Route("POST", "/v1/keys", cluster.create_key, "admin"),
    Route("GET", "/v1/keys", cluster.list_keys, "admin"),
    Route("DELETE", "/v1/keys/{id}", cluster.remove_key, "admin"),
    Route("GET", "/metrics", cluster.metrics, "invoke"),
    Route("GET", "/healthz", cluster.healthz, None),
    Route("GET", "/readyz", cluster.readyz, None),
    Route("GET", "/openapi.json", show_openapi, None),
]
