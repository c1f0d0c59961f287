"""What a function is given besides its event, and what it may return."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any


class InvocationCancelled(BaseException):
    """Raised inside a running handler when its caller is gone."""


class Response:
    """A reply with a status, a content type and headers of the function's choosing."""

    def __init__(
        self,
        body: Any,
        content_type: str | None = None,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"status must lie between 200 and 599, not {status!r}")
        self.body = body
        self.content_type = content_type
        self.status = status
        self.headers = dict(headers or {})


class Streamed:
    """A reply whose bytes come piece by piece, after a status and headers that stand before."""

    def __init__(
        self,
        status: int,
        content_type: str,
        headers: dict[str, str],
        chunks: AsyncGenerator[bytes, None],
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.headers = headers
        self.chunks = chunks


class Context:
    """The second argument of a handler, and the only one of load()."""

    request_id: str
    content_type: str
    headers: dict[str, str]
    attempt: int

    def __init__(self, config: dict[str, Any], state: Any, meta: Sequence[Any]) -> None:
        """`meta` is that of a call; see `instance`."""
        self._config = config
        self.state = state
        self.request_id, self.content_type, self.headers, self.attempt, remaining_s, _ = meta
        self._deadline = None if remaining_s is None else time.monotonic() + remaining_s

    @classmethod
    def without_call(cls, config: dict[str, Any], state: Any = None) -> Context:
        """That of a hook."""
        return cls(config, state, ("", "", {}, 1, None, False))

    @property
    def function(self) -> str:
        return self._config["function"]  # type: ignore[no-any-return]

    @property
    def revision(self) -> str:
        return self._config["revision"]  # type: ignore[no-any-return]

    @property
    def cpus(self) -> float:
        return self._config["cpus"]  # type: ignore[no-any-return]

    @property
    def artifacts(self) -> dict[str, str]:
        """Where each artifact lies, by its name."""
        return self._config["artifacts"]  # type: ignore[no-any-return]

    @property
    def env(self) -> dict[str, str]:
        return dict(os.environ)

    @property
    def device(self) -> str:
        """Where tensors of this instance belong."""
        return "cuda" if self._config.get("gpus") else "cpu"

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the invocation's deadline, or None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def load_weights(self, name: str) -> Any:
        """The tensors of an artifact, mapped from the file: shared by all processes that use it.

        A .safetensors file or a torch checkpoint (loaded with weights_only).
        """
        path = self.artifacts[name]
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        return torch.load(path, mmap=True, weights_only=True, map_location="cpu")

    @staticmethod
    def response(
        body: Any,
        content_type: str | None = None,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Response:
        return Response(body, content_type, status, headers)
