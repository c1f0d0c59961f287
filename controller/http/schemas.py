"""The schemas of what the API takes and gives, as components of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from controller.auth import ROLES
from controller.workers import WorkerStatus
from faasd.errors import BY_CODE
from faasd.invocation import PHASES, StartKind
from faasd.spec import NAME_PATTERN, FunctionSpec

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "pattern": NAME_PATTERN}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
INVOCATION_STATUS: Schema = {"type": "string", "enum": ["queued", "running", "succeeded", "dead"]}

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_AMOUNT: Schema = {"type": "number", "minimum": 0}
_TIME: Schema = {"type": "string", "format": "date-time", "description": "ISO 8601 in UTC"}
_REVISION: Schema = {"type": "string", "description": "content address of spec, code, artifacts"}

PROBLEM_EXAMPLE: Schema = {
    "type": "urn:faasd:error:function_not_found",
    "title": "Function not found",
    "status": 404,
    "code": "function_not_found",
    "detail": "There is no function 'x' in namespace 'default'.",
    "remedy": "List the deployed functions with `faasd ls`.",
    "retryable": False,
    "request_id": "0f3e68861e84481ca77ced4bb41becca",
}
SPEC_EXAMPLE: Schema = {
    "name": "sentiment",
    "runtime": "python-torch",
    "handler": "handler:handle",
    "load": "handler:load",
    "limits": {"timeout_s": 30, "max_instances": 4},
    "env": {"MODEL_THREADS": "1"},
}


def ref(name: str) -> Schema:
    """A reference to one of the schemas here."""
    return {"$ref": f"#/components/schemas/{name}"}


def components() -> dict[str, Schema]:
    """Every schema by its name."""
    return {**_spec(), **_of_functions(), **_of_invocations(), **_of_cluster(), **_shared()}


def _object(properties: Schema, *, optional: tuple[str, ...] = (), about: str = "") -> Schema:
    """An object with these properties, all of them always there but the `optional` ones."""
    required = [name for name in properties if name not in optional]
    described = {"description": about} if about else {}
    return {"type": "object", **described, "properties": properties, "required": required}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _spec() -> dict[str, Schema]:
    schema = FunctionSpec.model_json_schema(ref_template="#/components/schemas/{model}")
    sections = schema.pop("$defs")
    return {**sections, "FunctionSpec": {**schema, "examples": [SPEC_EXAMPLE]}}


def _of_functions() -> dict[str, Schema]:
    counts = dict.fromkeys(("starting", "idle", "busy"), _COUNT)
    return {
        "Function": _object(
            {
                "name": NAME,
                "namespace": NAME,
                "revision": _REVISION,
                "runtime": _TEXT,
                "created_at": _TIME,
                "url": {"type": "string", "format": "uri-reference"},
                "spec": ref("FunctionSpec"),
                "revisions": _list(
                    _object(
                        {"revision": _REVISION, "created_at": _TIME, "active": {"type": "boolean"}}
                    )
                ),
                "instances": _object(counts),
                "queued": _COUNT,
                "memory_mb": {
                    **_AMOUNT,
                    "description": "proportional share (PSS) of all its processes",
                },
            },
            about="A deployed function, its revisions and what runs of it.",
        ),
        "Functions": _object({"functions": _list(ref("Function"))}),
        "Rollback": {
            **_object({"revision": _nullable(_REVISION)}, optional=("revision",)),
            "additionalProperties": False,
        },
        "Progress": _object(
            {"stage": _TEXT, "detail": _TEXT}, about="The data of an event `progress`."
        ),
        "LogLine": _object(
            {
                "ts": {**_AMOUNT, "description": "seconds since the epoch"},
                "function": {**_TEXT, "description": "namespace/name"},
                "revision": _REVISION,
                "instance": _TEXT,
                "request_id": {**_TEXT, "description": "empty for output outside an invocation"},
                "stream": {"type": "string", "enum": ["stdout", "stderr"]},
                "line": _TEXT,
            },
            about="The data of an event `log`.",
        ),
        "Artifact": _object({"sha256": DIGEST}),
    }


def _of_invocations() -> dict[str, Schema]:
    properties = {
        "id": _TEXT,
        "function": NAME,
        "namespace": NAME,
        "revision": _nullable(_REVISION),
        "status": INVOCATION_STATUS,
        "created_at": _TIME,
        "finished_at": _nullable(_TIME),
        "next_attempt_at": _nullable(_TIME),
        "attempts": _list(ref("Attempt")),
        "timings": _nullable(_object(dict.fromkeys(PHASES, _AMOUNT))),
        "start": _nullable({"type": "string", "enum": [str(kind) for kind in StartKind]}),
    }
    return {
        "InvocationSummary": _object(properties, about="An asynchronous invocation."),
        "Invocation": _object(
            {**properties, "result": _nullable(ref("Result"))},
            about="An asynchronous invocation with its result.",
        ),
        "Invocations": _object({"invocations": _list(ref("InvocationSummary"))}),
        "Attempt": _object(
            {
                "number": {"type": "integer", "minimum": 1},
                "started_at": _TIME,
                "ended_at": _nullable(_TIME),
                "worker": _nullable(_TEXT),
                "error": _nullable(ref("Problem")),
            },
            about="One run of an asynchronous invocation.",
        ),
        "Result": _object(
            {
                "status": {"type": "integer", "minimum": 200, "maximum": 599},
                "content_type": _TEXT,
                "json": {},
                "text": _TEXT,
                "base64": {"type": "string", "contentEncoding": "base64"},
            },
            about="What the function returned: in `json`, `text` or `base64` by its content type.",
            optional=("json", "text", "base64"),
        ),
        "Submitted": _object(
            {
                "id": _TEXT,
                "status": INVOCATION_STATUS,
                "url": {"type": "string", "format": "uri-reference"},
            }
        ),
    }


def _of_cluster() -> dict[str, Schema]:
    counts = dict.fromkeys(("starting", "idle", "busy", "queued"), _COUNT)
    status: Schema = {"type": "string", "enum": [str(status) for status in WorkerStatus]}
    role: Schema = {"type": "string", "enum": list(ROLES)}
    key = {"id": _TEXT, "name": _TEXT, "role": role, "namespace": NAME, "created_at": _TIME}
    return {
        "Worker": _object(
            {
                "id": _TEXT,
                "status": status,
                "cpus": _COUNT,
                "memory_mb": _AMOUNT,
                "memory_used_mb": _AMOUNT,
                "memory_budget_mb": _AMOUNT,
                "gpus": _list(
                    _object(
                        {
                            **dict.fromkeys(("uuid", "label", "name", "parent", "fault"), _TEXT),
                            "health": {"type": "string", "enum": ["ready", "unknown", "lost"]},
                            **dict.fromkeys(("memory_mb", "used_mb", "held_mb"), _AMOUNT),
                            "held_share": _AMOUNT,
                            "instances": _COUNT,
                            "processes": _nullable(_COUNT),
                            "utilisation": _nullable(_AMOUNT),
                        }
                    )
                ),
                "gpu_fault": {**_TEXT, "description": "why NVML tells nothing; empty if it does"},
                "slots": {**_COUNT, "description": "instances the node is meant for"},
                "outstanding": {**_COUNT, "description": "invocations under way there"},
                "sandboxes": {
                    "type": "object",
                    "description": "how many sandboxes are in each state",
                    "additionalProperties": _COUNT,
                },
                "runtimes": _list(
                    _object(
                        {
                            "name": _TEXT,
                            "state": _TEXT,
                            "memory_mb": _AMOUNT,
                            "libraries": _list(_TEXT),
                        }
                    )
                ),
                "functions": _list(
                    _object(
                        {
                            "function": {**_TEXT, "description": "namespace/name"},
                            "revision": _REVISION,
                            "template": _TEXT,
                            **counts,
                            "ejected": {
                                **_COUNT,
                                "description": "instances ended for failing call after call",
                            },
                            "memory_mb": _AMOUNT,
                        }
                    )
                ),
                "starts": {
                    "type": "object",
                    "description": "instances started since the worker began, by kind of start",
                    "additionalProperties": _COUNT,
                },
            },
            about="One node of the cluster and its load.",
        ),
        "Workers": _object({"workers": _list(ref("Worker"))}),
        "Draining": _object({"id": _TEXT, "status": {"const": "draining"}}),
        "NewKey": {
            **_object(
                {
                    "name": {
                        "type": "string",
                        "pattern": r"^[A-Za-z0-9_ .@-]{1,80}$",
                        "default": "key",
                    },
                    "role": {**role, "default": "invoke"},
                    "namespace": {**NAME, "default": "default"},
                },
                optional=("name", "role", "namespace"),
            ),
            "additionalProperties": False,
            "examples": [{"name": "ci", "role": "deploy", "namespace": "default"}],
        },
        "Key": _object(
            key,
            about="An API key without its secret.",
        ),
        "Keys": _object({"keys": _list(ref("Key"))}),
        "CreatedKey": _object(
            {**key, "key": {"type": "string", "description": "the secret; shown this once"}}
        ),
    }


def _shared() -> dict[str, Schema]:
    return {
        "Health": _object({"status": {"const": "ok"}}),
        "Problem": {
            **_object(
                {
                    "type": {"type": "string", "pattern": "^urn:faasd:error:[a-z_]+$"},
                    "title": _TEXT,
                    "status": {"type": "integer", "minimum": 400, "maximum": 599},
                    "code": {"type": "string", "enum": sorted(BY_CODE)},
                    "detail": _TEXT,
                    "remedy": {**_TEXT, "description": "what to do about it; may be empty"},
                    "retryable": {"type": "boolean"},
                    "request_id": _TEXT,
                    "traceback": {**_TEXT, "description": "of the function's own code"},
                    "output": {**_TEXT, "description": "what the code printed at a failed deploy"},
                    "retry_after_s": _AMOUNT,
                },
                about="An error (RFC 9457). Further members give its particulars.",
                optional=("traceback", "output", "retry_after_s"),
            ),
            "additionalProperties": True,
            "examples": [PROBLEM_EXAMPLE],
        },
    }
