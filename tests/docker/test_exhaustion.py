"""What a hostile function uses up, breaks or leaves behind: it is bounded, and things heal."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import DockerPlatform, docker
from tests.docker.tenant import HOSTILE, Tenant
from tests.platform import Answer, eventually, refused

MEMORY_MB, TMP_MB, PIDS = 128, 16, 48
INOTIFY_USER_LIMITS = Path("/proc/sys/fs/inotify")


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, runtime_images: dict[str, str]
) -> Iterator[DockerPlatform]:
    del runtime_images
    with DockerPlatform(tmp_path_factory.mktemp("exhaustion")) as started:
        yield started


@pytest.fixture(scope="module")
def bystander(platform: DockerPlatform) -> Tenant:
    """Another namespace's function of the same runtime."""
    tenant = Tenant(platform.url, "bystander")
    tenant.must_deploy_hostile("mallory")
    return tenant


@pytest.fixture
def mallory(platform: DockerPlatform, bystander: Tenant) -> Iterator[Tenant]:
    """A hostile function in a sandbox of this test's own."""
    tenant = Tenant(platform.url, f"m-{secrets.token_hex(4)}")
    tenant.must_deploy_hostile("mallory", env={"RUN": tenant.namespace})
    yield tenant
    assert bystander.attack("nothing") == "still here"
    assert tenant.request("DELETE", "/v1/functions/mallory").status in (200, 204)


def used(platform: DockerPlatform) -> set[str]:
    """The containers that hold a function's template."""
    return {path.stem for path in (platform.data / "worker" / "zygotes").glob("*.used")}


def is_there(container: str) -> bool:
    return bool(docker("container", "ls", "--all", "--quiet", f"--filter=id={container}").strip())


def answers(tenant: Tenant) -> bool:
    return tenant.attempt("nothing").status == 200


def out_of_memory(answer: Answer, *words: str) -> None:
    refused(answer, 500, "out_of_memory", f"memory_mb = {MEMORY_MB}", *words)


def test_private_memory_ends_at_the_limit_and_the_instance_goes_on(mallory: Tenant) -> None:
    before = mallory.attack("who")["pid"]

    out_of_memory(mallory.attempt("allocates", 4 * MEMORY_MB))

    assert mallory.attack("who")["pid"] == before


def test_shared_memory_ends_at_the_limit(mallory: Tenant) -> None:
    template = mallory.attack("who")["template"]

    answer = mallory.attempt("allocates_shared", 4 * MEMORY_MB)

    out_of_memory(answer)
    assert eventually(lambda: answers(mallory))
    assert mallory.attack("who")["template"] == template


def test_memory_of_nameless_files_ends_at_the_sandboxs_limit_which_is_named(
    mallory: Tenant,
) -> None:
    answer = mallory.attempt("allocates_file", 4 * MEMORY_MB)

    out_of_memory(answer, f"limit {2 * MEMORY_MB} MB", "peak ")

    assert eventually(lambda: answers(mallory))


def test_tmp_takes_what_it_may_and_no_more(mallory: Tenant) -> None:
    filled = mallory.attack("fills", "/tmp/full", 4 * TMP_MB)

    assert filled == {"error": "ENOSPC", "mb": TMP_MB}
    assert mallory.attack("removes", "/tmp/full") == "done"
    assert mallory.attack("fills", "/tmp/full", 1)["error"] is None


def test_tmp_holds_a_bounded_number_of_files(mallory: Tenant) -> None:
    made = mallory.attack("makes_empty_files", "/tmp/many", 1_000_000)

    assert made["error"] == "ENOSPC"
    assert made["files"] < TMP_MB * 256
    assert mallory.attack("nothing") == "still here"


def test_a_sandbox_full_of_leftovers_is_replaced(platform: DockerPlatform) -> None:
    """/tmp counts as memory: when it holds most of it, no instance could do anything."""
    tenant = Tenant(platform.url, "full")
    resources = {"memory_mb": 32, "tmp_mb": 512, "pids": PIDS}
    tenant.must_deploy_hostile("mallory", resources=resources)

    answer = tenant.attempt("fills", "/tmp/full", 512)

    refused(answer, 500, "out_of_memory", "limit 64 MB", "memory_mb = 32", "peak ")

    assert eventually(lambda: answers(tenant))
    assert eventually(lambda: tenant.attack("reads", "/tmp/full") == {"/tmp/full": "ENOENT"})
    tenant.request("DELETE", "/v1/functions/mallory")


def test_what_is_printed_without_end_is_dropped_and_said(mallory: Tenant) -> None:
    assert mallory.attack("prints", 64) == "done"

    def dropped() -> list[str]:
        lines = [entry["line"] for entry in mallory.logs("mallory", tail=5000)]
        return [line for line in lines if line.startswith("[faasd dropped")]

    assert eventually(dropped)
    kept = sum(len(entry["line"]) for entry in mallory.logs("mallory", tail=5000))
    assert kept < 2 << 20


def test_descriptors_run_out_for_the_function_alone(mallory: Tenant, bystander: Tenant) -> None:
    out = mallory.attack("opens_files", 10_000_000)

    assert out["error"] in ("EMFILE", "ENFILE")
    assert bystander.attack("opens_files", 100)["error"] is None
    assert eventually(lambda: answers(mallory))


def test_inotify_runs_out_for_its_own_namespace_alone(mallory: Tenant, bystander: Tenant) -> None:
    instances = int((INOTIFY_USER_LIMITS / "max_user_instances").read_text())

    out = mallory.attack("inotifies", instances + 1)

    assert out["error"] == "EMFILE"
    assert bystander.attack("inotifies", 2)["error"] is None
    assert bystander.attack("watches", 10)["error"] is None


def test_a_fork_bomb_stops_at_the_limit_and_is_cleared_away(mallory: Tenant) -> None:
    mallory.attack("forks_in_background")
    assert eventually(lambda: len(mallory.attack("processes")) >= PIDS - 1)

    mallory.attempt("ends", 3)

    assert eventually(lambda: answers(mallory))
    assert eventually(lambda: len(mallory.attack("processes")) == 4)


def test_a_daemon_ends_with_the_instance_that_left_it(mallory: Tenant) -> None:
    daemon = mallory.attack("leaves_daemon")
    assert mallory.attack("exists", daemon)

    mallory.attempt("ends", 3)

    assert eventually(lambda: not mallory.attack("exists", daemon))
    assert len(mallory.attack("processes")) == 4


def test_nothing_of_a_removed_function_runs_on(platform: DockerPlatform, bystander: Tenant) -> None:
    assert answers(bystander)
    before = used(platform)
    tenant = Tenant(platform.url, "leaving")
    tenant.must_deploy_hostile("mallory")
    tenant.attack("leaves_daemon")
    tenant.attack("forks_in_background")
    (container,) = used(platform) - before

    assert tenant.request("DELETE", "/v1/functions/mallory").status in (200, 204)

    assert eventually(lambda: not is_there(container))


def test_a_process_that_load_started_is_no_leftover(mallory: Tenant) -> None:
    mallory.must_deploy_hostile("helped", env={"AT_LOAD": "leaves_daemon"})
    first = mallory.attack("who", function="helped")

    mallory.attempt("ends", 3, function="helped")
    assert eventually(lambda: mallory.attempt("nothing", function="helped").status == 200)

    second = mallory.attack("who", function="helped")
    assert second["pid"] != first["pid"]
    assert second["template"] == first["template"]
    assert len(mallory.attack("processes", function="helped")) == 5


def test_killing_everything_in_reach_ends_the_sandbox_which_is_replaced(mallory: Tenant) -> None:
    answer = mallory.attempt("kills_all")

    assert answer.status == 502, answer.body
    assert eventually(lambda: answers(mallory))


def test_a_stopped_template_stops_nobody_else(mallory: Tenant, bystander: Tenant) -> None:
    who = mallory.attack("who")
    assert mallory.attack("sends_signal", who["template"], 19) == "done"

    assert mallory.attack("nothing") == "still here"
    assert bystander.attack("nothing") == "still here"


def test_garbage_on_the_data_socket_ends_that_instance_alone(mallory: Tenant) -> None:
    template = mallory.attack("who")["template"]

    for garbage in (
        "\x00\x00\x00\x04nope",
        "\xff\xff\xff\xff",
        "\x00\x00\x00\x00",
        "GET / HTTP/1.1",
    ):
        answer = mallory.attempt("writes_to_sockets", garbage)
        assert answer.status == 502, answer.body
        assert eventually(lambda: answers(mallory))

    assert mallory.attack("who")["template"] == template


def test_a_frame_larger_than_the_functions_memory_is_not_taken_in(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    assert platform.process is not None
    status = Path(f"/proc/{platform.process.pid}/status")

    answer = mallory.attempt("writes_endlessly")

    assert answer.status == 502, answer.body
    (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    assert int(peak.split()[1]) < 512 << 10
    assert eventually(lambda: answers(mallory))


def test_descriptors_sent_to_the_worker_are_not_taken(
    mallory: Tenant, platform: DockerPlatform
) -> None:
    assert platform.process is not None
    worker = Path(f"/proc/{platform.process.pid}/fd")
    before = len(list(worker.iterdir()))

    mallory.attempt("sends_descriptors", 200)

    assert eventually(lambda: answers(mallory))
    assert eventually(lambda: len(list(worker.iterdir())) < before + 20)


def test_a_socket_that_would_not_be_closed_holds_up_nobody(
    mallory: Tenant, bystander: Tenant
) -> None:
    mallory.attempt("sends_lingering", 1000)

    assert bystander.attack("nothing") == "still here"
    assert eventually(lambda: answers(mallory))


def test_garbage_on_the_templates_socket_ends_that_template_alone(
    platform: DockerPlatform, bystander: Tenant
) -> None:
    tenant = Tenant(platform.url, "garbage")
    for hook in ("says_garbage", "says_descriptors"):
        given = {"env": {"AT_LOAD": hook}, "limits": {"max_instances": 1}}
        answer = tenant.deploy("mallory", HOSTILE, **given)

        refused(answer, 422, "deploy_failed")
        assert bystander.attack("nothing") == "still here"


def test_a_template_that_claims_other_processes_harms_none(
    platform: DockerPlatform, bystander: Tenant
) -> None:
    tenant = Tenant(platform.url, "liar")
    before = bystander.attack("who")

    tenant.deploy("mallory", HOSTILE, env={"AT_LOAD": "claims_strangers"})

    assert bystander.attack("who") == before
    assert platform.get("/readyz").status == 200
