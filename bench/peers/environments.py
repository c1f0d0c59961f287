"""One virtual environment for each peer, made on demand and kept.

A file in it says what was installed, in order. What is asked for beyond that is added; where
something else was installed, the environment is made anew.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RECORD = "installed.json"
_VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


class NotInstalled(Exception):
    """Why an environment could not be made: pip's last word."""


def prepare(folder: Path, name: str, requirements: Sequence[Sequence[str]]) -> Path:
    """The environment's interpreter. Each requirement is a list of arguments for pip."""
    place = folder.absolute() / name
    wanted = [" ".join(arguments) for arguments in requirements]
    present = _recorded(place)
    if not present or present[: len(wanted)] != wanted[: len(present)]:
        _make(folder, place)
        present = []
    python = place / "bin" / "python"
    for arguments in requirements:
        if (text := " ".join(arguments)) not in present:
            _install(python, arguments)
            present.append(text)
            (place / RECORD).write_text(json.dumps(present))
    return python


def _recorded(place: Path) -> list[str]:
    try:
        return [str(one) for one in json.loads((place / RECORD).read_text())]
    except (OSError, ValueError):
        return []


def _make(folder: Path, place: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # The folder hides itself from git wherever it lies.
    (folder / ".gitignore").write_text("*\n")
    shutil.rmtree(place, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "venv", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NotInstalled(_last_word(done.stdout + done.stderr))


def _install(python: Path, arguments: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = _last_word(done.stderr or done.stdout)
        raise NotInstalled(f"pip could not install {' '.join(arguments)}: {said}")


def _last_word(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1]


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """What is installed there of these distributions."""
    done = subprocess.run(
        [str(python), "-c", _VERSIONS, *names], capture_output=True, text=True, check=True
    )
    return {str(name): str(version) for name, version in json.loads(done.stdout).items()}
