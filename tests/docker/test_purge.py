"""`faasd worker --purge`: everything of one node goes, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docker.engine import DockerPlatform

ECHO = "def handle(event, context):\n    return event\n"


def purge(platform: DockerPlatform) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faasd", "worker", "--purge", "--id", platform.node]
    return subprocess.run(
        [*command, "--data", str(platform.data / "worker")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_what_a_killed_node_left_is_removed_and_another_node_is_untouched(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    del runtime_images
    folders = [tmp_path / name for name in ("kept", "killed")]
    for folder in folders:
        folder.mkdir()
    with DockerPlatform(folders[0]) as kept, DockerPlatform(folders[1]) as killed:
        for platform in (kept, killed):
            platform.must_deploy("echo", ECHO)
        killed.must_deploy("outside", ECHO, network="internet")
        before = {thing.id for thing in kept.left()}
        killed.daemon.kill()
        assert {thing.kind for thing in killed.left()} == {"container", "network"}

        done = purge(killed)

        assert done.returncode == 0, done.stderr
        assert killed.left() == []
        assert "and 1 network of" in done.stderr
        assert before <= {thing.id for thing in kept.left()}
        assert kept.post("/invoke/echo", {"a": 1}).json() == {"a": 1}


def test_a_node_whose_worker_runs_is_not_purged(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    del runtime_images
    with DockerPlatform(tmp_path) as platform:
        refusal = purge(platform)

        assert refusal.returncode == 1
        assert "Another worker uses the folder" in refusal.stderr
        assert platform.left() != []
