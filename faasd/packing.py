"""Turns a function's folder into what a deploy sends: spec, code archive and artifacts.

Equal folders give equal bytes, so that deploying unchanged content makes no new revision: entries are
sorted and times, owners and modes are levelled. Artifact files stay out of the archive, for they travel
on their own under their SHA-256. Nothing outside the folder is ever read.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faasd.errors import BadRequest, FaasdError, InvalidArchive, InvalidSpec
from faasd.spec import MAX_SPEC_BYTES, FunctionSpec, check_name, parse_spec, validate_spec

SPEC_FILE = "function.toml"
IGNORE_FILE = ".faasdignore"
MAX_CODE_BYTES = 256 * 1024 * 1024
MAX_CODE_FILES = 10_000

_ALWAYS_IGNORED = ("__pycache__", ".git", ".venv")
_SMALLEST_SPEC = (
    f'Write one; the smallest is the line `name = "my-function"` in {SPEC_FILE}, beside a handler.py '
    "that has `def handle(event, context)`."
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that is uploaded apart from the code, under the digest of its content."""

    name: str
    path: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Package:
    """All that one deploy sends."""

    spec: FunctionSpec
    code: bytes
    artifacts: tuple[Artifact, ...]

    def spec_json(self) -> str:
        """The spec with the keys its author wrote; the controller fills in its own defaults."""
        return self.spec.model_dump_json(exclude_unset=True)

    def digests(self) -> dict[str, str]:
        return {artifact.name: artifact.sha256 for artifact in self.artifacts}


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    path: Path
    status: os.stat_result


def pack(
    folder: Path | str,
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Package:
    """Read `folder`; `name` takes the place of the one in function.toml.

    `settings` has values for keys such as "limits.timeout_s", which take the place of its own.

    Raises InvalidSpec, InvalidArchive or BadRequest when the folder is not a function's.
    """
    root = Path(folder)
    try:
        spec = _read_spec(root, {} if name is None else {"name": check_name(name)}, settings or {})
        artifacts = tuple(
            _artifact(root, key, relative) for key, relative in sorted(spec.artifacts.items())
        )
        left_out = {_real(artifact.path) for artifact in artifacts}
        entries = [entry for entry in _entries(root) if _real(entry.path) not in left_out]
        _check_entries(entries, spec)
        return Package(spec, _archive(entries), artifacts)
    except OSError as error:
        raise _unreadable(error) from None


def _read_spec(root: Path, *changes: Mapping[str, Any]) -> FunctionSpec:
    if not root.exists():
        raise BadRequest(
            f"There is no folder '{root}'.", remedy="Name the folder that holds function.toml."
        )
    if not root.is_dir():
        raise BadRequest(
            f"'{root}' is not a folder.", remedy="Name the folder that holds function.toml."
        )
    path = root / SPEC_FILE
    if not path.is_file():
        raise InvalidSpec(f"There is no {SPEC_FILE} in '{root}'.", remedy=_SMALLEST_SPEC)
    with _inside(root, path).open("rb") as file:
        spec = parse_spec(file.read(MAX_SPEC_BYTES + 1))
    if not any(changes):
        return spec
    raw = spec.model_dump(mode="json", exclude_unset=True)
    for key, value in (item for one in changes for item in one.items()):
        _put(raw, key, value)
    return validate_spec(raw)


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise InvalidSpec(f"{key}: {section} is a value, not a section.")
    raw[last] = value


def _artifact(root: Path, name: str, relative: str) -> Artifact:
    path = root / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise InvalidSpec(f"artifacts.{name} = '{relative}': must be a path inside the folder.")
    if not path.is_file():
        raise InvalidSpec(
            f"artifacts.{name} = '{relative}': there is no such file in '{root}'.",
            remedy="Put the file there, or correct its path in function.toml.",
        )
    with _inside(root, path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Artifact(name, path, digest.hexdigest(), file.tell())


def _entries(root: Path) -> list[_Entry]:
    patterns = (*_ALWAYS_IGNORED, *_ignore_patterns(root / IGNORE_FILE))
    found = _walk(root, "", patterns, frozenset())
    entries: list[_Entry] = []
    size = 0
    for entry in found:
        entries.append(entry)
        size += entry.status.st_size
        if len(entries) > MAX_CODE_FILES:
            raise _too_large(f"more than {MAX_CODE_FILES} files")
        if size > MAX_CODE_BYTES:
            raise _too_large(f"more than {MAX_CODE_BYTES // 2**20} MB")
    return sorted(entries, key=lambda entry: entry.name)


def _walk(
    root: Path, folder: str, patterns: tuple[str, ...], above: frozenset[Path]
) -> Iterator[_Entry]:
    here = _real(root / folder)
    if here in above:
        raise InvalidArchive(
            f"The symbolic link '{folder}' leads back to a folder it is in.",
            remedy=f"Remove the link, or name it in {IGNORE_FILE}.",
        )
    with os.scandir(root / folder) as found:
        for item in found:
            name = f"{folder}/{item.name}" if folder else item.name
            path = root / name
            # A link that is ignored may lead anywhere, so it is asked about before it is followed.
            if is_ignored(name, is_folder=item.is_dir(follow_symlinks=False), patterns=patterns):
                continue
            if item.is_symlink():
                _inside(root, path)
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(root, name, patterns, above | {here})
            elif stat.S_ISREG(status.st_mode):
                yield _Entry(_utf8(name), path, status)


def _inside(root: Path, path: Path) -> Path:
    """The path itself, or InvalidArchive when a symbolic link takes it out of the folder."""
    target = _real(path)
    if not target.is_relative_to(_real(root)):
        raise InvalidArchive(
            f"'{path}' is a symbolic link that leaves the folder (to '{target}').",
            remedy=f"Copy or hard-link the file into the folder, or name it in {IGNORE_FILE}.",
        )
    if not target.exists():
        raise InvalidArchive(
            f"'{path}' is a symbolic link that leads nowhere.",
            remedy=f"Remove the link, or name it in {IGNORE_FILE}.",
        )
    return path


def _real(path: Path) -> Path:
    # Path.resolve raises RuntimeError on a link that leads to itself; this leaves it unresolved.
    return Path(os.path.realpath(path))


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidArchive(
            f"The file name {name!r} is not UTF-8.", remedy="Rename the file."
        ) from None
    return name


def _ignore_patterns(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text("utf-8", "replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def is_ignored(name: str, *, is_folder: bool, patterns: tuple[str, ...]) -> bool:
    """Whether the last pattern that matches leaves `name` out; the rules are those of gitignore.

    `*`, `?` and `[...]` stay within one part of a path and `**` spans several; a trailing slash means
    folders only, any other slash ties the pattern to the top, and a leading `!` takes back.
    """
    ignored = False
    for pattern in patterns:
        body = pattern.removeprefix("!")
        if body.endswith("/") and not is_folder:
            continue
        if _matches(name, body.rstrip("/")):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(name: str, pattern: str) -> bool:
    parts = name.split("/")
    if "/" not in pattern:
        return fnmatch.fnmatchcase(parts[-1], pattern)
    return _parts_match(parts, pattern.removeprefix("/").split("/"))


def _parts_match(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_parts_match(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], patterns[0]):
        return False
    return _parts_match(parts[1:], patterns[1:])


def _check_entries(entries: list[_Entry], spec: FunctionSpec) -> None:
    names = {entry.name for entry in entries}
    if spec.requirements is not None and os.path.normpath(spec.requirements) not in names:
        raise InvalidSpec(
            f"requirements = '{spec.requirements}': there is no such file in the folder.",
            remedy=f"Put the file there, or correct {SPEC_FILE}.",
        )


def _archive(entries: list[_Entry]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in entries:
            _add(archive, entry)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, entry: _Entry) -> None:
    info = tarfile.TarInfo(entry.name)
    info.size = entry.status.st_size
    info.mode = 0o755 if entry.status.st_mode & stat.S_IXUSR else 0o644
    with entry.path.open("rb") as file:
        content = file.read(info.size)
    if len(content) != info.size:
        raise InvalidArchive(
            f"'{entry.path}' shrank while it was packed.", remedy="Deploy again when it is at rest."
        )
    archive.addfile(info, io.BytesIO(content))


def _too_large(measure: str) -> FaasdError:
    return InvalidArchive(
        f"The folder holds {measure} of code.",
        remedy="Name large files under [artifacts] in function.toml, "
        f"and what the function does not need in {IGNORE_FILE}.",
    )


def _unreadable(error: OSError) -> FaasdError:
    return BadRequest(
        f"'{error.filename}' cannot be read: {error.strerror}.",
        remedy=f"Make it readable, or name it in {IGNORE_FILE} if the function does not need it.",
    )
