"""Layers built in a runtime's image, on a real engine."""

import ast
import asyncio
import contextlib
import io
import os
import secrets
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from faasd.errors import DeployFailed, FaasdError
from worker.layers import Layers
from worker.sandboxes.docker.builder import ImageBuilder
from worker.sandboxes.docker.engine import Engine
from worker.service import no_progress

T = TypeVar("T")

NODE = f"layers-{secrets.token_hex(4)}"
LABELS = {"faasd.node": NODE, "faasd.home": "tests"}

# A source distribution that builds itself: its code runs with what a hostile package's would have.
BACKEND = """
import os, tempfile, zipfile

def tried(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return "done"

def build_wheel(folder, *_):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    found = {
        "uid": os.getuid(),
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": int(status["NoNewPrivs"]),
        "root": tried(lambda: open("/usr/evil", "w")),
        "links": tried(lambda: open("/links/0/evil", "w")),
        "secret": os.environ.get("FAASD_CLUSTER_SECRET"),
    }
    for name in ("PIP_CERT", "requirements.txt"):
        os.path.lexists("/build/" + name) and os.remove("/build/" + name)
        os.symlink("/victim", "/build/" + name)
    os.chmod(tempfile.mkdtemp(dir="/build"), 0)
    info = "tinyfish-1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(folder, "tinyfish-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("tinyfish.py", "FOUND = " + repr(found))
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tinyfish\\nVersion: 1.0")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any")
        wheel.writestr(info + "RECORD", "tinyfish.py,,\\n")
    return "tinyfish-1.0-py3-none-any.whl"
"""
INFO = "Metadata-Version: 2.1\nName: tinyfish\nVersion: 1.0\n"
BUILD_SYSTEM = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def image_of(runtime: str) -> str:
    return f"faasd-runtime-{runtime}:latest"


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    opened = Engine(timeout_s=30)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.aclose()


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    async def look() -> None:
        async with engine() as found:
            await found.image(image_of("python"))

    try:
        asyncio.run(look())
    except FaasdError as error:
        pytest.skip(error.detail)


@pytest.fixture(scope="module")
def _index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Packages can be had on this machine itself."""
    folder = str(tmp_path_factory.mktemp("index"))
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "humanize"]
    tried = subprocess.run(fetch, capture_output=True, text=True, check=False, timeout=120)
    if tried.returncode:
        pytest.skip(f"no package index can be reached: {tried.stderr[-200:]}")


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    yield

    async def containers() -> list[str]:
        async with engine() as found:
            return [one.name for one in await found.containers(LABELS)]

    assert list((tmp_path / "layers").glob(".*")) == []
    assert asyncio.run(containers()) == []


def with_layers(
    folder: Path,
    work: Callable[[Layers], Awaitable[T]],
    *,
    environment: dict[str, str] | None = None,
    timeout_s: float = 120.0,
    host_path: Callable[[Path], str] = str,
) -> T:
    async def run() -> T:
        async with engine() as found:
            builder = ImageBuilder(
                found,
                image=image_of,
                labels=lambda: LABELS,
                host_path=host_path,
                environment={**os.environ, "FAASD_CLUSTER_SECRET": "x", **(environment or {})},
            )
            layers = Layers(folder / "layers", timeout_s=timeout_s, builder=builder)
            layers.open()
            return await work(layers)

    return asyncio.run(run())


def build(
    folder: Path,
    requirements: str,
    *,
    runtime: str = "python",
    environment: dict[str, str] | None = None,
    timeout_s: float = 120.0,
    host_path: Callable[[Path], str] = str,
) -> Path:
    layer = with_layers(
        folder,
        lambda layers: layers.ensure(requirements, runtime, no_progress),
        environment=environment,
        timeout_s=timeout_s,
        host_path=host_path,
    )
    assert layer is not None
    return layer


def source_distribution(folder: Path) -> Path:
    """A folder to find it in."""
    folder.mkdir()
    files = {"PKG-INFO": INFO, "pyproject.toml": BUILD_SYSTEM, "backend.py": BACKEND}
    with tarfile.open(folder / "tinyfish-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tinyfish-1.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    folder.chmod(0o755)
    return folder


def no_packages(folder: Path) -> Path:
    folder.mkdir(mode=0o755)
    return folder


def offline(links: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}


def in_image(layer: Path, code: str) -> str:
    """What the code prints in a container of the runtime, as a user of no name."""

    async def run() -> str:
        async with engine() as found:
            name = f"faasd-{NODE}"
            config = {
                "Image": image_of("python"),
                "Entrypoint": ["python3", "-c", f"import sys; sys.path.append('/layer')\n{code}"],
                "User": "23456:23456",
                "Labels": LABELS,
                "HostConfig": {"Binds": [f"{layer}:/layer:ro"], "NetworkMode": "none"},
            }
            try:
                started = await found.run(name, config)
                await found.wait(started.id, 60)
                return (await found.output(started.id)).strip()
            finally:
                await found.remove(name)

    return asyncio.run(run())


def others_may_read_only(layer: Path) -> bool:
    wanted = {0o755, 0o644, 0o555, 0o444}
    files = [path for path in layer.rglob("*") if not path.is_symlink()]
    return {path.stat().st_mode & 0o7777 for path in [layer, *files]} <= wanted


@pytest.mark.usefixtures("_index")
def test_a_pure_package_is_installed_and_compiled_for_the_images_python(tmp_path: Path) -> None:
    layer = build(tmp_path, "humanize\n")

    seen = in_image(
        layer,
        "import humanize; print(humanize.intcomma(12345), humanize.__file__)\n"
        "import importlib.util, os\n"
        "print(os.path.exists(importlib.util.cache_from_source(humanize.__file__)))",
    )

    assert seen.split() == ["12,345", "/layer/humanize/__init__.py", "True"]
    assert others_may_read_only(layer)
    assert {path.lstat().st_uid for path in layer.rglob("*")} == {os.getuid()}


@pytest.mark.usefixtures("_index")
def test_a_package_with_compiled_code_runs_in_the_image(tmp_path: Path) -> None:
    layer = build(tmp_path, "regex\n")

    seen = in_image(layer, "import regex; print(regex.match(r'\\p{Lu}+', 'ABc')[0])")

    assert seen == "AB"
    assert list(layer.glob("regex/*.so"))


@pytest.mark.usefixtures("_index")
def test_another_version_of_a_package_of_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployFailed, match=r"asks for msgpack 1\.0\.8, but the runtime has"):
        build(tmp_path, "msgpack==1.0.8\n")


def test_a_package_that_the_image_has_needs_no_installing(tmp_path: Path) -> None:
    layer = build(tmp_path, "msgpack\n", environment=offline(no_packages(tmp_path / "links")))

    assert list(layer.iterdir()) == []


def test_a_failed_build_brings_its_log(tmp_path: Path) -> None:
    with pytest.raises(DeployFailed, match="No matching distribution found for tinyfish") as caught:
        build(tmp_path, "tinyfish==99\n", environment=offline(no_packages(tmp_path / "links")))

    assert "ERROR: Could not find a version" in (caught.value.traceback or "")


def test_wheels_that_the_engine_cannot_reach_are_named(tmp_path: Path) -> None:
    links = no_packages(tmp_path / "links")

    def host_path(path: Path) -> str:
        return str(tmp_path / "layers" / path.relative_to(tmp_path / "layers"))

    with pytest.raises(DeployFailed, match=f"PIP_FIND_LINKS names {links}"):
        build(tmp_path, "tinyfish\n", environment=offline(links), host_path=host_path)


def test_a_runtime_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployFailed, match=f"{image_of('nothing')} is not on"):
        build(tmp_path, "humanize\n", runtime="nothing")


def test_a_build_that_takes_too_long_is_ended_and_removed(tmp_path: Path) -> None:
    with pytest.raises(DeployFailed, match=r"took more than 0\.01 s"):
        build(
            tmp_path,
            "tinyfish\n",
            environment=offline(no_packages(tmp_path / "links")),
            timeout_s=0.01,
        )


def test_a_deploy_that_is_given_up_takes_its_build_along(tmp_path: Path) -> None:
    async def give_up(layers: Layers) -> None:
        began = asyncio.Event()

        def progress(_phase: str, _text: str) -> None:
            began.set()

        building = asyncio.ensure_future(layers.ensure("tinyfish\n", "python", progress))
        await began.wait()
        async with engine() as found:
            while not await found.containers(LABELS):
                await asyncio.sleep(0)
        building.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await building

    with_layers(tmp_path, give_up, environment=offline(no_packages(tmp_path / "links")))


def test_a_packages_own_code_is_confined_to_the_build(tmp_path: Path) -> None:
    links = source_distribution(tmp_path / "links")

    layer = build(tmp_path, "tinyfish\n", environment=offline(links))

    assert ast.literal_eval(in_image(layer, "import tinyfish; print(tinyfish.FOUND)")) == {
        "uid": os.getuid() or 65_533,
        "capabilities": 0,
        "no_new_privileges": 1,
        "root": "Read-only file system",
        "links": "Read-only file system",
        "secret": None,
    }
    assert [path.name for path in layer.glob("*.py")] == ["tinyfish.py"]
    assert not Path("/victim").exists()
    assert others_may_read_only(layer)
