"""Packing a function's folder: what goes in, what stays out, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from faasd import packing
from faasd.errors import BadRequest, InvalidArchive, InvalidSpec
from faasd.packing import is_ignored, pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "echo"
    root.mkdir()
    write(root / "function.toml", 'name = "echo"\n')
    write(root / "handler.py", "def handle(event, context):\n    return event\n")
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def members(code: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(code), mode="r:gz") as archive:
        return {member.name: member for member in archive.getmembers()}


def test_packs_the_folders_files_with_their_content(folder: Path) -> None:
    write(folder / "lib" / "tables.py", "ROWS = 3\n")

    code = pack(folder).code

    with tarfile.open(fileobj=io.BytesIO(code)) as archive:
        content = archive.extractfile("lib/tables.py")
        assert content is not None
        assert content.read() == b"ROWS = 3\n"
        assert archive.getnames() == ["function.toml", "handler.py", "lib/tables.py"]


def test_equal_folders_give_equal_bytes_whatever_their_times_and_modes(
    folder: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in ("handler.py", "function.toml"):
        (twin / name).write_bytes((folder / name).read_bytes())
        os.utime(twin / name, (1, 1))
        (twin / name).chmod(0o600)

    assert pack(twin).code == pack(folder).code


def test_levels_owner_time_and_mode_of_every_entry(folder: Path) -> None:
    write(folder / "run.sh", "#!/bin/sh\n").chmod(0o711)
    (folder / "handler.py").chmod(0o664)

    code = pack(folder).code

    packed = members(code)
    assert {(m.uid, m.gid, m.mtime, m.uname, m.gname) for m in packed.values()} == {
        (0, 0, 0, "", "")
    }
    assert packed["run.sh"].mode == 0o755
    assert packed["handler.py"].mode == 0o644
    assert code[4:8] == bytes(4)


def test_changed_content_changes_the_bytes(folder: Path) -> None:
    before = pack(folder).code
    write(folder / "handler.py", "def handle(event, context):\n    return 2\n")

    assert pack(folder).code != before


def test_leaves_out_caches_repositories_and_environments_at_any_depth(folder: Path) -> None:
    for name in ("__pycache__/a.pyc", "lib/__pycache__/b.pyc", ".git/HEAD", ".venv/bin/python"):
        write(folder / name, "x")

    assert set(members(pack(folder).code)) == {"function.toml", "handler.py"}


def test_leaves_out_what_the_ignore_file_names(folder: Path) -> None:
    write(folder / ".faasdignore", "# notes\n*.md\n!KEEP.md\n/data/\nlib/**/raw\n")
    kept = ("KEEP.md", "lib/data/a.txt")
    dropped = ("README.md", "docs/a.md", "data/a.txt", "lib/raw", "lib/x/y/raw")
    for name in (*kept, *dropped):
        write(folder / name, "x")

    assert set(members(pack(folder).code)) == {
        ".faasdignore",
        "function.toml",
        "handler.py",
        *kept,
    }


@pytest.mark.parametrize(
    ("pattern", "name", "is_folder", "expected"),
    [
        ("*.csv", "a/b.csv", False, True),
        ("/b.csv", "a/b.csv", False, False),
        ("a/*.csv", "a/b.csv", False, True),
        ("a/*.csv", "a/c/b.csv", False, False),
        ("a/**", "a/c/b.csv", False, True),
        ("**/b.csv", "b.csv", False, True),
        ("build/", "build", False, False),
        ("build/", "x/build", True, True),
        ("[ab].txt", "a.txt", False, True),
        ("?.txt", "ab.txt", False, False),
        ("!a.txt", "a.txt", False, False),
    ],
)
def test_patterns_follow_the_rules_of_gitignore(
    pattern: str, name: str, is_folder: bool, expected: bool
) -> None:
    assert is_ignored(name, is_folder=is_folder, patterns=(pattern,)) is expected


def test_artifacts_are_hashed_and_stay_out_of_the_archive(folder: Path) -> None:
    write(folder / "function.toml", 'name = "echo"\n[artifacts]\nweights = "models/w.bin"\n')
    write(folder / "models" / "w.bin", "weights")

    package = pack(folder)

    (artifact,) = package.artifacts
    assert artifact.name == "weights"
    assert artifact.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert artifact.size == 7
    assert package.digests() == {"weights": artifact.sha256}
    assert "models/w.bin" not in members(package.code)


def test_the_name_may_be_given_anew(folder: Path) -> None:
    package = pack(folder, name="other")

    assert package.spec.name == "other"
    assert '"name":"other"' in package.spec_json()


def test_only_the_keys_that_were_written_are_sent(folder: Path) -> None:
    assert pack(folder).spec_json() == '{"name":"echo"}'


@pytest.mark.parametrize("name", ["", "Echo", "a/b", "-a"])
def test_refuses_a_given_name_that_is_none(folder: Path, name: str) -> None:
    with pytest.raises(InvalidSpec, match="is not a name"):
        pack(folder, name=name)


def test_without_function_toml_it_says_what_the_smallest_one_is(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"no function\.toml") as caught:
        pack(tmp_path)

    assert 'name = "my-function"' in caught.value.remedy


def test_refuses_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="There is no folder"):
        pack(tmp_path / "nowhere")


def test_refuses_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(BadRequest, match="is not a folder"):
        pack(folder / "function.toml")


def test_names_the_key_at_fault_in_function_toml(folder: Path) -> None:
    write(folder / "function.toml", 'name = "echo"\nhandlr = "x"\n')

    with pytest.raises(InvalidSpec, match="handlr"):
        pack(folder)


def test_follows_a_link_that_stays_inside(folder: Path) -> None:
    (folder / "alias.py").symlink_to("handler.py")

    assert members(pack(folder).code)["alias.py"].isreg()


def test_refuses_a_link_that_leaves_the_folder(folder: Path, tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", "x")
    (folder / "notes").symlink_to(secret)

    with pytest.raises(InvalidArchive, match="leaves the folder"):
        pack(folder)


def test_an_ignored_link_may_lead_anywhere(folder: Path, tmp_path: Path) -> None:
    (folder / "notes").symlink_to(tmp_path)
    write(folder / ".faasdignore", "notes\n")

    assert "notes" not in members(pack(folder).code)


def test_refuses_a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "notes").symlink_to("missing")

    with pytest.raises(InvalidArchive, match="leads nowhere"):
        pack(folder)


def test_refuses_a_link_that_leads_back(folder: Path) -> None:
    (folder / "lib").mkdir()
    (folder / "lib" / "up").symlink_to("..")

    with pytest.raises(InvalidArchive, match="leads back"):
        pack(folder)


def test_refuses_a_link_that_leads_to_itself(folder: Path) -> None:
    (folder / "self").symlink_to("self")

    with pytest.raises(InvalidArchive, match="leads nowhere"):
        pack(folder)


def test_leaves_out_what_is_no_regular_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))

        assert set(members(pack(folder).code)) == {"function.toml", "handler.py"}


@pytest.mark.parametrize("path", ["../w.bin", "/etc/hostname", "a/../../w.bin"])
def test_refuses_an_artifact_outside_the_folder(folder: Path, path: str) -> None:
    write(folder / "function.toml", f'name = "echo"\n[artifacts]\nweights = "{path}"\n')

    with pytest.raises(InvalidSpec, match=r"artifacts\.weights"):
        pack(folder)


def test_refuses_an_artifact_that_is_not_there(folder: Path) -> None:
    write(folder / "function.toml", 'name = "echo"\n[artifacts]\nweights = "w.bin"\n')

    with pytest.raises(InvalidSpec, match="no such file"):
        pack(folder)


def test_refuses_an_artifact_that_is_a_link_out(folder: Path, tmp_path: Path) -> None:
    write(folder / "function.toml", 'name = "echo"\n[artifacts]\nweights = "w.bin"\n')
    (folder / "w.bin").symlink_to(write(tmp_path / "w.bin", "x"))

    with pytest.raises(InvalidArchive, match="leaves the folder"):
        pack(folder)


def test_refuses_requirements_that_are_not_there(folder: Path) -> None:
    write(folder / "function.toml", 'name = "echo"\nrequirements = "requirements.txt"\n')

    with pytest.raises(InvalidSpec, match="requirements"):
        pack(folder)


def test_finds_requirements_by_any_spelling_of_their_path(folder: Path) -> None:
    write(folder / "function.toml", 'name = "echo"\nrequirements = "./requirements.txt"\n')
    write(folder / "requirements.txt", "")

    assert "requirements.txt" in members(pack(folder).code)


def test_refuses_more_code_than_it_carries(folder: Path) -> None:
    with (folder / "big.bin").open("wb") as file:
        file.truncate(packing.MAX_CODE_BYTES)

    with pytest.raises(InvalidArchive, match="MB of code") as caught:
        pack(folder)

    assert "[artifacts]" in caught.value.remedy


def test_refuses_a_file_name_that_is_not_utf8(folder: Path) -> None:
    write(folder / os.fsdecode(b"\xff.py"), "")

    with pytest.raises(InvalidArchive, match="not UTF-8"):
        pack(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_names_what_cannot_be_read(folder: Path) -> None:
    write(folder / "handler.py", "x").chmod(0)

    with pytest.raises(BadRequest, match="cannot be read"):
        pack(folder)


def test_names_what_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read: File name too long"):
        pack(tmp_path / ("x" * 300))


def test_the_archive_is_a_gzip_without_a_name(folder: Path) -> None:
    code = pack(folder).code

    assert code[3] == 0
    assert gzip.decompress(code)


def test_settings_take_the_place_of_values_in_the_spec(tmp_path: Path) -> None:
    """Keys name sections by dots; what is not set stays as its author wrote it."""
    (tmp_path / "handler.py").write_text("def handle(event, context): return 1\n")
    (tmp_path / "function.toml").write_text('name = "a"\n[limits]\ntimeout_s = 7\n')

    spec = pack(tmp_path, settings={"limits.queue": 5, "scaling.keep_alive": 2.5}).spec

    assert (spec.limits.timeout_s, spec.limits.queue, spec.scaling.keep_alive) == (7, 5, 2.5)
    with pytest.raises(InvalidSpec, match="qeue"):
        pack(tmp_path, settings={"limits.qeue": 5})
    with pytest.raises(InvalidSpec, match="name is a value"):
        pack(tmp_path, settings={"name.first": "x"})
