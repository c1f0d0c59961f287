"""The store in one SQLite file, WAL mode: the embedded default.

One connection on one thread of its own, so that a commit never holds up the event loop. `synchronous
= FULL`: what was accepted is on the disk when the caller hears of it. Commits that arrive together
share one transaction.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from controller.store.port import (
    Attempt,
    StoredInvocation,
    StoredKey,
    StoredResult,
    StoredRevision,
)
from faasd.errors import BadRequest
from faasd.invocation import Revision

_Value = TypeVar("_Value")
_Work = Callable[[sqlite3.Connection], Any]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE revisions (
    function TEXT NOT NULL, revision TEXT NOT NULL, plain TEXT NOT NULL,
    created_at REAL NOT NULL, active INTEGER NOT NULL, PRIMARY KEY (function, revision)
) WITHOUT ROWID;
CREATE TABLE invocations (
    id TEXT PRIMARY KEY, function TEXT NOT NULL, status TEXT NOT NULL,
    created_at REAL NOT NULL, next_attempt_at REAL, finished_at REAL,
    request TEXT NOT NULL, body BLOB NOT NULL,
    progress TEXT NOT NULL, result TEXT, result_body BLOB
);
CREATE INDEX invocations_due ON invocations (status, next_attempt_at);
CREATE INDEX invocations_of ON invocations (function, created_at);
CREATE INDEX invocations_finished ON invocations (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE idempotency (
    scope TEXT NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL,
    result TEXT NOT NULL, body BLOB NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (scope, key)
);
CREATE INDEX idempotency_age ON idempotency (created_at);
CREATE TABLE keys (
    id TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, name TEXT NOT NULL, role TEXT NOT NULL,
    namespace TEXT NOT NULL, created_at REAL NOT NULL
);
"""
_COLUMNS = (
    "id, function, status, created_at, next_attempt_at, finished_at, request, body, progress, "
    "result, result_body"
)
_COLUMNS_WITHOUT_BODIES = (
    "id, function, status, created_at, next_attempt_at, finished_at, request, x'', progress, "
    "NULL, NULL"
)


class SqliteStore:
    """Not thread-safe: called from the controller's loop, works on its own thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "faasd-store")
        self._connection: sqlite3.Connection | None = None
        self._batch: list[tuple[_Work, asyncio.Future[Any]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = await self._on_thread(self._connect)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 5000")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
            )
        elif version != _SCHEMA_VERSION:
            raise BadRequest(
                f"{self._path} was written by another version of faasd (schema {version}).",
                remedy="Start that version, or use another --data folder.",
            )
        return connection

    async def aclose(self) -> None:
        if self._flushing is not None:
            await self._flushing
        if self._connection is not None:
            await self._on_thread(self._connection.close)
            self._connection = None
        self._thread.shutdown()

    async def activate(self, revision: Revision, now: float) -> None:
        plain = json.dumps(revision.to_plain())

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE revisions SET active = 0 WHERE function = ?", (revision.function,))
            db.execute(
                "INSERT INTO revisions VALUES (?, ?, ?, ?, 1) "
                "ON CONFLICT (function, revision) DO UPDATE SET active = 1",
                (revision.function, revision.id, plain, now),
            )

        await self._write(work)

    async def revisions(self, function: str | None = None) -> list[StoredRevision]:
        def work(db: sqlite3.Connection) -> list[Any]:
            return db.execute(
                "SELECT plain, created_at, active FROM revisions "
                "WHERE ?1 IS NULL OR function = ?1 ORDER BY created_at, revision",
                (function,),
            ).fetchall()

        return [
            StoredRevision(Revision.from_plain(json.loads(plain)), created_at, bool(active))
            for plain, created_at, active in await self._read(work)
        ]

    async def remove_function(self, function: str) -> None:
        await self._write(
            lambda db: db.execute("DELETE FROM revisions WHERE function = ?", (function,))
        )

    async def accept(self, invocation: StoredInvocation) -> bool:
        values = (
            invocation.id,
            invocation.function,
            invocation.status,
            invocation.created_at,
            invocation.next_attempt_at,
            invocation.finished_at,
            json.dumps([invocation.content_type, invocation.headers]),
            invocation.body,
            _progress(invocation),
            None,
            None,
        )
        accepted = await self._write(
            lambda db: (
                db.execute(
                    f"INSERT INTO invocations ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?) "  # noqa: S608
                    "ON CONFLICT (id) DO NOTHING",
                    values,
                ).rowcount
            )
        )
        return bool(accepted)

    async def update(self, invocation: StoredInvocation) -> None:
        result = invocation.result
        values = (
            invocation.status,
            invocation.next_attempt_at,
            invocation.finished_at,
            _progress(invocation),
            _result_head(result) if result else None,
            result.body if result else None,
            invocation.id,
        )
        await self._write(
            lambda db: db.execute(
                "UPDATE invocations SET status = ?, next_attempt_at = ?, finished_at = ?, "
                "progress = ?, result = ?, result_body = ? WHERE id = ?",
                values,
            )
        )

    async def invocation(self, identity: str) -> StoredInvocation | None:
        def work(db: sqlite3.Connection) -> Any:
            return db.execute(
                f"SELECT {_COLUMNS} FROM invocations WHERE id = ?",  # noqa: S608
                (identity,),
            ).fetchone()

        row = await self._read(work)
        return _invocation(row) if row else None

    async def invocations(
        self, *, namespace: str, status: str | None, function: str | None, limit: int
    ) -> list[StoredInvocation]:
        prefix = f"{namespace}/"
        exact = prefix + function if function else None

        def work(db: sqlite3.Connection) -> list[Any]:
            return db.execute(
                f"SELECT {_COLUMNS_WITHOUT_BODIES} FROM invocations "  # noqa: S608
                "WHERE substr(function, 1, length(?1)) = ?1 AND (?2 IS NULL OR status = ?2) "
                "AND (?3 IS NULL OR function = ?3) ORDER BY created_at DESC, id LIMIT ?4",
                (prefix, status, exact, limit),
            ).fetchall()

        return [_invocation(row) for row in await self._read(work)]

    async def due(self, now: float, limit: int) -> list[StoredInvocation]:
        def work(db: sqlite3.Connection) -> list[Any]:
            return db.execute(
                f"SELECT {_COLUMNS} FROM invocations WHERE status = 'queued' "  # noqa: S608
                "AND next_attempt_at <= ? ORDER BY next_attempt_at, created_at LIMIT ?",
                (now, limit),
            ).fetchall()

        return [_invocation(row) for row in await self._read(work)]

    async def next_due(self) -> float | None:
        def work(db: sqlite3.Connection) -> Any:
            return db.execute(
                "SELECT min(next_attempt_at) FROM invocations WHERE status = 'queued'"
            ).fetchone()

        (due,) = await self._read(work)
        return None if due is None else float(due)

    async def requeue_running(self, now: float) -> int:
        def work(db: sqlite3.Connection) -> int:
            return db.execute(
                "UPDATE invocations SET status = 'queued', next_attempt_at = ? "
                "WHERE status = 'running'",
                (now,),
            ).rowcount

        return int(await self._write(work))

    async def backlog(self) -> dict[str, int]:
        def work(db: sqlite3.Connection) -> list[Any]:
            return db.execute("SELECT status, count(*) FROM invocations GROUP BY status").fetchall()

        return dict(await self._read(work))

    async def remember(
        self, scope: str, key: str, fingerprint: str, result: StoredResult, now: float
    ) -> None:
        values = (scope, key, fingerprint, _result_head(result), result.body, now)
        await self._write(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?)", values
            )
        )

    async def recall(self, scope: str, key: str) -> tuple[str, StoredResult] | None:
        def work(db: sqlite3.Connection) -> Any:
            return db.execute(
                "SELECT fingerprint, result, body FROM idempotency WHERE scope = ? AND key = ?",
                (scope, key),
            ).fetchone()

        row = await self._read(work)
        return (row[0], _result(row[1], row[2])) if row else None

    async def expire(self, *, finished_before: float, keys_before: float) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "DELETE FROM invocations WHERE status = 'succeeded' AND finished_at < ?",
                (finished_before,),
            )
            db.execute("DELETE FROM idempotency WHERE created_at < ?", (keys_before,))

        await self._write(work)

    async def add_key(self, key: StoredKey, digest: str) -> None:
        values = (key.id, digest, key.name, key.role, key.namespace, key.created_at)
        await self._write(
            lambda db: db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?)", values)
        )

    async def key_by_digest(self, digest: str) -> StoredKey | None:
        def work(db: sqlite3.Connection) -> Any:
            return db.execute(
                "SELECT id, name, role, namespace, created_at FROM keys WHERE digest = ?", (digest,)
            ).fetchone()

        row = await self._read(work)
        return StoredKey(*row) if row else None

    async def keys(self) -> list[StoredKey]:
        def work(db: sqlite3.Connection) -> list[Any]:
            return db.execute(
                "SELECT id, name, role, namespace, created_at FROM keys ORDER BY created_at"
            ).fetchall()

        return [StoredKey(*row) for row in await self._read(work)]

    async def remove_key(self, identity: str) -> bool:
        removed = await self._write(
            lambda db: db.execute("DELETE FROM keys WHERE id = ?", (identity,)).rowcount
        )
        return bool(removed)

    async def _on_thread(self, work: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _read(self, work: Callable[[sqlite3.Connection], _Value]) -> _Value:
        connection = self._connection
        assert connection is not None
        return await self._on_thread(lambda: work(connection))

    async def _write(self, work: _Work) -> Any:
        """Run it in the next transaction; returns once that is on the disk."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._batch.append((work, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush())
        return await done

    async def _flush(self) -> None:
        while self._batch:
            batch, self._batch = self._batch, []
            outcome = await self._on_thread(lambda batch=batch: self._transact(batch))  # type: ignore[misc]
            for (_work, done), (value, error) in zip(batch, outcome, strict=True):
                if done.done():
                    continue
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(value)

    def _transact(
        self, batch: list[tuple[_Work, asyncio.Future[Any]]]
    ) -> list[tuple[Any, Exception | None]]:
        """All of a batch in one transaction; when one fails, each in one of its own."""
        connection = self._connection
        assert connection is not None
        try:
            connection.execute("BEGIN IMMEDIATE")
            values = [_value(work(connection)) for work, _done in batch]
            connection.execute("COMMIT")
        except Exception as error:  # whatever it is, each waiter is told how its own write ended
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(batch) == 1:
                return [(None, error)]
            return [self._transact([one])[0] for one in batch]
        return [(value, None) for value in values]


def _value(found: Any) -> Any:
    return None if isinstance(found, sqlite3.Cursor) else found


def _progress(invocation: StoredInvocation) -> str:
    return json.dumps(
        {
            "revision": invocation.revision,
            "attempts": [asdict(attempt) for attempt in invocation.attempts],
            "timings": invocation.timings,
            "start": invocation.start,
        }
    )


def _result_head(result: StoredResult) -> str:
    return json.dumps([result.status, result.content_type, result.headers])


def _result(head: str, body: bytes) -> StoredResult:
    status, content_type, headers = json.loads(head)
    return StoredResult(status, content_type, headers, bytes(body))


def _invocation(row: Any) -> StoredInvocation:
    content_type, headers = json.loads(row[6])
    progress = json.loads(row[8])
    return StoredInvocation(
        id=row[0],
        function=row[1],
        status=row[2],
        created_at=row[3],
        next_attempt_at=row[4],
        finished_at=row[5],
        content_type=content_type,
        headers=headers,
        body=bytes(row[7]),
        revision=progress["revision"],
        attempts=[Attempt(**attempt) for attempt in progress["attempts"]],
        timings=progress["timings"],
        start=progress["start"],
        result=_result(row[9], row[10]) if row[9] else None,
    )
