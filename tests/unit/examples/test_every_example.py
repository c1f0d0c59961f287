"""What holds for every example function: a spec, a README that shows it, and that it survives a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.examples.loading import EXAMPLES, NEEDS, example_event, skip_without, spec_of

NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if (folder / "handler.py").exists())
ROOT = EXAMPLES.parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_is_valid_and_brings_an_example(name: str) -> None:
    spec = spec_of(name)

    assert spec.name == name
    assert example_event(spec)


@pytest.mark.parametrize("name", NAMES)
def test_requirements_are_pinned_and_declared(name: str) -> None:
    path = EXAMPLES / name / "requirements.txt"

    assert spec_of(name).requirements == (path.name if path.exists() else None)
    if path.exists():
        assert all("==" in line for line in path.read_text().splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_how_to_deploy_it(name: str) -> None:
    readme = (EXAMPLES / name / "README.md").read_text()

    assert f"faasd deploy functions/examples/{name}" in readme


@pytest.mark.parametrize("name", NAMES)
def test_the_runtime_that_it_names_is_described(name: str) -> None:
    runtime = spec_of(name).runtime

    described = tomllib.loads((ROOT / f"functions/images/{runtime}/runtime.toml").read_text())

    assert described["name"] == runtime
    assert set(described) == {"name", "description", "preload", "packages"}


def fork(name: str) -> dict[str, Any]:
    skip_without(name, NEEDS[name])
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs /proc/self/smaps_rollup")
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.examples.forked", name],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD, **spec_of(name).env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return report


@pytest.mark.torch
def test_embed_minilm_answers_from_a_fork_that_shares_the_weights() -> None:
    report = fork("embed-minilm")

    assert report["threads"] == 1
    assert len(report["answer"]["embedding"]) == 384
    assert report["private_mb"] < 30  # the weights are 90 MB


@pytest.mark.torch
def test_classify_image_answers_from_a_fork() -> None:
    report = fork("classify-image")

    assert report["threads"] == 1
    assert report["answer"]["classes"][0]["id"] == 920


def test_file_type_answers_from_a_fork_with_a_session_of_its_own() -> None:
    report = fork("file-type")

    assert report["threads"] == 1
    assert report["answer"]["label"] == "shell"


def test_digits_answers_from_a_fork() -> None:
    report = fork("digits")

    assert report["threads"] == 1
    assert report["answer"]["digit"] == report["answer"]["target"]
