"""The folder of content-addressed files: only whole, verified files ever appear in it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faasd.blobs import BlobStore, check_digest, link_or_copy
from faasd.errors import BadRequest, BodyTooLarge, DigestMismatch

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def stream(*chunks: bytes, fails: BaseException | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if fails is not None:
        raise fails


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs")
    store.open()
    return store


def put(
    blobs: BlobStore,
    content: AsyncIterator[bytes],
    *,
    sha256: str | None = None,
    max_mb: float = 1.0,
) -> str:
    return asyncio.run(blobs.put(content, sha256=sha256, max_mb=max_mb))


def everything(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_a_stream_is_stored_under_its_digest(blobs: BlobStore) -> None:
    found = put(blobs, stream(CONTENT[:100], b"", CONTENT[100:]))

    assert found == DIGEST
    assert blobs.has(DIGEST)
    assert blobs.path(DIGEST).read_bytes() == CONTENT


def test_a_stored_file_is_not_to_be_written(blobs: BlobStore) -> None:
    put(blobs, stream(CONTENT), sha256=DIGEST)

    assert blobs.path(DIGEST).stat().st_mode & 0o777 == 0o444


def test_a_file_that_is_there_may_be_put_again(blobs: BlobStore, tmp_path: Path) -> None:
    put(blobs, stream(CONTENT))

    put(blobs, stream(CONTENT))

    assert everything(tmp_path) == [DIGEST]


def test_many_uploads_of_one_file_at_once_leave_one(blobs: BlobStore, tmp_path: Path) -> None:
    async def main() -> None:
        await asyncio.gather(
            *(blobs.put(stream(CONTENT), sha256=DIGEST, max_mb=1.0) for _ in range(20))
        )

    asyncio.run(main())

    assert everything(tmp_path) == [DIGEST]


def test_content_that_is_not_what_its_name_says_is_refused_and_not_kept(
    blobs: BlobStore, tmp_path: Path
) -> None:
    with pytest.raises(DigestMismatch, match=f"is {DIGEST}, not {'0' * 64}"):
        put(blobs, stream(CONTENT), sha256="0" * 64)

    assert everything(tmp_path) == []


def test_more_than_allowed_is_refused_and_not_kept(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(BodyTooLarge, match=r"more than 0\.001 MB"):
        put(blobs, stream(CONTENT), max_mb=0.001)

    assert everything(tmp_path) == []


def test_a_stream_that_breaks_off_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        put(blobs, stream(CONTENT, fails=ConnectionResetError()))

    assert everything(tmp_path) == []


def test_a_cancelled_upload_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield CONTENT
        started.set()
        await asyncio.Event().wait()

    async def main() -> None:
        upload = asyncio.ensure_future(blobs.put(endless(), sha256=None, max_mb=1.0))
        await started.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload

    started = asyncio.Event()
    asyncio.run(main())

    assert everything(tmp_path) == []


def test_a_file_is_not_there_before_it_is_whole(blobs: BlobStore) -> None:
    seen = []

    async def watched() -> AsyncIterator[bytes]:
        yield CONTENT
        seen.append(blobs.has(DIGEST))

    put(blobs, watched())

    assert seen == [False]


def test_opening_clears_what_was_left_half_written_and_keeps_the_rest(
    blobs: BlobStore, tmp_path: Path
) -> None:
    put(blobs, stream(CONTENT))
    (tmp_path / "blobs/incoming/left").write_bytes(b"half")

    BlobStore(tmp_path / "blobs").open()

    assert everything(tmp_path) == [DIGEST]


def test_a_file_is_adopted_as_a_second_name_of_the_same_file(
    blobs: BlobStore, tmp_path: Path
) -> None:
    put(blobs, stream(CONTENT))
    other = BlobStore(tmp_path / "other")
    other.open()

    other.adopt(blobs.path(DIGEST), DIGEST)
    other.adopt(blobs.path(DIGEST), DIGEST)

    assert other.path(DIGEST).samefile(blobs.path(DIGEST))
    assert list((tmp_path / "other/incoming").iterdir()) == []


def test_a_file_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "a").write_bytes(CONTENT)
    monkeypatch.setattr(os, "link", refuse)

    link_or_copy(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "b").read_bytes() == CONTENT
    assert not (tmp_path / "b").samefile(tmp_path / "a")


def test_a_file_is_read_in_pieces(blobs: BlobStore) -> None:
    large = os.urandom(700_000)

    async def main() -> list[bytes]:
        return [
            chunk
            async for chunk in blobs.read(await blobs.put(stream(large), sha256=None, max_mb=1))
        ]

    chunks = asyncio.run(main())

    assert b"".join(chunks) == large
    assert len(chunks) > 1


def test_only_what_is_wanted_is_kept(blobs: BlobStore) -> None:
    wanted, unwanted = put(blobs, stream(b"one")), put(blobs, stream(b"two"))

    removed = blobs.keep_only({wanted})

    assert removed == 1
    assert blobs.has(wanted)
    assert not blobs.has(unwanted)


def test_what_is_young_is_kept_too(blobs: BlobStore) -> None:
    young, old = put(blobs, stream(b"one")), put(blobs, stream(b"two"))
    os.utime(blobs.path(old), (1, 1))

    removed = blobs.keep_only(set(), younger_than_s=3600.0)

    assert removed == 1
    assert blobs.has(young)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "../" + "0" * 61])
def test_what_is_no_digest_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_digest(text)

    assert "64 lower-case hexadecimal digits" in refused.value.remedy


def test_a_digest_is_accepted_as_it_is() -> None:
    assert check_digest(DIGEST) == DIGEST
