import asyncio
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest

from faasd.errors import DeployFailed
from worker.layers import InterpreterBuilder, Layers, make_readable
from worker.sandbox import PipEnd
from worker.sandboxes.docker.builder import settings_for_build
from worker.service import no_progress

Step = Callable[[Path], None]


class Builder:
    """A runtime with msgpack 1.0 whose pip finds tinyfish 1.0 missing and then puts it there."""

    def __init__(
        self, *, resolved: Step | None = None, installed: Step | None = None, image: str = "a"
    ) -> None:
        self.image = image
        self.runs: list[list[str]] = []
        self._resolved = resolved or reports("tinyfish", "1.0")
        self._installed = installed or places_a_fish

    async def identity(self, runtime: str) -> str:
        return f"{runtime} {self.image}"

    async def installed(self, runtime: str) -> Mapping[str, str]:
        return {"msgpack": "1.0", "Ruamel.YAML": "0.18"}

    async def pip(
        self, runtime: str, arguments: Sequence[str], folder: Path, timeout_s: float
    ) -> PipEnd:
        self.runs.append([*arguments])
        await asyncio.sleep(0)
        (self._resolved if "--dry-run" in arguments else self._installed)(folder)
        return PipEnd(0, "")


def reports(name: str, version: str) -> Step:
    def resolved(folder: Path) -> None:
        item = {"metadata": {"name": name, "version": version}}
        (folder / "report.json").write_text(json.dumps({"install": [item]}))

    return resolved


def places_a_fish(folder: Path) -> None:
    (folder / "packages" / "tinyfish.py").write_text("")


def layers_of(
    folder: Path, builder: Builder | InterpreterBuilder | None, timeout_s: float = 60.0
) -> Layers:
    layers = Layers(folder / "layers", timeout_s=timeout_s, builder=builder)
    layers.open()
    return layers


def built(layers: Layers, requirements: str = "tinyfish") -> Path:
    layer = asyncio.run(layers.ensure(requirements, "python", no_progress))
    assert layer is not None
    return layer


def refused(layers: Layers, requirements: str = "tinyfish") -> DeployFailed:
    with pytest.raises(DeployFailed) as caught:
        built(layers, requirements)
    return caught.value


def left_over(folder: Path) -> list[str]:
    return [path.name for path in (folder / "layers").iterdir() if path.suffix != ".lock"]


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


def wheel(folder: Path, code: str = "def swim(): return 'splash'\n") -> Path:
    folder.mkdir(exist_ok=True)
    info = "tinyfish-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinyfish-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tinyfish.py", code)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyfish\nVersion: 1.0")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        archive.writestr(f"{info}/RECORD", "tinyfish.py,,\n")
    return folder


def test_a_layer_is_built_once_for_all_who_want_it_at_once(tmp_path: Path) -> None:
    builder = Builder()
    layers = layers_of(tmp_path, builder)

    async def run() -> set[Path | None]:
        asked = (layers.ensure("tinyfish  # blue", "python", no_progress) for _ in range(3))
        return set(await asyncio.gather(*asked))

    (layer,) = asyncio.run(run())
    assert layer is not None
    assert [path.name for path in layer.iterdir()] == ["tinyfish.py"]
    assert [run[-1] for run in builder.runs] == ["requirements.txt", "tinyfish==1.0"]
    assert left_over(tmp_path) == [layer.name]


def test_another_image_of_the_runtime_gets_a_layer_of_its_own(tmp_path: Path) -> None:
    builder = Builder()
    layers = layers_of(tmp_path, builder)

    first = built(layers)
    builder.image = "b"

    assert built(layers) != first


def test_nothing_is_built_for_a_list_without_packages(tmp_path: Path) -> None:
    builder = Builder()

    layer = asyncio.run(layers_of(tmp_path, builder).ensure("# none\n\n", "python", no_progress))

    assert layer is None
    assert builder.runs == []


@pytest.mark.parametrize("name", ["msgpack", "ruamel-yaml"])
def test_another_version_of_what_the_runtime_has_is_refused(tmp_path: Path, name: str) -> None:
    builder = Builder(resolved=reports(name, "9.9"))

    error = refused(layers_of(tmp_path, builder))

    assert f"asks for {name} 9.9, but the runtime has {name}" in error.detail
    assert len(builder.runs) == 1
    assert left_over(tmp_path) == []


def test_a_layer_can_be_read_by_all_and_written_by_nobody_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o600)

    def installed(folder: Path) -> None:
        inner = folder / "packages" / "fish" / "tail"
        inner.mkdir(parents=True)
        for name, bits in (("data", 0o620), ("tool", 0o4770), ("fixed", 0o400)):
            (inner / name).write_text("")
            (inner / name).chmod(bits)
        (inner / "link").symlink_to(outside)
        inner.chmod(0)
        inner.parent.chmod(0o777)

    layer = built(layers_of(tmp_path, Builder(installed=installed)))

    tail = layer / "fish" / "tail"
    assert [mode(path) for path in (layer, tail.parent, tail)] == [0o755] * 3
    assert {path.name: mode(path) for path in tail.iterdir() if not path.is_symlink()} == {
        "data": 0o644,
        "tool": 0o755,
        "fixed": 0o444,
    }
    assert mode(outside) == 0o600


def test_a_link_in_the_place_of_the_packages_is_no_layer(tmp_path: Path) -> None:
    def installed(folder: Path) -> None:
        (folder / "packages").rmdir()
        (folder / "packages").symlink_to(tmp_path)

    error = refused(layers_of(tmp_path, Builder(installed=installed)))

    assert "in the place of its folder" in error.detail
    assert left_over(tmp_path) == []


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _list(path: Path) -> None:
    path.write_text('["not a report"]')


@pytest.mark.parametrize("make", [_link, os.mkfifo, Path.mkdir, Path.touch, _list])
def test_a_report_that_pip_did_not_write_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    builder = Builder(resolved=lambda folder: make(folder / "report.json"))

    assert "report of pip" in refused(layers_of(tmp_path, builder)).detail


def test_what_was_left_half_built_goes_when_the_folder_is_opened(tmp_path: Path) -> None:
    half = tmp_path / "layers" / ".building-1"
    (half / "packages").mkdir(parents=True)
    (half / "packages").chmod(0)

    layers_of(tmp_path, Builder())

    assert left_over(tmp_path) == []


def test_pip_that_was_killed_says_so(tmp_path: Path) -> None:
    class Killed(Builder):
        async def pip(
            self, runtime: str, arguments: Sequence[str], folder: Path, timeout_s: float
        ) -> PipEnd:
            return PipEnd(137, "Collecting tinyfish\n")

    error = refused(layers_of(tmp_path, Killed()))

    assert "memory" in error.detail
    assert error.traceback == "Collecting tinyfish\n"


def test_the_workers_own_interpreter_builds_a_layer_that_it_can_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel(tmp_path / "wheels")))

    layer = built(layers_of(tmp_path, InterpreterBuilder()), "tinyfish==1.0")

    compiled = layer / "__pycache__" / f"tinyfish.{sys.implementation.cache_tag}.pyc"
    assert (layer / "tinyfish.py").exists()
    assert compiled.exists()
    assert left_over(tmp_path) == [layer.name]


def test_the_log_of_a_failed_build_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")

    error = refused(layers_of(tmp_path, InterpreterBuilder()), "no-such-fish")

    assert "No matching distribution found for no-such-fish" in error.detail
    assert "ERROR" in (error.traceback or "")
    assert left_over(tmp_path) == []


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    error = refused(layers_of(tmp_path, InterpreterBuilder(), timeout_s=0.01))

    assert "more than 0.01 s" in error.detail
    assert left_over(tmp_path) == []


def test_the_workers_own_packages_are_those_it_imports() -> None:
    installed = asyncio.run(InterpreterBuilder().installed("python"))

    assert installed["msgpack"] == metadata.version("msgpack")


def test_a_file_of_another_owner_is_left_alone_where_its_mode_is_right(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.write_text("")
    shared.chmod(0o444)
    before = shared.stat().st_ctime_ns

    make_readable(tmp_path)

    assert shared.stat().st_ctime_ns == before


def test_settings_of_pip_hold_in_a_container(tmp_path: Path) -> None:
    build, wheels = tmp_path / "build", tmp_path / "wheels"
    build.mkdir()
    wheels.mkdir()
    (tmp_path / "ca.pem").write_text("a certificate")
    environment = {
        "PIP_INDEX_URL": "http://index.invalid/simple",
        "https_proxy": "http://proxy.invalid",
        "PIP_CERT": str(tmp_path / "ca.pem"),
        "SSL_CERT_FILE": "/nowhere/ca.pem",
        "PIP_FIND_LINKS": f"http://links.invalid {wheels}",
        "PIP_TARGET": "/somewhere",
        "FAASD_CLUSTER_SECRET": "secret",
    }

    values, links = settings_for_build(environment, build)

    assert values == {
        "PIP_INDEX_URL": "http://index.invalid/simple",
        "https_proxy": "http://proxy.invalid",
        "PIP_CERT": "/build/PIP_CERT",
        "SSL_CERT_FILE": "/nowhere/ca.pem",
        "PIP_FIND_LINKS": "http://links.invalid /links/0",
    }
    assert links == [wheels]
    assert (build / "PIP_CERT").read_text() == "a certificate"


def test_a_certificate_is_not_copied_through_a_link_that_a_build_left(tmp_path: Path) -> None:
    build, victim = tmp_path / "build", tmp_path / "victim"
    build.mkdir()
    (tmp_path / "ca.pem").write_text("a certificate")
    (build / "PIP_CERT").symlink_to(victim)

    settings_for_build({"PIP_CERT": str(tmp_path / "ca.pem")}, build)

    assert not victim.exists()
