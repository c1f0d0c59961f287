"""Which controller is spoken to, and as whom: arguments, then the environment, then the default."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from faasd.errors import BadRequest

DEFAULT_URL = "http://127.0.0.1:8080"
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Target:
    """The controller's address and who the caller is. The key never shows in its repr."""

    url: str
    key: str | None = field(default=None, repr=False)
    namespace: str | None = None

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        if self.namespace is not None:
            headers["Faasd-Namespace"] = self.namespace
        return headers


def resolve(url: str | None, key: str | None, namespace: str | None) -> Target:
    """Fill in FAASD_URL and FAASD_API_KEY. Raises BadRequest on what cannot be an address or key."""
    key = (os.environ.get("FAASD_API_KEY", "").strip() or None) if key is None else key
    return Target(
        url=_address(url or os.environ.get("FAASD_URL", "").strip() or DEFAULT_URL),
        key=None if key is None else _header_value("The API key", key),
        namespace=None if namespace is None else _header_value("The namespace", namespace),
    )


def _address(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or not _HEADER_SAFE.fullmatch(url):
        raise BadRequest(
            f"{text!r} is not the address of a controller.",
            remedy=f"Write it like {DEFAULT_URL}, with --url or in FAASD_URL.",
        )
    return url.rstrip("/")


def _header_value(what: str, text: str) -> str:
    if not _HEADER_SAFE.fullmatch(text):
        raise BadRequest(
            f"{what} must be printable ASCII without blanks.", remedy="Copy it again in whole."
        )
    return text
