"""API keys: who is let in, as whom, and what is said to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from controller.auth import Caller, Keys
from controller.store.sqlite import SqliteStore
from faasd.errors import BadRequest, FaasdError, Forbidden, InvalidSpec, Unauthorized

Value = TypeVar("Value")
WithKeys = Callable[[Callable[[Keys], Awaitable[Value]]], Value]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def with_keys(
    path: Path, work: Callable[[Keys], Awaitable[Value]], *, open_to_all: bool = True
) -> Value:
    async def main() -> Value:
        store = SqliteStore(path)
        await store.open()
        try:
            keys = Keys(store, open_to_all=open_to_all)
            await keys.open()
            return await work(keys)
        finally:
            await store.aclose()

    return asyncio.run(main())


async def made(keys: Keys, role: str = "invoke", namespace: str = "default") -> str:
    _, secret = await keys.create("ci", role, namespace)
    return f"Bearer {secret}"


def test_without_any_key_everybody_on_loopback_is_admin(store_path: Path) -> None:
    caller = with_keys(store_path, lambda keys: keys.caller(None, None))

    assert caller == Caller("admin", "default")


def test_without_any_key_a_namespace_is_chosen_freely(store_path: Path) -> None:
    assert with_keys(store_path, lambda keys: keys.caller(None, "team-a")).namespace == "team-a"


def test_a_namespace_must_be_a_name(store_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="is not a name"):
        with_keys(store_path, lambda keys: keys.caller(None, "../x"))


def test_beyond_loopback_nothing_starts_without_a_key(store_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        with_keys(store_path, lambda keys: keys.list(), open_to_all=False)

    assert "faasd keys bootstrap" in refused.value.remedy


def test_beyond_loopback_it_starts_with_a_key(store_path: Path) -> None:
    with_keys(store_path, made)

    assert len(with_keys(store_path, lambda keys: keys.list(), open_to_all=False)) == 1


def test_once_there_is_a_key_everybody_needs_one(store_path: Path) -> None:
    async def work(keys: Keys) -> None:
        await made(keys)
        await keys.caller(None, None)

    with pytest.raises(Unauthorized, match=r"This needs an API key\."):
        with_keys(store_path, work)


def test_a_key_gives_its_role_and_namespace(store_path: Path) -> None:
    async def work(keys: Keys) -> Caller:
        return await keys.caller(await made(keys, "deploy", "team-a"), None)

    assert with_keys(store_path, work) == Caller("deploy", "team-a", "ci")


def test_a_key_is_good_after_a_restart(store_path: Path) -> None:
    authorization = with_keys(store_path, made)

    caller = with_keys(store_path, lambda keys: keys.caller(authorization, None))

    assert caller == Caller("invoke", "default", "ci")


@pytest.mark.parametrize(
    "authorization",
    ["Bearer nonsense", "Basic {secret}", "", "Bearer", "{secret}", "Bearer \u00e9"],
)
def test_anything_but_a_key_is_refused(store_path: Path, authorization: str) -> None:
    async def work(keys: Keys) -> Caller:
        secret = (await made(keys)).removeprefix("Bearer ")
        return await keys.caller(authorization.format(secret=secret), None)

    with pytest.raises(Unauthorized, match=r"The API key is not known\."):
        with_keys(store_path, work)


def test_a_wrong_key_is_refused_even_where_none_is_needed(store_path: Path) -> None:
    with pytest.raises(Unauthorized):
        with_keys(store_path, lambda keys: keys.caller("Bearer nonsense", None))


def test_a_key_is_confined_to_its_namespace(store_path: Path) -> None:
    async def work(keys: Keys) -> Caller:
        return await keys.caller(await made(keys, "deploy", "team-a"), "team-b")

    with pytest.raises(Forbidden, match="belongs to the namespace 'team-a'"):
        with_keys(store_path, work)


def test_an_admin_key_reaches_every_namespace(store_path: Path) -> None:
    async def work(keys: Keys) -> Caller:
        return await keys.caller(await made(keys, "admin", "team-a"), "team-b")

    assert with_keys(store_path, work) == Caller("admin", "team-b", "ci")


def test_a_removed_key_is_refused_at_once(store_path: Path) -> None:
    async def work(keys: Keys) -> Caller:
        await made(keys)
        key, secret = await keys.create("going", "admin", "default")
        await keys.caller(f"Bearer {secret}", None)
        assert await keys.remove(key.id)
        return await keys.caller(f"Bearer {secret}", None)

    with pytest.raises(Unauthorized):
        with_keys(store_path, work)


def test_removing_an_unknown_key_is_told(store_path: Path) -> None:
    assert with_keys(store_path, lambda keys: keys.remove("nothing")) is False


def test_the_last_key_that_goes_opens_loopback_again_and_nothing_else(store_path: Path) -> None:
    async def emptied(keys: Keys) -> Caller:
        for key in await keys.list():
            await keys.remove(key.id)
        return await keys.caller(None, None)

    with_keys(store_path, made)
    local = with_keys(store_path, emptied)
    with_keys(store_path, made)

    assert local.role == "admin"
    with pytest.raises(Unauthorized):
        with_keys(store_path, emptied, open_to_all=False)


def test_a_secret_is_kept_nowhere(store_path: Path) -> None:
    secret = with_keys(store_path, made).removeprefix("Bearer ")

    kept = b"".join(path.read_bytes() for path in store_path.parent.iterdir())

    assert secret.startswith("fsd_")
    assert secret.encode() not in kept


@pytest.mark.parametrize(
    ("name", "role", "namespace", "said"),
    [
        ("ci", "root", "default", "accepted are invoke, deploy, admin"),
        ("", "invoke", "default", "name: use 1 to 80"),
        ("a\nb", "invoke", "default", "name: use 1 to 80"),
        ("x" * 81, "invoke", "default", "name: use 1 to 80"),
        ("ci", "invoke", "Team A", "is not a name"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(
    store_path: Path, name: str, role: str, namespace: str, said: str
) -> None:
    with pytest.raises(FaasdError, match=said):
        with_keys(store_path, lambda keys: keys.create(name, role, namespace))

    assert with_keys(store_path, lambda keys: keys.list()) == []


@pytest.mark.parametrize(
    ("has", "needs", "may"),
    [
        ("invoke", "invoke", True),
        ("invoke", "deploy", False),
        ("deploy", "invoke", True),
        ("deploy", "admin", False),
        ("admin", "deploy", True),
        ("admin", "admin", True),
    ],
)
def test_a_role_includes_the_lesser_ones(has: str, needs: str, *, may: bool) -> None:
    caller = Caller(has, "default")

    if may:
        caller.require(needs)
    else:
        with pytest.raises(Forbidden, match=f"needs the role '{needs}'; the key has '{has}'"):
            caller.require(needs)


CHOSEN = "a-key-that-the-operator-has-chosen"


def test_a_chosen_key_is_an_admins(store_path: Path) -> None:
    with_keys(store_path, lambda keys: keys.adopt("chosen", CHOSEN))

    async def work(keys: Keys) -> Caller:
        return await keys.caller(f"Bearer {CHOSEN}", None)

    assert with_keys(store_path, work, open_to_all=False) == Caller("admin", "default", "chosen")


def test_a_chosen_key_replaces_the_one_before_and_no_other(store_path: Path) -> None:
    async def work(keys: Keys) -> tuple[list[str], str]:
        other = await made(keys)
        first = await keys.adopt("chosen", CHOSEN)
        again = await keys.adopt("chosen", CHOSEN)
        assert first == again
        await keys.adopt("chosen", CHOSEN[::-1])
        await keys.caller(other, None)
        with pytest.raises(Unauthorized):
            await keys.caller(f"Bearer {CHOSEN}", None)
        return [key.name for key in await keys.list()], other

    names, _ = with_keys(store_path, work)
    assert names == ["ci", "chosen"]


def test_a_key_with_a_lesser_role_is_not_made_an_admins(store_path: Path) -> None:
    async def work(keys: Keys) -> None:
        await keys.adopt("chosen", (await made(keys)).removeprefix("Bearer "))

    with pytest.raises(BadRequest, match="exists already, with the role 'invoke'"):
        with_keys(store_path, work)


@pytest.mark.parametrize("secret", ["short", "x" * 201, "with blanks " * 4, "x" * 32 + "\n"])
def test_a_chosen_key_that_can_be_guessed_or_not_be_sent_is_refused(
    store_path: Path, secret: str
) -> None:
    with pytest.raises(BadRequest, match="32 to 200 letters") as refused:
        with_keys(store_path, lambda keys: keys.adopt("chosen", secret))

    assert secret not in refused.value.detail
