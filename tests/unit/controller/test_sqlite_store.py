"""The SQLite store: what was accepted is there again, also for whoever opens the file next."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.store.port import Attempt, StoredInvocation, StoredKey, StoredResult
from controller.store.sqlite import SqliteStore
from faasd.errors import BadRequest
from faasd.invocation import ArtifactRef, Revision
from faasd.spec import validate_spec

Use = Callable[[SqliteStore], Awaitable[Any]]
RESULT = StoredResult(200, "application/json", {"x-a": "1"}, b'{"ok":true}')


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def use(tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs each step on a store of its own, all of one file: every value survives a reopening."""

    def run(*steps: Use) -> list[Any]:
        async def main() -> list[Any]:
            found = []
            for step in steps:
                async with opened(tmp_path / "deep/store.db") as store:
                    found.append(await step(store))
            return found

        return asyncio.run(main())

    return run


def revision(function: str = "default/echo", identity: str = "r1") -> Revision:
    spec = validate_spec({"name": "echo", "artifacts": {"weights": "m.bin"}})
    refs = {"weights": ArtifactRef("c" * 64, "m.bin")}
    return Revision(function, identity, spec, "a" * 64, refs, min_instances=1)


def queued(
    identity: str = "i1", *, function: str = "default/echo", at: float = 10.0, body: bytes = b"{}"
) -> StoredInvocation:
    return StoredInvocation(
        id=identity,
        function=function,
        revision=None,
        status="queued",
        content_type="application/json",
        headers={"x-b": "2"},
        body=body,
        created_at=at,
        next_attempt_at=at,
    )


def done(invocation: StoredInvocation, *, at: float = 20.0) -> StoredInvocation:
    return dataclasses.replace(
        invocation,
        status="succeeded",
        revision="r1",
        next_attempt_at=None,
        finished_at=at,
        attempts=[Attempt(1, 11.0, 12.0, "w1", {"code": "worker_lost"}), Attempt(2, 13.0, at)],
        timings=[1.0, 2.0, 3.0, 4.0, 5.0],
        start="warm",
        result=RESULT,
    )


def accepting(*invocations: StoredInvocation) -> Use:
    async def step(store: SqliteStore) -> None:
        for invocation in invocations:
            await store.accept(invocation)

    return step


def test_an_activated_revision_is_kept_whole(use: Callable[..., list[Any]]) -> None:
    _, [stored] = use(lambda s: s.activate(revision(), 5.0), lambda s: s.revisions())

    assert stored.revision == revision()
    assert (stored.created_at, stored.active) == (5.0, True)


def test_one_revision_of_a_function_is_active(use: Callable[..., list[Any]]) -> None:
    *_, stored = use(
        lambda s: s.activate(revision(identity="r1"), 1.0),
        lambda s: s.activate(revision(identity="r2"), 2.0),
        lambda s: s.activate(revision("default/other", "r9"), 3.0),
        lambda s: s.revisions("default/echo"),
    )

    assert [(one.revision.id, one.active) for one in stored] == [("r1", False), ("r2", True)]


def test_an_earlier_revision_becomes_active_again_and_keeps_its_age(
    use: Callable[..., list[Any]],
) -> None:
    *_, stored = use(
        lambda s: s.activate(revision(identity="r1"), 1.0),
        lambda s: s.activate(revision(identity="r2"), 2.0),
        lambda s: s.activate(revision(identity="r1"), 3.0),
        lambda s: s.revisions(),
    )

    assert [(o.revision.id, o.created_at, o.active) for o in stored] == [
        ("r1", 1.0, True),
        ("r2", 2.0, False),
    ]


def test_a_removed_function_has_no_revisions(use: Callable[..., list[Any]]) -> None:
    *_, stored = use(
        lambda s: s.activate(revision(identity="r1"), 1.0),
        lambda s: s.activate(revision("default/other", "r9"), 3.0),
        lambda s: s.remove_function("default/echo"),
        lambda s: s.revisions(),
    )

    assert [one.revision.function for one in stored] == ["default/other"]


def test_an_accepted_invocation_is_kept_whole(use: Callable[..., list[Any]]) -> None:
    wanted = queued(body=b"\x00\xff" * 1000)

    _, found, missing = use(
        accepting(wanted), lambda s: s.invocation("i1"), lambda s: s.invocation("i2")
    )

    assert found == wanted
    assert missing is None


def test_a_finished_invocation_is_kept_with_its_result_and_attempts(
    use: Callable[..., list[Any]],
) -> None:
    *_, found = use(
        accepting(queued()), lambda s: s.update(done(queued())), lambda s: s.invocation("i1")
    )

    assert found == done(queued())


def test_an_id_that_is_taken_is_not_accepted_again(use: Callable[..., list[Any]]) -> None:
    first, second, found = use(
        lambda s: s.accept(queued(body=b"first")),
        lambda s: s.accept(queued(body=b"second")),
        lambda s: s.invocation("i1"),
    )

    assert (first, second) == (True, False)
    assert found.body == b"first"


def test_invocations_are_listed_the_newest_first_without_bodies(
    use: Callable[..., list[Any]],
) -> None:
    _, found = use(
        accepting(queued("i1", at=1.0), queued("i2", at=2.0), queued("i3", at=3.0)),
        lambda s: s.invocations(namespace="default", status=None, function=None, limit=2),
    )

    assert [(one.id, one.body, one.result) for one in found] == [
        ("i3", b"", None),
        ("i2", b"", None),
    ]


def test_invocations_are_listed_by_namespace_function_and_status(
    use: Callable[..., list[Any]],
) -> None:
    def listing(**only: str | None) -> Use:
        chosen: dict[str, Any] = {
            "namespace": "default",
            "status": None,
            "function": None,
            "limit": 9,
            **only,
        }
        return lambda s: s.invocations(**chosen)

    everything = [
        queued("mine"),
        queued("done"),
        queued("other", function="default/other"),
        queued("alien", function="default2/echo"),
        queued("percent", function="%/echo"),
    ]
    _, _, *found = use(
        accepting(*everything),
        lambda s: s.update(done(queued("done"))),
        listing(),
        listing(function="echo"),
        listing(status="succeeded"),
        listing(namespace="default2"),
        listing(namespace="%"),
    )

    assert [sorted(one.id for one in part) for part in found] == [
        ["done", "mine", "other"],
        ["done", "mine"],
        ["done"],
        ["alien"],
        ["percent"],
    ]


def test_what_is_due_comes_the_longest_due_first(use: Callable[..., list[Any]]) -> None:
    _, due, some, none, next_due = use(
        accepting(queued("late", at=3.0), queued("later", at=9.0), queued("first", at=1.0)),
        lambda s: s.due(3.0, 10),
        lambda s: s.due(3.0, 1),
        lambda s: s.due(0.5, 10),
        lambda s: s.next_due(),
    )

    assert [one.id for one in due] == ["first", "late"]
    assert [one.id for one in some] == ["first"]
    assert none == []
    assert next_due == 1.0


def test_nothing_is_due_in_an_empty_store(use: Callable[..., list[Any]]) -> None:
    assert use(lambda s: s.next_due(), lambda s: s.due(1e12, 1)) == [None, []]


def test_what_was_running_is_queued_again(use: Callable[..., list[Any]]) -> None:
    running = dataclasses.replace(queued("i1"), status="running", next_attempt_at=None)

    *_, count, again, due = use(
        accepting(queued("i1"), queued("i2", at=99.0)),
        lambda s: s.update(running),
        lambda s: s.requeue_running(50.0),
        lambda s: s.requeue_running(60.0),
        lambda s: s.due(50.0, 9),
    )

    assert (count, again) == (1, 0)
    assert [one.id for one in due] == ["i1"]


def test_the_backlog_is_counted_by_status(use: Callable[..., list[Any]]) -> None:
    *_, counts = use(
        accepting(queued("i1"), queued("i2"), queued("i3")),
        lambda s: s.update(done(queued("i3"))),
        lambda s: s.backlog(),
    )

    assert counts == {"queued": 2, "succeeded": 1}


def test_a_reply_is_recalled_under_its_key_and_scope(use: Callable[..., list[Any]]) -> None:
    _, found, elsewhere, unknown = use(
        lambda s: s.remember("default/echo", "k1", "print", RESULT, 1.0),
        lambda s: s.recall("default/echo", "k1"),
        lambda s: s.recall("default/other", "k1"),
        lambda s: s.recall("default/echo", "k2"),
    )

    assert found == ("print", RESULT)
    assert elsewhere is None
    assert unknown is None


def test_only_what_was_kept_long_enough_is_dropped(use: Callable[..., list[Any]]) -> None:
    async def check(store: SqliteStore) -> list[bool]:
        found = [await store.invocation(i) for i in ("old", "new", "waiting")]
        kept = [await store.recall("s", k) for k in ("old", "new")]
        return [one is not None for one in (*found, *kept)]

    *_, there = use(
        accepting(queued("old"), queued("new"), queued("waiting")),
        lambda s: s.update(done(queued("old"), at=20.0)),
        lambda s: s.update(done(queued("new"), at=40.0)),
        lambda s: s.remember("s", "old", "p", RESULT, 20.0),
        lambda s: s.remember("s", "new", "p", RESULT, 40.0),
        lambda s: s.expire(finished_before=30.0, keys_before=30.0),
        check,
    )

    assert there == [False, True, True, False, True]


def test_a_dead_invocation_is_kept_for_whoever_looks_into_it(
    use: Callable[..., list[Any]],
) -> None:
    dead = dataclasses.replace(done(queued()), status="dead", result=None)

    *_, found = use(
        accepting(queued()),
        lambda s: s.update(dead),
        lambda s: s.expire(finished_before=1e12, keys_before=1e12),
        lambda s: s.invocation("i1"),
    )

    assert found == dead


def test_keys_are_found_by_digest_listed_and_removed(use: Callable[..., list[Any]]) -> None:
    key = StoredKey("k1", "ci", "deploy", "default", 5.0)

    _, found, unknown, listed, removed, again, left = use(
        lambda s: s.add_key(key, "digest"),
        lambda s: s.key_by_digest("digest"),
        lambda s: s.key_by_digest("other"),
        lambda s: s.keys(),
        lambda s: s.remove_key("k1"),
        lambda s: s.remove_key("k1"),
        lambda s: s.keys(),
    )

    assert (found, unknown, listed) == (key, None, [key])
    assert (removed, again, left) == (True, False, [])


def test_many_writes_at_once_are_all_kept_in_few_transactions(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        async with opened(tmp_path / "store.db") as store:
            commits: list[str] = []

            def trace(db: sqlite3.Connection) -> None:
                db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

            await store._read(trace)
            await asyncio.gather(*(store.accept(queued(f"i{n}")) for n in range(300)))
            return (await store.backlog())["queued"], len(commits)

    count, commits = asyncio.run(main())

    assert count == 300
    assert commits <= 3


def test_a_write_that_fails_fails_alone(tmp_path: Path) -> None:
    async def main() -> tuple[list[Any], int]:
        async with opened(tmp_path / "store.db") as store:
            keys = [StoredKey(i, "ci", "invoke", "default", 1.0) for i in ("k1", "k2", "k3")]
            outcome = await asyncio.gather(
                store.add_key(keys[0], "same digest"),
                store.accept(queued("i1")),
                store.add_key(keys[1], "same digest"),
                store.add_key(keys[2], "another digest"),
                return_exceptions=True,
            )
            return list(outcome), len(await store.keys())

    outcome, count = asyncio.run(main())

    assert outcome[:2] == [None, True]
    assert isinstance(outcome[2], sqlite3.IntegrityError)
    assert outcome[3] is None
    assert count == 2


def test_a_write_that_cannot_be_bound_leaves_no_other_waiting(tmp_path: Path) -> None:
    unstorable = dataclasses.replace(queued("bad"), function="\ud800")

    async def main() -> tuple[list[Any], int]:
        async with opened(tmp_path / "store.db") as store, asyncio.timeout(30):
            outcome = await asyncio.gather(
                store.accept(queued("i1")), store.accept(unstorable), return_exceptions=True
            )
            await store.accept(queued("i2"))
            return list(outcome), (await store.backlog())["queued"]

    outcome, count = asyncio.run(main())

    assert outcome[0] is True
    assert isinstance(outcome[1], UnicodeEncodeError)
    assert count == 2


def test_closing_waits_for_writes_under_way(tmp_path: Path) -> None:
    async def main() -> Any:
        store = SqliteStore(tmp_path / "store.db")
        await store.open()
        writes = [asyncio.ensure_future(store.accept(queued(f"i{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        await store.aclose()
        await asyncio.gather(*writes)
        async with opened(tmp_path / "store.db") as again:
            return await again.backlog()

    assert asyncio.run(main()) == {"queued": 50}


def test_a_caller_that_leaves_does_not_undo_the_write_of_others(tmp_path: Path) -> None:
    async def main() -> Any:
        async with opened(tmp_path / "store.db") as store:
            first, second = (asyncio.ensure_future(store.accept(queued(i))) for i in ("i1", "i2"))
            await asyncio.sleep(0)
            first.cancel()
            await second
            return await store.invocation("i2")

    assert asyncio.run(main()) == queued("i2")


def test_a_file_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()

    async def main() -> None:
        store = SqliteStore(tmp_path / "store.db")
        try:
            await store.open()
        finally:
            await store.aclose()

    with pytest.raises(BadRequest, match="another version of faasd") as refused:
        asyncio.run(main())

    assert "--data" in refused.value.remedy
