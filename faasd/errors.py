"""The error taxonomy: one class per kind, each with its HTTP status, a stable code and a remedy.

FaasdError
├── BadRequest            400  malformed input (JSON, multipart, header)
│   ├── InvalidSpec       422  the spec says something that is not accepted
│   ├── InvalidArchive    422  the code archive is hostile or broken
│   └── DigestMismatch    422  an upload is not what its name says
├── Unauthorized          401  no key, or an unknown one
├── Forbidden             403  the key's role or namespace does not allow it
├── NotFound              404  function, revision, invocation, artifact, worker, key
│   └── FunctionNotFound
├── Conflict              409  the state does not allow it (yet)
├── IdempotencyMismatch   422  one key, two different requests
├── RequestTimeout        408  the rest of a request does not come
├── BodyTooLarge          413
├── DeployFailed          422  the user's code does not start; the old revision goes on serving
├── QueueFull             429  shed at the door
├── DeadlineExceeded      504  the caller's deadline passed
├── FunctionTimeout       504  the function ran past its own limit
├── HandlerError          500  the user's code raised
│   ├── UnserialisableResult
│   └── OutOfMemory
├── InstanceDied          502  the process of the function ended while it served the invocation
├── WorkerLost            502  the node went away
├── StorageFull           507  no room on a disk of ours
├── Unavailable           503  nothing can serve this now
├── Cancelled             499  the caller went away
└── InternalError         500  a defect of ours

Every error crosses process boundaries as the dict made by `to_problem` (RFC 9457) and comes back
with `from_problem`. Raise at the place that knows, catch at the place that can act.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class FaasdError(Exception):
    """Base of all errors that a user may see. `detail` is one sentence; `remedy` says what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    default_remedy: ClassVar[str] = ""

    def __init__(
        self,
        detail: str,
        *,
        remedy: str | None = None,
        retry_after_s: float | None = None,
        traceback: str | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = self.default_remedy if remedy is None else remedy
        self.retry_after_s = retry_after_s
        self.traceback = traceback
        self.extra = extra

    @property
    def title(self) -> str:
        return self.code.replace("_", " ").capitalize()

    def to_problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem object."""
        problem: dict[str, Any] = {
            "type": f"urn:faasd:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "remedy": self.remedy,
            "retryable": self.retryable,
        }
        if self.retry_after_s is not None:
            problem["retry_after_s"] = self.retry_after_s
        if self.traceback is not None:
            problem["traceback"] = self.traceback
        return {**self.extra, **problem}


class BadRequest(FaasdError):
    status = 400
    code = "bad_request"


class InvalidSpec(BadRequest):
    status = 422
    code = "invalid_spec"
    default_remedy = "Correct the named key in function.toml and deploy again."


class InvalidArchive(BadRequest):
    status = 422
    code = "invalid_archive"
    default_remedy = (
        "Pack only the regular files of the function's folder; `faasd deploy DIR` does."
    )


class DigestMismatch(BadRequest):
    status = 422
    code = "digest_mismatch"
    default_remedy = "Upload the file again under the SHA-256 of its content."


class Unauthorized(FaasdError):
    status = 401
    code = "unauthorized"
    default_remedy = "Send `Authorization: Bearer KEY` with a key made by `faasd keys create`."


class Forbidden(FaasdError):
    status = 403
    code = "forbidden"
    default_remedy = "Use a key with the role and namespace that this call needs."


class NotFound(FaasdError):
    status = 404
    code = "not_found"


class FunctionNotFound(NotFound):
    code = "function_not_found"
    default_remedy = "List the deployed functions with `faasd ls`."


class Conflict(FaasdError):
    status = 409
    code = "conflict"


class IdempotencyMismatch(FaasdError):
    status = 422
    code = "idempotency_mismatch"
    default_remedy = "Use a new Idempotency-Key for a different request."


class RequestTimeout(FaasdError):
    status = 408
    code = "request_timeout"
    retryable = True
    default_remedy = "Send the body without long pauses, or raise FAASD_HTTP_PATIENCE_S."


class BodyTooLarge(FaasdError):
    status = 413
    code = "body_too_large"
    default_remedy = "Send less, or raise [limits] max_body_mb in function.toml."


class DeployFailed(FaasdError):
    status = 422
    code = "deploy_failed"
    default_remedy = (
        "Correct the function's code and deploy again; the former revision still serves."
    )


class QueueFull(FaasdError):
    status = 429
    code = "queue_full"
    retryable = True
    default_remedy = "Try again after Retry-After, or raise [limits] queue or max_instances."

    @classmethod
    def displaced(cls) -> QueueFull:
        """Of a call that was queued and had to make room."""
        return cls(
            "The queue is full, and its place went to a caller who had fewer invocations waiting "
            "than its share."
        )


class DeadlineExceeded(FaasdError):
    status = 504
    code = "deadline_exceeded"
    default_remedy = "Allow more time in the Faasd-Deadline-Ms header."


class FunctionTimeout(FaasdError):
    status = 504
    code = "function_timeout"
    default_remedy = "Raise [limits] timeout_s in function.toml."


class HandlerError(FaasdError):
    status = 500
    code = "handler_error"
    default_remedy = "See the traceback; the function's own output is in `faasd logs`."


class UnserialisableResult(HandlerError):
    code = "unserialisable_result"
    default_remedy = "Return JSON-compatible values, bytes, str or context.response(...)."


class OutOfMemory(HandlerError):
    code = "out_of_memory"
    default_remedy = "Raise [resources] memory_mb in function.toml, or use less memory."


class InstanceDied(FaasdError):
    status = 502
    code = "instance_died"
    default_remedy = (
        "See `faasd logs` for the function's last output; another instance replaces it."
    )


class WorkerLost(FaasdError):
    status = 502
    code = "worker_lost"
    retryable = True
    default_remedy = (
        "Send it again if the function may run twice; use mode=async to have that done."
    )


class StorageFull(FaasdError):
    status = 507
    code = "storage_full"
    retryable = True
    default_remedy = "Make room where its data folder lies, then try again."


class Unavailable(FaasdError):
    status = 503
    code = "unavailable"
    retryable = True
    default_remedy = "Try again shortly."


class Cancelled(FaasdError):
    status = 499
    code = "cancelled"


class InternalError(FaasdError):
    status = 500
    code = "internal_error"
    default_remedy = "This is a defect of faasd; its log has the traceback under this request id."


def _subclasses(cls: type[FaasdError]) -> list[type[FaasdError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


BY_CODE: dict[str, type[FaasdError]] = {cls.code: cls for cls in _subclasses(FaasdError)}
BY_CODE["internal_error"] = InternalError

_FIXED_KEYS = re.compile(
    r"type|title|status|code|detail|remedy|retryable|retry_after_s|traceback|request_id"
)


def from_problem(problem: dict[str, Any]) -> FaasdError:
    """The error that `to_problem` described; an unknown code comes back as an InternalError."""
    cls = BY_CODE.get(str(problem.get("code")), InternalError)
    extra = {k: v for k, v in problem.items() if not _FIXED_KEYS.fullmatch(k)}
    return cls(
        str(problem.get("detail", "")),
        remedy=problem.get("remedy"),
        retry_after_s=problem.get("retry_after_s"),
        traceback=problem.get("traceback"),
        **extra,
    )
