"""Who may do what: API keys stored hashed, three roles, namespaces.

Without any key and bound to loopback, every caller is admin of the namespace `default`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from controller.store.port import Store, StoredKey
from faasd import clock
from faasd.errors import BadRequest, Forbidden, Unauthorized
from faasd.spec import check_name

ROLES = ("invoke", "deploy", "admin")
DEFAULT_NAMESPACE = "default"
_PREFIX = "fsd_"


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller with the namespace the request is about."""

    role: str
    namespace: str

    def require(self, role: str) -> None:
        """Raises Forbidden when the caller's role is a lesser one."""
        if ROLES.index(self.role) < ROLES.index(role):
            raise Forbidden(f"This call needs the role {role!r}; the key has {self.role!r}.")


_ANYBODY = Caller("admin", DEFAULT_NAMESPACE)


class Keys:
    """Owned by the event loop; keeps the keys it has looked up."""

    def __init__(self, store: Store, *, open_to_all: bool) -> None:
        """`open_to_all`: bound to loopback, where a key is optional while none exists."""
        self._store = store
        self._open_to_all = open_to_all
        self._by_digest: dict[str, StoredKey] = {}
        self._any = False

    async def open(self) -> None:
        """Raises BadRequest when the address needs a key and there is none."""
        self._any = bool(await self._store.keys())
        if not self._any and not self._open_to_all:
            raise BadRequest(
                "Refusing to listen beyond loopback without an API key.",
                remedy="Make one first: `faasd keys bootstrap --data DIR`, or bind 127.0.0.1.",
            )

    @property
    def exist(self) -> bool:
        """Whether calls need a key by now."""
        return self._any

    def known(self, authorization: str | None, namespace: str | None) -> Caller | None:
        """As `caller`, or None where the store must be asked."""
        if authorization is None:
            if self._any:
                raise Unauthorized("This needs an API key.")
            if namespace is None:
                return _ANYBODY
            return Caller("admin", check_name(namespace))
        scheme, _, secret = authorization.partition(" ")
        key = self._by_digest.get(_digest(secret.strip())) if scheme.lower() == "bearer" else None
        return None if key is None else _caller(key, namespace)

    async def caller(self, authorization: str | None, namespace: str | None) -> Caller:
        """Raises Unauthorized or Forbidden."""
        if authorization is None:
            if self._any:
                raise Unauthorized("This needs an API key.")
            return Caller("admin", check_name(namespace or DEFAULT_NAMESPACE))
        scheme, _, secret = authorization.partition(" ")
        key = await self._lookup(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise Unauthorized("The API key is not known.")
        return _caller(key, namespace)

    async def create(self, name: str, role: str, namespace: str) -> tuple[StoredKey, str]:
        """A new key and its secret, which is kept nowhere. Raises BadRequest."""
        if role not in ROLES:
            raise BadRequest(
                f"role = {role[:40]!r}: accepted are {', '.join(ROLES)}.",
                remedy="Choose the least role that does.",
            )
        if not re.fullmatch(r"[\w .@-]{1,80}", name):
            raise BadRequest(
                "name: use 1 to 80 letters, digits, blanks, dots, @ or hyphens.",
                remedy="Name the key for what it is used for, e.g. `ci`.",
            )
        secret = _PREFIX + secrets.token_urlsafe(32)
        return await self._add(name, role, check_name(namespace), secret), secret

    async def adopt(self, name: str, secret: str) -> StoredKey:
        """Have the secret as an admin key, and no other key of this name. Raises BadRequest."""
        if not re.fullmatch(r"[\w.~+/=-]{32,200}", secret, re.ASCII):
            raise BadRequest(
                f"{name}: use 32 to 200 letters, digits or any of . _ ~ + / = -",
                remedy="Take what `openssl rand -hex 32` prints.",
            )
        key = await self._store.key_by_digest(_digest(secret))
        if key is None:
            key = await self._add(name, "admin", DEFAULT_NAMESPACE, secret)
        elif key.role != "admin":
            raise BadRequest(
                f"{name}: this key exists already, with the role {key.role!r}.",
                remedy="Choose another; `openssl rand -hex 32` prints one.",
            )
        for other in await self._store.keys():
            if other.name == name and other.id != key.id:
                await self.remove(other.id)
        return key

    async def _add(self, name: str, role: str, namespace: str, secret: str) -> StoredKey:
        key = StoredKey(
            id=secrets.token_hex(6),
            name=name,
            role=role,
            namespace=namespace,
            created_at=clock.wall(),
        )
        await self._store.add_key(key, _digest(secret))
        self._any = True
        return key

    async def remove(self, identity: str) -> bool:
        removed = await self._store.remove_key(identity)
        # Only now: a request that came meanwhile has looked the key up again.
        self._by_digest.clear()
        self._any = bool(await self._store.keys()) or not self._open_to_all
        return removed

    async def list(self) -> list[StoredKey]:
        return await self._store.keys()

    async def _lookup(self, secret: str) -> StoredKey | None:
        digest = _digest(secret)
        key = self._by_digest.get(digest)
        if key is None:
            key = await self._store.key_by_digest(digest)
            if key is not None:
                self._by_digest[digest] = key
        return key


def _caller(key: StoredKey, namespace: str | None) -> Caller:
    if namespace is None or namespace == key.namespace:
        return Caller(key.role, key.namespace)
    if key.role != "admin":
        raise Forbidden(f"The key belongs to the namespace {key.namespace!r}.")
    return Caller(key.role, check_name(namespace))


def _digest(secret: str) -> str:
    # The secret is 256 random bits: a plain hash cannot be searched, and costs microseconds.
    return hashlib.sha256(secret.encode()).hexdigest()
