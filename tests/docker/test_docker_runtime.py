"""Functions in Docker containers, end to end: everything a function may do, and what bounds it."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import PHASES, timings
from tests.docker.engine import DockerPlatform, docker, inspect
from tests.platform import Answer, Api, eventually, multipart, pack, refused

WHO = """
import os
def handle(event, context):
    return {"container": os.uname().nodename, "pid": os.getpid(), "uid": os.getuid()}
"""
VERSION = "def handle(event, context):\n    return {version}\n"


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, runtime_images: dict[str, str]
) -> Iterator[DockerPlatform]:
    del runtime_images
    # A folder that functions' users can be shown, whatever pytest makes of its own.
    with DockerPlatform(tmp_path_factory.mktemp("docker")) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A function's name of the test's own."""
    return "f" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


def sandbox_of(answer: Answer) -> dict[str, Any]:
    """The container that a function which said who it is ran in."""
    return inspect("container", answer.json()["container"])[0]


def is_there(container: str) -> bool:
    return bool(docker("container", "ls", "--all", "--quiet", f"--filter=id={container}").strip())


def function_report(platform: Api, name: str) -> dict[str, Any]:
    """What the worker has of it; of a function that has nothing there it says nothing."""
    (worker,) = platform.get("/v1/workers").json()["workers"]
    nothing = {"template": "absent", "starting": 0, "idle": 0, "busy": 0, "queued": 0}
    return next(
        (one for one in worker["functions"] if one["function"] == f"default/{name}"), nothing
    )


def test_a_function_echoes_bytes_and_json(platform: DockerPlatform, name: str) -> None:
    platform.must_deploy(name, "def handle(event, context):\n    return event\n")

    assert platform.post(f"/invoke/{name}", {"n": [1, None]}).json() == {"n": [1, None]}
    assert platform.post(f"/invoke/{name}", b"\0\xff" * 100_000).body == b"\0\xff" * 100_000


def test_a_generator_streams_its_items(platform: DockerPlatform, name: str) -> None:
    platform.must_deploy(
        name,
        "def handle(event, context):\n    for n in range(3):\n        yield {'n': n}\n",
    )

    answer = platform.post(f"/invoke/{name}", {})

    assert [json.loads(line) for line in answer.body.splitlines()] == [{"n": n} for n in range(3)]


def test_async_handlers_run_at_once_in_one_instance(platform: DockerPlatform, name: str) -> None:
    code = """
import asyncio, os
here, all_here = 0, asyncio.Event()
async def handle(event, context):
    global here
    here += 1
    if here == 4:
        all_here.set()
    await all_here.wait()
    return os.getpid()
"""
    platform.must_deploy(name, code, limits={"concurrency": 4, "max_instances": 1})

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: platform.post(f"/invoke/{name}", {}), range(4)))

    assert len({answer.json() for answer in answers}) == 1


def test_calls_are_batched(platform: DockerPlatform, name: str) -> None:
    code = "def handle(events, contexts):\n    return [len(events)] * len(events)\n"
    batching = {"max_size": 4, "max_wait_ms": 60_000}
    platform.must_deploy(name, code, batching=batching, limits={"max_instances": 1})

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda n: platform.post(f"/invoke/{name}", n), range(4)))

    assert [answer.json() for answer in answers] == [4] * 4


def test_an_artifact_is_there_to_be_read_and_not_to_be_written(
    platform: DockerPlatform, name: str
) -> None:
    code = """
def handle(event, context):
    path = context.artifacts["words"]
    try:
        open(path, "a")
    except OSError as error:
        return [open(path).read(), error.strerror]
"""
    deploy_with_artifact(platform, name, code, b"hello", runtime="python")

    assert platform.post(f"/invoke/{name}", {}).json() == ["hello", "Permission denied"]


def deploy_with_artifact(platform: Api, name: str, code: str, content: bytes, **spec: Any) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    assert platform.request("PUT", f"/v1/artifacts/{sha256}", content).status in (200, 201)
    known = {"name": name, "artifacts": {"words": "words.bin"}, **spec}
    form, content_type = multipart(
        spec=("application/json", json.dumps(known).encode()),
        code=("application/gzip", pack({"handler.py": code})),
        artifacts=("application/json", json.dumps({"words": sha256}).encode()),
    )
    headers = {"Content-Type": content_type}
    answer = platform.request("PUT", f"/v1/functions/{name}", form, headers)
    assert answer.status == 201, answer.body


def test_a_torch_model_runs_with_its_weights_mapped(
    platform: DockerPlatform, name: str, torch_image: str
) -> None:
    """The second sandbox maps the same file; the weights are nobody's own memory."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(1000, 1000)
    with torch.no_grad():
        model.weight.fill_(0.001)
        model.bias.fill_(1.0)
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    code = """
import os, torch
def load(context):
    model = torch.nn.Linear(1000, 1000)
    model.load_state_dict(context.load_weights("words"), assign=True)
    return model.eval()
def handle(event, context):
    with torch.inference_mode():
        told = context.state(torch.ones(1, 1000))
    return {"y": told[0, 0].item(), "threads": torch.get_num_threads(), "cpus": context.cpus}
"""
    deploy_with_artifact(
        platform, name, code, saved.getvalue(), runtime="python-torch", resources={"cpus": 2}
    )

    answer = platform.post(f"/invoke/{name}", {})

    assert answer.json()["y"] == pytest.approx(2.0, rel=1e-3)
    assert answer.json()["threads"] == 2
    runtimes = platform.get("/v1/workers").json()["workers"][0]["runtimes"]
    assert {one["name"]: one["state"] for one in runtimes}["python-torch"] == "ready"


def test_limits_hold_for_the_whole_sandbox(platform: DockerPlatform, name: str) -> None:
    """What the kernel was told is what the function asked for."""
    platform.must_deploy(
        name,
        WHO,
        resources={"memory_mb": 100, "cpus": 0.25, "pids": 40, "tmp_mb": 7},
        limits={"max_instances": 1},
    )
    answer = platform.post(f"/invoke/{name}", {})
    pid = sandbox_of(answer)["State"]["Pid"]

    # The template and one instance.
    told = {"memory": 2 * 100 << 20, "cpu": 0.25, "weight": 0.25, "pids": 40}
    assert limits_of(pid) == told


def test_a_functions_part_of_the_processors_is_that_of_its_instances(
    platform: DockerPlatform, name: str
) -> None:
    """Also once the engine has been told, which may convert it for the kernel in its own way."""
    code = """
import os, time
def handle(event, context):
    if event.get("ends"):
        os._exit(1)
    time.sleep(0.5)
    return {"container": os.uname().nodename}
"""
    platform.must_deploy(name, code, resources={"cpus": 3}, limits={"max_instances": 2})
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: platform.post(f"/invoke/{name}", {}), range(4)))
    sandbox = sandbox_of(answers[0])
    pid, host = sandbox["State"]["Pid"], sandbox["Id"]

    def told() -> bool:
        return bool(inspect("container", host)[0]["HostConfig"]["CpuShares"] == 6 * 1024)

    assert limits_of(pid)["weight"] == 6
    assert eventually(told)
    assert eventually(lambda: limits_of(pid)["weight"] == 6)

    refused(platform.post(f"/invoke/{name}", {"ends": True}), 502, "instance_died")
    assert eventually(lambda: limits_of(pid)["weight"] == 3)


def limits_of(pid: int) -> dict[str, float]:
    """Processor time and weight in cores."""
    root = Path("/sys/fs/cgroup")
    paths: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        paths |= {controller: path.lstrip("/") for controller in controllers.split(",")}
    if "memory" in paths:
        quota = int((root / "cpu" / paths["cpu"] / "cpu.cfs_quota_us").read_text())
        weight = int((root / "cpu" / paths["cpu"] / "cpu.shares").read_text()) / 1024
        memory = root / "memory" / paths["memory"] / "memory.limit_in_bytes"
        pids = root / "pids" / paths["pids"] / "pids.max"
    else:
        quota = int((root / paths[""] / "cpu.max").read_text().split()[0])
        weight = int((root / paths[""] / "cpu.weight").read_text()) / 100
        memory, pids = root / paths[""] / "memory.max", root / paths[""] / "pids.max"
    return {
        "memory": int(memory.read_text()),
        "cpu": quota / 100_000,
        "weight": weight,
        "pids": int(pids.read_text()),
    }


def test_a_share_of_a_core_is_all_that_a_function_gets(platform: DockerPlatform, name: str) -> None:
    """The kernel makes it wait: it was slowed down in mid-computation, and says so itself."""
    code = """
import time
def handle(event, context):
    begin, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.3:
        pass
    return (time.process_time() - cpu) / (time.monotonic() - begin)
"""
    platform.must_deploy(name, code, resources={"cpus": 0.2})

    assert platform.post(f"/invoke/{name}", {}).json() < 0.35


HOG = """
import mmap
def handle(event, context):
    chunk = bytes(1 << 20)
    if event.get("hog") == "memory":
        held = mmap.mmap(-1, 300 << 20)
        for _ in range(300):
            held.write(chunk)
    if event.get("hog") == "files":
        with open("/tmp/big", "wb") as out:
            for _ in range(300):
                out.write(chunk)
    return "fine"
"""


@pytest.mark.parametrize("what", ["memory", "files"])
def test_memory_beyond_the_limit_is_an_error_that_says_so(
    platform: DockerPlatform, name: str, what: str
) -> None:
    """Whatever fills it: what lies in /tmp is memory too, and is gone afterwards."""
    platform.must_deploy(name, HOG, resources={"memory_mb": 64})

    hogged = platform.post(f"/invoke/{name}", {"hog": what})

    problem = refused(hogged, 500, "out_of_memory", "memory_mb = 64")
    # The kernel's kill, or the worker's own measurement, whichever comes first.
    by_kernel = "limit 128 MB" in problem["detail"] and "peak 128 MB" in problem["detail"]
    assert what != "files" or by_kernel or "of its own memory" in problem["detail"]
    assert eventually(lambda: platform.post(f"/invoke/{name}", {}).body == b"fine")


def test_processes_are_counted_and_bounded(platform: DockerPlatform, name: str) -> None:
    code = """
import os, signal, time
def handle(event, context):
    born = []
    try:
        for _ in range(200):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            born.append(pid)
    except OSError as error:
        return [len(born), error.strerror]
    finally:
        for pid in born:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
"""
    platform.must_deploy(name, code, resources={"pids": 20}, limits={"max_instances": 1})

    started, why = platform.post(f"/invoke/{name}", {}).json()

    # Beside them: docker-init, sleep, the template, the instance.
    assert started <= 16
    assert why == "Resource temporarily unavailable"


def test_tmp_has_the_size_that_was_asked_for(platform: DockerPlatform, name: str) -> None:
    code = """
import os
def handle(event, context):
    seen = os.statvfs("/tmp")
    try:
        with open("/tmp/big", "wb") as out:
            for _ in range(event):
                out.write(bytes(1 << 20))
    except OSError as error:
        os.remove("/tmp/big")
        return [seen.f_blocks * seen.f_frsize >> 20, error.strerror]
    os.remove("/tmp/big")
    return "fits"
"""
    platform.must_deploy(name, code, resources={"tmp_mb": 9})

    assert platform.post(f"/invoke/{name}", 8).body == b"fits"
    assert platform.post(f"/invoke/{name}", 10).json() == [9, "No space left on device"]


def test_a_function_that_hangs_is_killed_and_its_template_serves_on(
    platform: DockerPlatform, name: str
) -> None:
    code = """
import os, time
def handle(event, context):
    if event.get("hang"):
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
    return {"container": os.uname().nodename, "pid": os.getpid()}
"""
    platform.must_deploy(name, code, limits={"timeout_s": 0.5, "max_instances": 1})
    before = platform.post(f"/invoke/{name}", {})

    late = platform.post(f"/invoke/{name}", {"hang": True})
    after = platform.post(f"/invoke/{name}", {})

    refused(late, 504, "function_timeout", "0.5")
    assert after.headers["faasd-start"] == "fork"
    assert after.json()["container"] == before.json()["container"]
    assert after.json()["pid"] != before.json()["pid"]


def test_a_caller_that_leaves_cancels_its_invocation(platform: DockerPlatform, name: str) -> None:
    """The handler is told to stop, and the instance is free for the next."""
    code = """
import time
def handle(event, context):
    if not event.get("wait"):
        return "free"
    print("started")
    try:
        time.sleep(600)
    except BaseException as error:
        print("stopped by", type(error).__name__)
        raise
"""
    platform.must_deploy(name, code, limits={"max_instances": 1})

    with platform.open_connection() as connection:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"/invoke/{name}", b'{"wait": true}', headers)
        assert eventually(lambda: printed(platform, name) == ["started"])

    assert eventually(lambda: len(printed(platform, name)) == 2)
    assert printed(platform, name)[1].startswith("stopped by")
    assert platform.post(f"/invoke/{name}", {}).body == b"free"


def printed(platform: Api, name: str) -> list[str]:
    return [line["line"] for line in platform.logs(name)]


def test_output_is_attributed_to_its_invocation(platform: DockerPlatform, name: str) -> None:
    code = """
import sys
def handle(event, context):
    print("told", event)
    print("warned", event, file=sys.stderr)
"""
    platform.must_deploy(name, code, limits={"max_instances": 2})

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda n: platform.post(f"/invoke/{name}", n), range(8)))

    wanted = {
        (answer.headers["faasd-request-id"], stream, f"{said} {number}")
        for number, answer in enumerate(answers)
        for stream, said in (("stdout", "told"), ("stderr", "warned"))
    }
    assert eventually(lambda: wanted <= attributed(platform, name)), attributed(platform, name)
    assert attributed(platform, name) == wanted


def attributed(platform: Api, name: str) -> set[tuple[str, str, str]]:
    return {(one["request_id"], one["stream"], one["line"]) for one in platform.logs(name)}


def test_a_minimum_of_instances_is_kept(platform: DockerPlatform, name: str) -> None:
    platform.must_deploy(name, WHO, scaling={"min_instances": 2, "keep_alive": 0})

    assert eventually(lambda: function_report(platform, name)["idle"] == 2)
    assert platform.post(f"/invoke/{name}", {}).headers["faasd-start"] == "warm"


def test_scaled_to_zero_the_container_is_gone_and_a_new_one_is_used(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    """What a sandbox was used for is never seen in another one."""
    del runtime_images
    code = """
import os, pathlib
def handle(event, context):
    left = os.listdir("/tmp")
    pathlib.Path("/tmp/secret").touch()
    return {"container": os.uname().nodename, "left": left}
"""
    with DockerPlatform(tmp_path, env={"FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S": "0"}) as platform:
        platform.must_deploy("zero", code, scaling={"keep_alive": 0.0})
        first = platform.post("/invoke/zero", {}).json()
        assert eventually(lambda: not is_there(first["container"]))
        assert eventually(lambda: not list((platform.data / "worker" / "sandboxes").iterdir()))

        second = platform.post("/invoke/zero", {}).json()

        assert first["left"] == second["left"] == []
        assert first["container"] != second["container"]
        markers = platform.data / "worker" / "zygotes"
        assert eventually(lambda: not list(markers.glob("*.used")))


def test_a_new_revision_takes_over_and_the_old_ones_container_goes(
    platform: DockerPlatform, name: str
) -> None:
    platform.must_deploy(name, WHO)
    old = platform.post(f"/invoke/{name}", {}).json()["container"]
    answers, stop = [], threading.Event()

    def call() -> None:
        while not stop.is_set():
            answers.append(platform.post(f"/invoke/{name}", {}))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        platform.must_deploy(name, VERSION.format(version=2))
        assert eventually(lambda: bool(answers) and answers[-1].body == b"2")
    finally:
        stop.set()
        caller.join(30)

    assert {answer.status for answer in answers} == {200}
    assert eventually(lambda: not is_there(old))


def test_starts_say_what_they_found_and_what_each_phase_cost(
    platform: DockerPlatform, name: str
) -> None:
    code = """
import time
def load(context):
    time.sleep(0.1)
def handle(event, context):
    time.sleep(0.05)
"""
    platform.must_deploy(name, code, scaling={"keep_alive": 0.0})
    assert eventually(lambda: function_report(platform, name)["idle"] == 0)

    fork = platform.post(f"/invoke/{name}", {})

    assert fork.headers["faasd-start"] == "fork"
    assert list(timings(fork)) == PHASES
    assert timings(fork)["sandbox"] > 0
    assert timings(fork)["load"] == 0
    assert timings(fork)["exec"] >= 50


def test_a_pooled_start_is_charged_its_load(tmp_path: Path, runtime_images: dict[str, str]) -> None:
    del runtime_images
    code = "import time\ndef load(context):\n    time.sleep(0.1)\ndef handle(event, context):\n    pass\n"
    env = {"FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S": "0"}
    with DockerPlatform(tmp_path, env=env) as platform:
        platform.must_deploy("cold", code, scaling={"keep_alive": 0.0})
        assert eventually(lambda: function_report(platform, "cold")["template"] == "absent")
        assert eventually(lambda: sandboxes(platform)["bare"] > 0)

        pooled = platform.post("/invoke/cold", {})

        assert pooled.headers["faasd-start"] == "pooled"
        assert timings(pooled)["load"] >= 100


def sandboxes(platform: DockerPlatform) -> dict[str, int]:
    """Bare and claimed containers, by the markers that the worker keeps of used ones."""
    used = len(list((platform.data / "worker" / "zygotes").glob("*.used")))
    found = [one for one in platform.left() if one.labels["faasd.role"] == "bare"]
    return {"bare": len(found) - used, "claimed": used}


def test_requirements_are_there_to_be_imported(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    del runtime_images
    links = tmp_path / "links"
    links.mkdir(mode=0o755)
    with zipfile.ZipFile(links / "tinyfish-1.0-py3-none-any.whl", "w") as wheel:
        info = "tinyfish-1.0.dist-info"
        wheel.writestr("tinyfish.py", "SAYS = 'blub'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyfish\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    files: dict[str, str | bytes] = {
        "handler.py": "import tinyfish\ndef handle(event, context):\n    return tinyfish.SAYS\n",
        "requirements.txt": "tinyfish==1.0\n",
    }
    with DockerPlatform(
        tmp_path, env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    ) as platform:
        platform.must_deploy("fish", files, requirements="requirements.txt")

        assert platform.post("/invoke/fish", {}).body == b"blub"


def test_a_function_has_no_network(platform: DockerPlatform, name: str) -> None:
    code = """
import os, socket
def handle(event, context):
    port = event["port"]
    tried = []
    for host in ("127.0.0.1", "172.17.0.1", "169.254.169.254", "192.0.2.1"):
        with socket.socket() as probe:
            probe.settimeout(5)
            try:
                probe.connect((host, port))
                tried.append("connected")
            except OSError as error:
                tried.append(error.strerror)
    return {"links": sorted(os.listdir("/sys/class/net")), "tried": tried}
"""
    platform.must_deploy(name, code)

    told = platform.post(f"/invoke/{name}", {"port": int(platform.url.rpartition(":")[2])}).json()

    assert told["links"] == ["lo"]
    assert told["tried"] == ["Connection refused", *["Network is unreachable"] * 3]


def test_namespaces_run_as_different_users(platform: DockerPlatform, name: str) -> None:
    platform.must_deploy(name, WHO)
    elsewhere = {"Faasd-Namespace": "other"}
    form, content_type = multipart(
        spec=("application/json", json.dumps({"name": name}).encode()),
        code=("application/gzip", pack({"handler.py": WHO})),
    )
    headers = {"Content-Type": content_type, **elsewhere}
    assert platform.request("PUT", f"/v1/functions/{name}", form, headers).status == 201

    one = platform.post(f"/invoke/{name}", {}).json()
    other = platform.post(f"/invoke/{name}", {}, elsewhere).json()

    assert one["container"] != other["container"]
    assert one["uid"] != other["uid"]
    assert min(one["uid"], other["uid"]) >= 1 << 20


def test_a_runtime_without_its_image_is_refused_at_deploy(
    tmp_path: Path, runtime_images: dict[str, str]
) -> None:
    """The author hears what is missing and what to do; the node serves its other runtimes."""
    del runtime_images
    with DockerPlatform(tmp_path, env={"FAASD_WORKER_DOCKER_IMAGE_TAG": "nowhere"}) as platform:
        answer = platform.deploy("lost", VERSION.format(version=1))

        problem = refused(answer, 422, "deploy_failed", "faasd-runtime-python:nowhere")
        assert "make images" in problem["remedy"]
        assert platform.get("/readyz").status == 200


def test_code_that_does_not_load_brings_its_traceback(platform: DockerPlatform, name: str) -> None:
    answer = platform.deploy(name, "print('looking')\nraise RuntimeError('not yet')\n")

    problem = refused(answer, 422, "deploy_failed", "RuntimeError: not yet")
    assert 'File "/faasd/code/handler.py", line 2' in problem["traceback"]
    assert problem["output"] == "looking"


def test_the_status_tells_of_every_runtime(platform: DockerPlatform) -> None:
    (worker,) = platform.get("/v1/workers").json()["workers"]
    runtimes = {one["name"]: one for one in worker["runtimes"]}

    assert runtimes["python"]["state"] == "ready"
    assert eventually(
        lambda: platform.get("/v1/workers").json()["workers"][0]["runtimes"][0]["memory_mb"] > 0
    )
