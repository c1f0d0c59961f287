"""Code archives: good ones unpack as they are, hostile ones leave nothing outside and say why."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd import archive
from faasd.errors import InvalidArchive

Members = list[tuple[tarfile.TarInfo, bytes]]


def file(
    name: str, content: bytes = b"x = 1\n", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = mode
    return info, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info, b""


def packed(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_archive(content: bytes) -> Path:
        path = tmp_path / "code.tar.gz"
        path.write_bytes(content)
        return path

    return write_archive


def refusal(path: Path, *, max_mb: float = 1.0) -> InvalidArchive:
    with pytest.raises(InvalidArchive) as refused:
        archive.check(path, max_mb=max_mb)
    return refused.value


def test_a_good_archive_is_listed_by_its_files(write: Callable[[bytes], Path]) -> None:
    path = write(packed([special("lib", tarfile.DIRTYPE), file("lib/a.py"), file("handler.py")]))

    assert archive.check(path, max_mb=1.0) == ["lib/a.py", "handler.py"]


def test_a_good_archive_is_unpacked_with_its_folders(
    write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    path = write(packed([file("handler.py"), file("deep/er/data.bin", b"\0" * 5000)]))

    archive.unpack(path, tmp_path / "out", max_mb=1.0)

    assert (tmp_path / "out/handler.py").read_bytes() == b"x = 1\n"
    assert (tmp_path / "out/deep/er/data.bin").read_bytes() == b"\0" * 5000


def test_only_the_executable_bit_of_a_file_is_kept(
    write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    path = write(packed([file("run.sh", mode=0o4777), file("data", mode=0o666)]))

    archive.unpack(path, tmp_path / "out", max_mb=1.0)

    assert (tmp_path / "out/run.sh").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "out/data").stat().st_mode & 0o7777 == 0o644


def test_an_empty_archive_is_an_archive(write: Callable[[bytes], Path]) -> None:
    assert archive.check(write(packed([])), max_mb=1.0) == []


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../escape", "a/../../escape", "a\\..\\b", "..", "a/.."]
)
def test_a_member_outside_the_folder_is_refused(write: Callable[[bytes], Path], name: str) -> None:
    error = refusal(write(packed([file(name)])))

    assert "points outside its folder" in error.detail
    assert repr(name) in error.detail


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device or pipe"),
        (tarfile.BLKTYPE, "a device or pipe"),
        (tarfile.FIFOTYPE, "a device or pipe"),
    ],
)
def test_a_member_that_is_no_file_is_refused(
    write: Callable[[bytes], Path], kind: bytes, named: str
) -> None:
    error = refusal(write(packed([special("thing", kind, "/etc/passwd")])))

    assert f"'thing' is {named}" in error.detail


@pytest.mark.parametrize("other", ["handler.py", "./handler.py", "lib/.//../handler.py"])
def test_a_file_that_comes_twice_is_refused(write: Callable[[bytes], Path], other: str) -> None:
    refusal(write(packed([file("handler.py"), file(other)])))


def test_a_folder_may_come_twice(write: Callable[[bytes], Path]) -> None:
    folder = special("lib", tarfile.DIRTYPE)

    assert archive.check(write(packed([folder, folder])), max_mb=1.0) == []


def test_an_archive_that_unpacks_to_too_much_is_refused(write: Callable[[bytes], Path]) -> None:
    path = write(packed([file("zeros", b"\0" * (3 << 20))]))

    error = refusal(path, max_mb=2.0)

    assert path.stat().st_size < 100_000
    assert "more than 2 MB" in error.detail
    assert "code_max_mb" in error.remedy


def test_an_archive_of_too_many_files_is_refused(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)

    error = refusal(write(packed([file(f"f{n}") for n in range(11)])))

    assert "more than 10 files" in error.detail


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive",
        gzip.compress(b"not a tar"),
        packed([file("handler.py", b"\x01\x02" * 5000)])[:-20],
        packed([file("a.py")])[:30],
    ],
    ids=["empty", "text", "gzip of text", "cut at the end", "cut at the start"],
)
def test_what_is_no_archive_is_refused(write: Callable[[bytes], Path], content: bytes) -> None:
    assert refusal(write(content)).detail


def test_a_sparse_file_is_refused_since_its_holes_cost_nothing(
    write: Callable[[bytes], Path],
) -> None:
    info, _ = file("huge", b"")
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50)}

    assert "'huge' is a sparse file" in refusal(write(packed([(info, b"")]))).detail


@pytest.mark.parametrize("name", ["n" * 256, "folder/" * 200 + "n"])
def test_a_name_no_file_system_takes_is_refused(write: Callable[[bytes], Path], name: str) -> None:
    assert "too long a name" in refusal(write(packed([file(name)]))).detail


@pytest.mark.parametrize(
    "members",
    [
        [file("a"), file("a/b")],
        [file("a/b"), file("a")],
        [file("a"), special("a", tarfile.DIRTYPE)],
        [special("a", tarfile.DIRTYPE), file("a")],
        [file(".")],
    ],
)
def test_a_file_that_is_also_a_folder_is_refused(
    write: Callable[[bytes], Path], members: Members
) -> None:
    assert "both a file and a folder" in refusal(write(packed(members))).detail


@pytest.mark.parametrize(
    "content",
    [
        packed([file("../escape")]),
        packed([special("a", tarfile.SYMTYPE, "/etc"), file("a/escape")]),
        packed([file("twice"), file("twice")]),
        packed([file("zeros", b"\0" * (3 << 20))]),
        packed([file("a"), file("a/b")]),
        packed([file("handler.py", b"\x01\x02" * 5000)])[:-20],
        gzip.compress(b"not a tar"),
        b"text",
        b"",
    ],
    ids=["outside", "link", "twice", "bomb", "file as folder", "cut", "no tar", "text", "empty"],
)
def test_unpacking_trusts_no_check_before_it(
    write: Callable[[bytes], Path], tmp_path: Path, content: bytes
) -> None:
    path = write(content)

    with pytest.raises(InvalidArchive):
        archive.unpack(path, tmp_path / "out", max_mb=2.0)

    assert {p.name for p in tmp_path.iterdir()} == {"code.tar.gz", "out"}


def attempt(content: bytes) -> None:
    """Both ways through an archive: anything but InvalidArchive comes out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code")
        path.write_bytes(content)
        for way in (
            lambda: archive.check(path, max_mb=1.0),
            lambda: archive.unpack(path, Path(folder, "out"), max_mb=1.0),
        ):
            try:
                way()
            except InvalidArchive:
                continue
        assert {p.name for p in Path(folder).iterdir()} <= {"code", "out"}


@given(st.binary(max_size=2000))
def test_any_bytes_are_an_archive_or_refused(content: bytes) -> None:
    attempt(content)


@given(st.binary(max_size=2000))
def test_any_compressed_bytes_are_an_archive_or_refused(content: bytes) -> None:
    attempt(gzip.compress(content, 1))


@given(st.data())
def test_any_damaged_archive_is_an_archive_or_refused(data: st.DataObject) -> None:
    whole = bytearray(gzip.decompress(packed([file("handler.py"), file("lib/a.py")])))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, 2200))] = data.draw(st.integers(0, 255))

    attempt(gzip.compress(bytes(whole), 1))
