"""Settings: where a value comes from, and the sentence for one that is not accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings

from faasd.errors import BadRequest
from faasd.policies.routing.routers import ROUTERS
from faasd.settings import ControllerSettings, WorkerSettings, build, is_loopback

BOTH = [ControllerSettings, WorkerSettings]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls, prefix in ((ControllerSettings, "FAASD_"), (WorkerSettings, "FAASD_WORKER_")):
        for name in cls.model_fields:
            monkeypatch.delenv(prefix + name.upper(), raising=False)


def refusal(cls: type[BaseSettings], **flags: Any) -> str:
    with pytest.raises(BadRequest) as refused:
        build(cls, **flags)
    return refused.value.detail


def test_the_defaults_listen_on_loopback_only() -> None:
    settings = build(ControllerSettings)

    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.cluster_port is None


def test_the_environment_changes_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAASD_PORT", "9000")
    monkeypatch.setenv("FAASD_WORKER_SLOTS", "3")

    assert build(ControllerSettings).port == 9000
    assert build(WorkerSettings).slots == 3


def test_a_flag_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAASD_PORT", "9000")

    assert build(ControllerSettings, port=9001).port == 9001


def test_a_flag_that_was_not_given_leaves_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAASD_PORT", "9000")

    assert build(ControllerSettings, port=None).port == 9000


def test_other_variables_of_the_environment_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAASD_NONSENSE", "1")

    assert build(ControllerSettings).port == 8080


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"port": 65_536}, "port: "),
        ({"port": "eighty"}, "port: "),
        ({"heartbeat_timeout_s": 0}, "heartbeat_timeout_s: "),
        ({"async_concurrency": 0}, "async_concurrency: "),
        ({"cluster_port": -1, "cluster_secret": "x" * 16}, "cluster_port: "),
    ],
)
def test_a_bad_value_of_the_controller_is_named(flags: dict[str, Any], said: str) -> None:
    assert said in refusal(ControllerSettings, **flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"runtime": "podman"}, "runtime: "),
        ({"slots": 0}, "slots: "),
        ({"memory_budget_mb": 0}, "memory_budget_mb: "),
        ({"log_lines": 0}, "log_lines: "),
        ({"template_keep_alive_s": -1}, "template_keep_alive_s: "),
    ],
)
def test_a_bad_value_of_the_worker_is_named(flags: dict[str, Any], said: str) -> None:
    assert said in refusal(WorkerSettings, **flags)


def test_every_bad_value_gets_a_sentence() -> None:
    said = refusal(ControllerSettings, port=-1, async_concurrency=0)

    assert "port: " in said
    assert "async_concurrency: " in said


def test_a_bad_value_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAASD_PORT", "eighty")

    assert refusal(ControllerSettings).startswith("port: ")


@pytest.mark.parametrize("secret", [None, "", "fifteen letters"])
def test_workers_cannot_join_without_a_secret_worth_the_name(secret: str | None) -> None:
    said = refusal(ControllerSettings, cluster_port=8081, cluster_secret=secret)

    assert "cluster_port needs cluster_secret (FAASD_CLUSTER_SECRET)" in said


def test_a_secret_never_shows() -> None:
    settings = build(ControllerSettings, cluster_port=8081, cluster_secret="s" * 16)

    assert "s" * 16 not in repr(settings)


@pytest.mark.parametrize("cls", BOTH)
def test_settings_are_not_changed_once_built(cls: type[BaseSettings]) -> None:
    settings = build(cls)

    with pytest.raises(ValueError, match="frozen"):
        settings.data = Path("elsewhere")  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", BOTH)
def test_every_setting_says_what_it_does(cls: type[BaseSettings]) -> None:
    silent = [name for name, field in cls.model_fields.items() if not field.description]

    assert silent == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("::1234", False),
        ("localhost.example.com", False),
        ("127.example.com", False),
    ],
)
def test_loopback_is_told_from_the_rest_of_the_world(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_routing_policy_that_there_is_not_is_refused_with_the_names_of_those_there_are() -> None:
    told = refusal(ControllerSettings, routing="fastest")

    assert all(name in told for name in ("routing", *ROUTERS))


@pytest.mark.parametrize(
    ("one", "several", "addresses"),
    [
        (None, None, ["127.0.0.1:8081"]),
        ("a:1", None, ["a:1"]),
        (None, "a:1", ["a:1"]),
        ("a:1", "b:1, c:2,b:1,", ["b:1", "c:2"]),
        ("a:1", " , ", ["a:1"]),
    ],
)
def test_a_worker_has_one_controller_or_several(
    monkeypatch: pytest.MonkeyPatch, one: str | None, several: str | None, addresses: list[str]
) -> None:
    for name, value in (("CONTROLLER", one), ("CONTROLLERS", several)):
        if value is not None:
            monkeypatch.setenv(f"FAASD_WORKER_{name}", value)

    assert build(WorkerSettings).addresses == addresses


def test_controllers_of_the_command_line_beat_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAASD_WORKER_CONTROLLER", "a:1")
    monkeypatch.setenv("FAASD_WORKER_CONTROLLERS", "b:1,c:1")

    assert build(WorkerSettings, controllers="d:1,e:1").addresses == ["d:1", "e:1"]
