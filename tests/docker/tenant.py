"""Callers of one platform in namespaces of their own, one of whom has a hostile function."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.platform import Answer, Api, multipart, pack

HOSTILE = Path(__file__).with_name("hostile.py").read_text()
_MARK = 0x5A
_SMALL = {"memory_mb": 128, "tmp_mb": 16, "pids": 48}


class Tenant(Api):
    """Who calls a platform that asks for no key, in a namespace."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.namespace = namespace

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout: float = 60,
    ) -> Answer:
        named = {"Faasd-Namespace": self.namespace, **(headers or {})}
        return super().request(method, path, body, named, timeout=timeout)

    def must_deploy_hostile(self, name: str, **spec: Any) -> None:
        """The hostile function, with one small instance."""
        given = {"resources": _SMALL, "limits": {"max_instances": 1}, **spec}
        self.must_deploy(name, HOSTILE, **given)

    def must_deploy_with_model(self, name: str, code: str, model: str, **spec: Any) -> None:
        """A function with an artifact `model`."""
        raw = model.encode()
        digest = hashlib.sha256(raw).hexdigest()
        put = self.request("PUT", f"/v1/artifacts/{digest}", raw)
        assert put.status in (200, 201), put.body
        given = {"name": name, "artifacts": {"model": "model.bin"}, **spec}
        form, kind = multipart(
            spec=("application/json", json.dumps(given).encode()),
            code=("application/gzip", pack({"handler.py": code})),
            artifacts=("application/json", json.dumps({"model": digest}).encode()),
        )
        put = self.request("PUT", f"/v1/functions/{name}", form, {"Content-Type": kind})
        assert put.status in (200, 201), put.body

    def attempt(self, attack: str, *arguments: Any, function: str = "mallory") -> Answer:
        return self.post(f"/invoke/{function}", {"attack": attack, "with": arguments})

    def attack(self, attack: str, *arguments: Any, function: str = "mallory") -> Any:
        """What came of it, as the hostile function tells."""
        answer = self.attempt(attack, *arguments, function=function)
        assert answer.status == 200, answer.body
        return answer.json()["outcome"]


def mask(text: str) -> str:
    """A text as the hostile function takes it, so that asking does not put it in its memory."""
    return bytes(byte ^ _MARK for byte in text.encode()).hex()
