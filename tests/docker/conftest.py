"""Tests against a real Docker engine: skipped, with the reason, where none answers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker import engine as engines

IMAGES = {name: f"faasd-runtime-{name}:latest" for name in ("python", "python-torch")}
DAEMON_IMAGE = "faasd-daemon:latest"
_LONGEST_BUILD_S = 1800
_unreachable = pytest.StashKey[str]()
_unbuilt = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Look for the engine, and build images that are missing, before any test's time runs."""
    here = Path(__file__).parent
    if not any(item.path.is_relative_to(here) for item in session.items):
        return
    reason = session.config.stash[_unreachable] = engines.unreachable()
    if not reason and not session.config.option.collectonly:
        needed = (IMAGES["python"], DAEMON_IMAGE)
        built = all(engines.has_image(image) for image in needed)
        session.config.stash[_unbuilt] = "" if built else _make_images()


def _make_images() -> str:
    """What `make images` said when it failed; nothing when it did not."""
    ended = subprocess.run(
        ["make", "images"],
        cwd=engines.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LONGEST_BUILD_S,
        check=False,
    )
    return f"make images failed:\n{ended.stdout[-4000:]}" if ended.returncode else ""


@pytest.fixture(scope="session", autouse=True)
def engine(pytestconfig: pytest.Config) -> Iterator[None]:
    """An engine answers; in the end nothing of the tests' nodes is left on it."""
    reason = pytestconfig.stash[_unreachable]
    if reason:
        pytest.skip(reason)
    yield
    left = engines.left()
    engines.remove(left)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="session")
def runtime_images(engine: None, pytestconfig: pytest.Config) -> dict[str, str]:
    """The images of the runtimes, by the runtime's name; python-torch only where it was built."""
    if pytestconfig.stash[_unbuilt]:
        pytest.fail(pytestconfig.stash[_unbuilt], pytrace=False)
    return {name: image for name, image in IMAGES.items() if engines.has_image(image)}


@pytest.fixture(scope="session")
def torch_image(runtime_images: dict[str, str]) -> str:
    """The image of the runtime python-torch."""
    if "python-torch" not in runtime_images:
        pytest.skip("there is no image of python-torch: it was built with TORCH=")
    return runtime_images["python-torch"]


@pytest.fixture(scope="session")
def daemon_image(runtime_images: dict[str, str]) -> str:
    """The image of the controller and the workers, beside those of the runtimes."""
    return DAEMON_IMAGE
