"""Where a node lives on its machine, and what it marks its containers with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.loops import in_loop
from worker.sandboxes.docker import home as homes
from worker.sandboxes.docker.engine import Container, Engine, Mount
from worker.sandboxes.docker.home import Home, copy_runtime, find_home

OWN = "f" * 64


class EngineOfOne(Engine):
    """Knows one container: the one that the worker runs in."""

    def __init__(self, *mounts: Mount) -> None:
        super().__init__(timeout_s=1)
        self._known = Container(
            id=OWN, name="worker", image="sha256:1", labels={}, running=True, mounts=mounts
        )

    async def inspect(self, identity: str) -> Container | None:
        return self._known if identity == OWN else None


@pytest.fixture
def _in_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_own_container", lambda: OWN)


@pytest.fixture
def _on_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_own_container", lambda: None)


@pytest.mark.usefixtures("_on_machine")
@in_loop
async def test_on_the_machine_itself_paths_are_what_they_are() -> None:
    home = await find_home("n1", Path("/var/faasd"), EngineOfOne())

    assert home.host_path(Path("/var/faasd/revisions/x")) == "/var/faasd/revisions/x"


@pytest.mark.usefixtures("_in_container")
@in_loop
async def test_in_a_container_paths_are_told_as_the_machine_has_them() -> None:
    """The closest mount above the data folder says where it lies."""
    engine = EngineOfOne(
        Mount("/srv/all", "/data"),
        Mount("/srv/volumes/one", "/data/worker"),
        Mount("/srv/else", "/data/worker/deeper"),
    )

    home = await find_home("n1", Path("/data/worker/w1"), engine)

    assert home.host_path(Path("/data/worker/w1/zygotes")) == "/srv/volumes/one/w1/zygotes"


@pytest.mark.usefixtures("_in_container")
@in_loop
async def test_a_mount_of_a_similar_name_is_none_above() -> None:
    home = await find_home("n1", Path("/data/worker"), EngineOfOne(Mount("/srv", "/data/work")))

    assert home.host_path(Path("/data/worker/x")) == "/data/worker/x"


@pytest.mark.usefixtures("_in_container")
@in_loop
async def test_in_a_container_a_path_outside_the_mount_has_no_place_on_the_machine() -> None:
    home = await find_home("n1", Path("/data"), EngineOfOne(Mount("/srv", "/data")))

    with pytest.raises(ValueError, match="subpath"):
        home.host_path(Path("/etc/passwd"))


def home_at(source: str, folder: str = "/data") -> Home:
    return Home("n1", Path(folder), Path("/data"), source)


def test_every_data_folder_has_an_identity_that_lasts() -> None:
    """Two workers in containers have their data at one path inside, and not on the machine."""
    assert home_at("/srv/one").identity == home_at("/srv/one").identity
    assert home_at("/srv/one").identity != home_at("/srv/two").identity
    assert home_at("/srv/one").identity != home_at("/srv/one", "/data/w2").identity
    assert home_at("/srv/one", "/data/w2").identity == Home("n2", Path("/srv/one/w2")).identity


def test_labels_say_whose_and_what_for() -> None:
    home = home_at("/srv/one")

    assert home.labels("bare", runtime="python") == {
        "faasd.node": "n1",
        "faasd.home": home.identity,
        "faasd.role": "bare",
        "faasd.runtime": "python",
    }


def test_the_copied_runtime_runs_without_anything_else(tmp_path: Path) -> None:
    """Any image's Python takes it: msgpack comes along, without its compiled part."""
    place = copy_runtime(tmp_path)

    check = (
        f"import sys; sys.path[:0] = [{str(place / 'packages')!r}]\n"
        "import msgpack; print(msgpack.__file__, msgpack.unpackb(msgpack.packb([1, b'x'])))"
    )
    command = [sys.executable, "-I", "-S", "-c", check]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)

    assert ran.stdout.split(maxsplit=1) == [
        str(place / "packages" / "msgpack" / "__init__.py"),
        "[1, b'x']\n",
    ]
    assert list(place.rglob("*.so")) == []
    assert {path.stat().st_mode & 0o777 for path in place.rglob("*")} == {0o755, 0o644}
    assert place.stat().st_mode & 0o777 == 0o755


def test_the_runtime_is_copied_once_and_a_former_one_replaced(tmp_path: Path) -> None:
    (tmp_path / "runtime-000000000000").mkdir()

    first = copy_runtime(tmp_path)
    marker = first / "marker"
    marker.touch()

    assert copy_runtime(tmp_path) == first
    assert marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_what_a_killed_worker_left_half_copied_is_no_runtime(tmp_path: Path) -> None:
    (tmp_path / ".runtime-0123456789ab").mkdir()

    place = copy_runtime(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [place.name]
