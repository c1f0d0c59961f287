"""What each call of the API takes and answers, as the OpenAPI document tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controller.http.schemas import DIGEST, INVOCATION_STATUS, NAME, SPEC_EXAMPLE, Schema, ref
from faasd.errors import (
    BadRequest,
    BodyTooLarge,
    Conflict,
    DeadlineExceeded,
    DeployFailed,
    DigestMismatch,
    FaasdError,
    FunctionNotFound,
    FunctionTimeout,
    HandlerError,
    IdempotencyMismatch,
    InstanceDied,
    InvalidArchive,
    InvalidSpec,
    NotFound,
    OutOfMemory,
    QueueFull,
    Unavailable,
    UnserialisableResult,
    WorkerLost,
)

EVENTS = "text/event-stream"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: `answers` are its OpenAPI responses that are not errors, by status."""

    id: str
    tag: str
    summary: str
    answers: dict[str, Any]
    errors: tuple[type[FaasdError], ...] = ()
    parameters: tuple[Schema, ...] = ()
    body: Schema | None = None
    description: str = ""
    is_invocation: bool = field(default=False, kw_only=True)


def _answer(description: str, content: Schema | None = None, **headers: str) -> Schema:
    """A response; `headers` name components by the header they document."""
    answer: Schema = {"description": description}
    if content is not None:
        answer["content"] = content
    if headers:
        answer["headers"] = {
            name.replace("_", "-"): {"$ref": f"#/components/headers/{component}"}
            for name, component in headers.items()
        }
    return answer


def _json(schema: str) -> Schema:
    return {JSON: {"schema": ref(schema)}}


def _events(*schemas: str) -> Schema:
    """Server-sent events whose data are JSON of one of these schemas."""
    data = ", ".join(f"`{name}`" for name in schemas)
    described = f"server-sent events; their data are JSON of the schemas {data}"
    return {EVENTS: {"schema": {"type": "string", "description": described}}}


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _path(name: str, schema: Schema, description: str, example: str) -> Schema:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": schema,
        "description": description,
        "example": example,
    }


_NAME = _path("name", NAME, "a function's name", "echo")
_SHA256 = _path("sha256", DIGEST, "SHA-256 of the content", "ab" * 32)
_INVOCATION_ID = _path(
    "id", {"type": "string", "minLength": 1}, "an asynchronous invocation's id", "0f3e68861e84481c"
)
_WORKER_ID = _path("id", {"type": "string", "minLength": 1}, "a worker's id", "node-7")
_KEY_ID = _path("id", {"type": "string", "minLength": 1}, "a key's id", "3f9a1c0b77de")

_BYTES: Schema = {"type": "string", "format": "binary"}
_ANYTHING: Schema = {
    JSON: {"schema": {}, "example": {"text": "great"}},
    "text/plain": {"schema": {"type": "string"}},
    "application/octet-stream": {"schema": {}},
    "*/*": {"schema": {}},
}
_RUN = (
    BadRequest,
    FunctionNotFound,
    BodyTooLarge,
    IdempotencyMismatch,
    QueueFull,
    HandlerError,
    UnserialisableResult,
    OutOfMemory,
    InstanceDied,
    WorkerLost,
    Unavailable,
    DeadlineExceeded,
    FunctionTimeout,
)
_TRY_OUT = (BadRequest, DeployFailed, Conflict, WorkerLost, Unavailable)
_FORM: Schema = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "spec": ref("FunctionSpec"),
                    "code": {**_BYTES, "description": "tar.gz of the function's folder"},
                    "artifacts": {
                        "type": "object",
                        "description": "SHA-256 of each artifact the spec names; uploaded before",
                        "additionalProperties": DIGEST,
                    },
                },
                "required": ["spec", "code"],
            },
            "encoding": {
                "spec": {"contentType": "application/json, application/toml"},
                "code": {"contentType": "application/gzip"},
                "artifacts": {"contentType": JSON},
            },
            "example": {"spec": SPEC_EXAMPLE, "code": "(the archive's bytes)"},
        }
    },
}
_EVENTS_IF_ASKED = (
    "With `Accept: text/event-stream` the answer is 200 and a stream of events `progress` that "
    "ends with one event `result` (a function) or `error` (a problem)."
)

OPERATIONS: dict[str, Operation] = {
    "POST /invoke/{endpoint}": Operation(
        id="invoke",
        tag="Invocations",
        summary="Run a function",
        description=(
            "The content type decides how the function sees the body: JSON decoded, text as text, "
            "everything else as bytes. A generator's items come as chunks, or as server-sent "
            "events when they are asked for."
        ),
        parameters=(
            _path("endpoint", NAME, "the function to run", "echo"),
            _query(
                "mode",
                {"type": "string", "enum": ["sync", "async"], "default": "sync"},
                "async: accept it durably, run it with retries, keep the result",
            ),
            _header(
                "Faasd-Deadline-Ms",
                {"type": "number", "exclusiveMinimum": 0, "maximum": 999_999_999_999},
                "how long the caller waits; past that the invocation is dropped or stopped",
            ),
            _header(
                "Idempotency-Key",
                {"type": "string", "pattern": "^[!-~]{1,255}$"},
                "the first success under this key is kept and repeated",
            ),
        ),
        body={"required": False, "content": _ANYTHING},
        answers={
            "200": _answer(
                "What the function returned.",
                {**_ANYTHING, "application/x-ndjson": {"schema": {}}, EVENTS: {"schema": {}}},
                Idempotency_Replayed="Idempotency-Replayed",
            ),
            "202": _answer(
                "Accepted for later (mode=async).",
                _json("Submitted"),
                Location="Location",
                Idempotency_Replayed="Idempotency-Replayed",
            ),
            "default": _answer("A status that the function chose.", _ANYTHING),
        },
        errors=(*_RUN, Conflict),
        is_invocation=True,
    ),
    "GET /v1/functions": Operation(
        id="listFunctions",
        tag="Functions",
        summary="List the functions of the namespace",
        answers={"200": _answer("All functions, by name.", _json("Functions"))},
    ),
    "GET /v1/functions/{name}": Operation(
        id="showFunction",
        tag="Functions",
        summary="Show a function",
        parameters=(_NAME,),
        answers={"200": _answer("The function.", _json("Function"))},
        errors=(FunctionNotFound,),
    ),
    "PUT /v1/functions/{name}": Operation(
        id="deployFunction",
        tag="Functions",
        summary="Deploy a function",
        description=f"The former revision serves until the new one is ready. {_EVENTS_IF_ASKED}",
        parameters=(_NAME,),
        body=_FORM,
        answers={
            "200": _answer(
                "The active revision has this content already.",
                {**_json("Function"), **_events("Progress", "Function", "Problem")},
            ),
            "201": _answer("A new revision is active.", _json("Function")),
        },
        errors=(*_TRY_OUT, InvalidSpec, InvalidArchive, BodyTooLarge),
    ),
    "DELETE /v1/functions/{name}": Operation(
        id="removeFunction",
        tag="Functions",
        summary="Remove a function with its revisions",
        parameters=(_NAME,),
        answers={"204": _answer("New requests are refused; running ones end by themselves.")},
        errors=(FunctionNotFound,),
    ),
    "POST /v1/functions/{name}/rollback": Operation(
        id="rollBack",
        tag="Functions",
        summary="Make another revision active",
        description=f"Without a revision, the newest of the others. {_EVENTS_IF_ASKED}",
        parameters=(_NAME,),
        body={"required": False, "content": _json("Rollback")},
        answers={
            "200": _answer(
                "The revision is active.",
                {**_json("Function"), **_events("Progress", "Function", "Problem")},
            )
        },
        errors=(*_TRY_OUT, NotFound, FunctionNotFound, BodyTooLarge),
    ),
    "GET /v1/functions/{name}/logs": Operation(
        id="readLogs",
        tag="Functions",
        summary="Read what a function printed",
        parameters=(
            _NAME,
            _query(
                "tail",
                {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 100},
                "lines of each worker to begin with",
            ),
            _query(
                "follow",
                {"type": "string", "enum": ["0", "1", "true", "false"], "default": "0"},
                "stay, and tell what is printed from now on",
            ),
        ),
        answers={"200": _answer("One event `log` a line.", _events("LogLine"))},
        errors=(FunctionNotFound,),
    ),
    "HEAD /v1/artifacts/{sha256}": Operation(
        id="hasArtifact",
        tag="Artifacts",
        summary="Ask whether an artifact has been uploaded",
        parameters=(_SHA256,),
        answers={"200": _answer("It has.")},
        errors=(NotFound,),
    ),
    "PUT /v1/artifacts/{sha256}": Operation(
        id="uploadArtifact",
        tag="Artifacts",
        summary="Upload an artifact",
        description="The body is streamed and verified. A known one is not read again.",
        parameters=(_SHA256,),
        body={"required": True, "content": {"application/octet-stream": {"schema": _BYTES}}},
        answers={
            "200": _answer("It was known.", _json("Artifact")),
            "201": _answer("It is stored.", _json("Artifact")),
        },
        errors=(DigestMismatch, BodyTooLarge),
    ),
    "GET /v1/invocations": Operation(
        id="listInvocations",
        tag="Invocations",
        summary="List asynchronous invocations",
        parameters=(
            _query("status", INVOCATION_STATUS, "only those of this status"),
            _query("function", NAME, "only those of this function"),
            _query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "at most so many",
            ),
        ),
        answers={"200": _answer("The newest first, without results.", _json("Invocations"))},
    ),
    "GET /v1/invocations/{id}": Operation(
        id="showInvocation",
        tag="Invocations",
        summary="Show an asynchronous invocation",
        parameters=(_INVOCATION_ID,),
        answers={"200": _answer("The invocation.", _json("Invocation"))},
        errors=(NotFound,),
    ),
    "GET /v1/invocations/{id}/result": Operation(
        id="showResult",
        tag="Invocations",
        summary="Fetch the result as the function returned it",
        parameters=(_INVOCATION_ID,),
        answers={
            "200": _answer("The body and content type that the function returned.", _ANYTHING),
            "default": _answer("A status that the function chose.", _ANYTHING),
        },
        errors=(NotFound, Conflict),
    ),
    "POST /v1/invocations/{id}/redrive": Operation(
        id="redrive",
        tag="Invocations",
        summary="Queue a dead invocation again",
        parameters=(_INVOCATION_ID,),
        answers={"202": _answer("It is queued.", _json("InvocationSummary"))},
        errors=(NotFound, Conflict),
    ),
    "GET /v1/workers": Operation(
        id="listWorkers",
        tag="Cluster",
        summary="List the workers with their load",
        answers={"200": _answer("All workers.", _json("Workers"))},
    ),
    "POST /v1/workers/{id}/drain": Operation(
        id="drainWorker",
        tag="Cluster",
        summary="Send a worker nothing more",
        parameters=(_WORKER_ID,),
        answers={"202": _answer("It finishes what it has.", _json("Draining"))},
        errors=(NotFound,),
    ),
    "POST /v1/keys": Operation(
        id="createKey",
        tag="Cluster",
        summary="Make an API key",
        body={"required": False, "content": _json("NewKey")},
        answers={"201": _answer("The key, with its secret this once.", _json("CreatedKey"))},
        errors=(BodyTooLarge,),
    ),
    "GET /v1/keys": Operation(
        id="listKeys",
        tag="Cluster",
        summary="List the API keys",
        answers={"200": _answer("All keys, without their secrets.", _json("Keys"))},
    ),
    "DELETE /v1/keys/{id}": Operation(
        id="removeKey",
        tag="Cluster",
        summary="Remove an API key",
        parameters=(_KEY_ID,),
        answers={"204": _answer("It is refused from now on.")},
        errors=(NotFound,),
    ),
    "GET /metrics": Operation(
        id="metrics",
        tag="Cluster",
        summary="Metrics for Prometheus",
        answers={
            "200": _answer(
                "The text exposition format.", {"text/plain": {"schema": {"type": "string"}}}
            )
        },
    ),
    "GET /healthz": Operation(
        id="healthz",
        tag="Cluster",
        summary="Whether the controller is alive",
        answers={"200": _answer("It is.", _json("Health"))},
    ),
    "GET /readyz": Operation(
        id="readyz",
        tag="Cluster",
        summary="Whether some worker can serve",
        answers={"200": _answer("One can.", _json("Health"))},
        errors=(Unavailable,),
    ),
    "GET /openapi.json": Operation(
        id="openapi",
        tag="Cluster",
        summary="This document",
        answers={"200": _answer("OpenAPI 3.1.", {JSON: {"schema": {"type": "object"}}})},
    ),
}
