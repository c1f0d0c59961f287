"""Images that this project did not build: their Python, their servers, a Lambda image, and what fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import RUN, DockerPlatform, docker
from tests.platform import eventually, refused

PYTHON = f"{RUN}-own-python"
LAMBDA = f"{RUN}-own-lambda"
EMPTY = f"{RUN}-own-empty"

SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        print("got", len(body), "bytes", flush=True)
        self.send_response(201)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(body[::-1])
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
LAMBDA_HANDLER = """
import os
def handle(event, context):
    if "divide" in event:
        return 1 / event["divide"]
    return {"event": event, "id": context.aws_request_id, "left_ms": context.get_remaining_time_in_millis()}
"""


def build(tag: str, folder: Path, text: str) -> None:
    (folder / "Dockerfile").write_text(text)
    docker("build", "--quiet", "--tag", tag, str(folder), timeout_s=300)


@pytest.fixture(scope="module")
def python_image(
    runtime_images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An image with Python, a library of its own, a volume, a health check, and no msgpack."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "theirs.py").write_text('ANSWER = "from the image"\n')
    build(
        PYTHON,
        folder,
        f"FROM {runtime_images['python']}\n"
        "RUN python3 -m pip uninstall --yes msgpack\n"
        "COPY theirs.py /opt/theirs/theirs.py\nENV PYTHONPATH=/opt/theirs\n"
        "VOLUME /data\nHEALTHCHECK CMD true\n",
    )
    yield PYTHON
    docker("image", "rm", "--force", PYTHON)


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, runtime_images: dict[str, str]
) -> Iterator[DockerPlatform]:
    del runtime_images
    with DockerPlatform(tmp_path_factory.mktemp("docker")) as running:
        yield running


def test_the_python_of_an_image_runs_a_function_as_any_other(
    platform: DockerPlatform, python_image: str
) -> None:
    code = (
        "import os, sys\nsys.path.append('/opt/theirs')\nimport theirs\n"
        "def load(context):\n    return theirs.ANSWER\n"
        "def handle(event, context):\n    print('hello')\n"
        "    return {'state': context.state, 'event': event, 'uid': os.getuid()}\n"
    )
    platform.must_deploy("own", code, image=python_image)

    answer = platform.post("/invoke/own", {"a": 1})

    assert answer.status == 200
    assert answer.json()["state"] == "from the image"
    assert answer.json()["event"] == {"a": 1}
    assert answer.json()["uid"] > 100_000
    assert any(line["line"] == "hello" for line in platform.logs("own"))


def test_a_volume_that_an_image_wants_is_memory_with_a_limit(
    platform: DockerPlatform, python_image: str
) -> None:
    code = (
        "import os, shutil\ndef handle(event, context):\n"
        "    open('/data/file', 'w').close()\n    return shutil.disk_usage('/data').total\n"
    )
    platform.must_deploy("volume", code, image=python_image)

    assert platform.post("/invoke/volume", {}).json() == 64 << 20


def test_a_server_in_an_image_answers_what_it_likes(
    platform: DockerPlatform, python_image: str
) -> None:
    command = ["python3", "-c", SERVER]
    platform.must_deploy("web", {}, image=python_image, contract="http", command=command)

    answer = platform.request("POST", "/invoke/web", b"\x00abc", {"Content-Type": "x/y"})

    assert (answer.status, answer.body) == (201, b"cba\x00")
    assert answer.headers["content-type"] == "text/plain"
    # What a server prints may come after its reply.
    assert eventually(lambda: any("got 4 bytes" in one["line"] for one in platform.logs("web")))


def test_a_server_that_ends_at_once_is_refused_with_its_status_and_words(
    platform: DockerPlatform, python_image: str
) -> None:
    command = ["python3", "-c", "import sys; sys.exit('no model here')"]

    answer = platform.deploy("ends", {}, image=python_image, contract="http", command=command)

    problem = refused(answer, 422, "deploy_failed", "ended with status 1")
    assert "no model here" in str(problem)


def test_an_image_without_python_is_refused_with_what_to_use_instead(
    platform: DockerPlatform, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("nothing to run\n")
    build(EMPTY, tmp_path, 'FROM scratch\nCOPY file /file\nCMD ["/file"]\n')
    try:
        answer = platform.deploy("empty", "def handle(event, context): ...", image=EMPTY)
    finally:
        docker("image", "rm", "--force", EMPTY)

    assert "python3" in refused(answer, 422, "deploy_failed", "status 127")["remedy"]


def test_an_image_that_is_not_there_is_refused_by_name(platform: DockerPlatform) -> None:
    answer = platform.deploy("missing", "def handle(event, context): ...", image="no-such:image")

    refused(answer, 422, "deploy_failed", "no-such:image")


@pytest.fixture(scope="module")
def lambda_image(
    runtime_images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An image as for AWS Lambda: its entry point is the runtime interface client."""
    folder = tmp_path_factory.mktemp("lambda")
    (folder / "app.py").write_text(LAMBDA_HANDLER)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "task")]
    fetched = subprocess.run(
        [*install, "awslambdaric"], capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0:
        pytest.skip(f"awslambdaric could not be installed: {fetched.stderr[-300:]}")
    build(
        LAMBDA,
        folder,
        f"FROM {runtime_images['python']}\nCOPY task /var/task\nCOPY app.py /var/task/app.py\n"
        "WORKDIR /var/task\nENV PYTHONPATH=/var/task\n"
        'ENTRYPOINT ["python3", "-m", "awslambdaric"]\nCMD ["app.handle"]\n',
    )
    yield LAMBDA
    docker("image", "rm", "--force", LAMBDA)


def test_an_unmodified_lambda_image_is_served(platform: DockerPlatform, lambda_image: str) -> None:
    platform.must_deploy("lam", {}, image=lambda_image, contract="lambda")

    first, second = platform.post("/invoke/lam", {"n": 1}), platform.post("/invoke/lam", {"n": 2})
    failed = platform.post("/invoke/lam", {"divide": 0})

    assert [one.json()["event"] for one in (first, second)] == [{"n": 1}, {"n": 2}]
    assert first.json()["id"] == first.headers["faasd-request-id"]
    assert 0 < first.json()["left_ms"] <= 60_000
    problem = refused(failed, 500, "handler_error", "ZeroDivisionError")
    assert "app.py" in problem["traceback"]
