"""docs/api.md, Authentication and namespaces: each of its promises once, on a real platform."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.auth import ROLES
from controller.http.app import Route
from controller.http.routes import ROUTES
from tests.conformance import conforms
from tests.platform import Answer, Api, Platform, eventually, refused

ECHO = "def handle(event, context):\n    return event\n"
PLACEHOLDERS = {"{endpoint}": "x", "{name}": "x", "{id}": "x", "{sha256}": "0" * 64}


class Caller(Api):
    """Somebody with a key of their own."""

    def __init__(self, platform: Platform, key: str) -> None:
        self.url = platform.url
        self.key = key


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform on loopback with a first key, which `platform` itself sends."""
    with Platform(tmp_path_factory.mktemp("platform")) as platform:
        platform.key = made(platform.post("/v1/keys", {"name": "first", "role": "admin"}))["key"]
        yield platform


def made(answer: Answer) -> Any:
    assert answer.status == 201, answer.body
    return conforms(answer.json(), "CreatedKey")


def caller(platform: Platform, role: str, namespace: str = "default") -> Caller:
    wanted = {"name": f"{role} of {namespace}", "role": role, "namespace": namespace}
    return Caller(platform, made(platform.post("/v1/keys", wanted))["key"])


def call(api: Api, route: Route, **headers: str) -> Answer:
    path = route.path
    for placeholder, value in PLACEHOLDERS.items():
        path = path.replace(placeholder, value)
    return api.request(route.method, path, headers=headers)


def lesser(role: str) -> str:
    return ROLES[ROLES.index(role) - 1]


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_without_any_key_every_caller_on_loopback_is_admin_of_every_namespace(
    tmp_path: Path,
) -> None:
    with Platform(tmp_path) as platform:
        platform.must_deploy("fn", ECHO)
        elsewhere = platform.get("/v1/functions", **{"Faasd-Namespace": "elsewhere"})

        assert platform.post("/invoke/fn", 1).json() == 1
        assert platform.get("/v1/keys").json() == {"keys": []}
        assert elsewhere.json() == {"functions": []}
        for header in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            refused(platform.post("/invoke/fn", 1, header), 403, "forbidden", "evil.example")

        platform.key = made(platform.post("/v1/keys", {"role": "admin"}))["key"]

        refused(Caller(platform, "").post("/invoke/fn", 1), 401, "unauthorized")
        assert platform.post("/invoke/fn", 1, {"Host": "faas.example"}).json() == 1


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role is not None], ids=named)
def test_once_there_is_a_key_every_call_needs_one(platform: Platform, route: Route) -> None:
    for headers in (
        {},
        {"Host": "faas.example"},
        {"Authorization": "Bearer fsd_wrong"},
        {"Authorization": "Basic x"},
    ):
        answer = call(Caller(platform, ""), route, **headers)

        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        if route.method != "HEAD":
            refused(answer, 401, "unauthorized")


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role is None], ids=named)
def test_what_is_open_to_anybody_needs_none(platform: Platform, route: Route) -> None:
    assert call(Caller(platform, ""), route).status == 200


@pytest.mark.parametrize("route", [r for r in ROUTES if r.role in ROLES[1:]], ids=named)
def test_a_lesser_role_is_forbidden(platform: Platform, route: Route) -> None:
    assert route.role is not None

    answer = call(caller(platform, lesser(route.role)), route)

    assert answer.status == 403
    if route.method != "HEAD":
        refused(answer, 403, "forbidden", route.role, lesser(route.role))


def test_each_role_may_do_what_the_ones_before_it_may(platform: Platform) -> None:
    admin, deployer, invoker = (caller(platform, role) for role in ("admin", "deploy", "invoke"))

    assert deployer.deploy("roles", ECHO).status == 201
    for one in (admin, deployer, invoker):
        assert one.post("/invoke/roles", 5).json() == 5
        assert one.get("/v1/functions/roles").status == 200
    assert admin.request("DELETE", "/v1/functions/roles").status == 204


def test_a_key_sees_only_its_own_namespace(platform: Platform) -> None:
    red, blue = (caller(platform, "deploy", namespace) for namespace in ("red", "blue"))
    red.must_deploy("shared-name", ECHO)
    identity = red.post("/invoke/shared-name?mode=async", "red").json()["id"]
    address = f"/v1/invocations/{identity}"
    assert eventually(lambda: red.get(address).json()["status"] == "succeeded")

    refused(blue.post("/invoke/shared-name", 1), 404, "function_not_found", "blue")
    refused(blue.get(address), 404, "not_found")
    refused(blue.get(f"{address}/result"), 404, "not_found")
    refused(blue.post(f"{address}/redrive"), 404, "not_found")
    assert blue.get("/v1/functions").json() == {"functions": []}
    assert blue.get("/v1/invocations").json() == {"invocations": []}
    assert [f["namespace"] for f in red.get("/v1/functions").json()["functions"]] == ["red"]
    assert [one["id"] for one in red.get("/v1/invocations").json()["invocations"]] == [identity]


def test_one_name_is_two_functions_in_two_namespaces(platform: Platform) -> None:
    for namespace in ("left", "right"):
        caller(platform, "deploy", namespace).must_deploy(
            "twin", f"def handle(event, context):\n    return '{namespace}'\n"
        )

    answers = {
        namespace: platform.post("/invoke/twin", 1, {"Faasd-Namespace": namespace}).body
        for namespace in ("left", "right")
    }

    assert answers == {"left": b"left", "right": b"right"}


def test_only_an_admin_key_may_name_another_namespace(platform: Platform) -> None:
    other = {"Faasd-Namespace": "other"}

    refused(caller(platform, "deploy").get("/v1/functions", **other), 403, "forbidden", "default")
    assert caller(platform, "admin").get("/v1/functions", **other).status == 200
    assert caller(platform, "invoke", "other").get("/v1/functions", **other).status == 200


def test_a_namespace_that_is_no_name_is_refused(platform: Platform) -> None:
    header = {"Faasd-Namespace": "No Name"}

    problem = refused(platform.get("/v1/functions", **header), 400, "bad_request", "No Name")

    assert "Faasd-Namespace" in problem["remedy"]


def test_a_secret_is_shown_once(platform: Platform) -> None:
    answer = platform.post("/v1/keys", {"name": "ci", "role": "deploy", "namespace": "red"})

    key = made(answer)
    listed = conforms(platform.get("/v1/keys").json(), "Keys")["keys"]
    assert key.pop("key").startswith("fsd_")
    assert key in [conforms(one, "Key") for one in listed]


def test_a_key_has_defaults(platform: Platform) -> None:
    key = made(platform.post("/v1/keys"))

    assert (key["role"], key["namespace"]) == ("invoke", "default")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"role": "root"}, "root"),
        ({"name": ""}, "name"),
        ({"name": 1}, "strings"),
        ({"namespace": "No Name"}, "No Name"),
        ({"scope": "all"}, "scope"),
        ([], "object"),
        (b"{", "not JSON"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_with_the_reason(
    platform: Platform, wanted: Any, words: str
) -> None:
    refused(platform.post("/v1/keys", wanted), 400, "bad_request", words)


def test_a_removed_key_is_refused_from_then_on(platform: Platform) -> None:
    key = made(platform.post("/v1/keys", {"role": "invoke"}))
    holder = Caller(platform, key["key"])
    before = holder.get("/v1/functions")

    removed = platform.request("DELETE", f"/v1/keys/{key['id']}")

    assert (before.status, removed.status, removed.body) == (200, 204, b"")
    refused(holder.get("/v1/functions"), 401, "unauthorized")
    refused(platform.request("DELETE", f"/v1/keys/{key['id']}"), 404, "not_found")


def test_keys_outlive_a_restart(tmp_path: Path) -> None:
    with Platform(tmp_path) as platform:
        key = made(platform.post("/v1/keys", {"role": "admin"}))["key"]

    with Platform(tmp_path) as platform:
        refused(platform.get("/v1/functions"), 401, "unauthorized")
        assert Caller(platform, key).get("/v1/functions").status == 200


def test_without_a_key_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "faasd", "up", "--host", "0.0.0.0", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )

    assert ended.returncode == 1
    assert "Refusing to listen beyond loopback without an API key." in ended.stderr
    assert "faasd keys bootstrap" in ended.stderr
    assert "controller.listening" not in ended.stderr
    assert "Traceback" not in ended.stderr
