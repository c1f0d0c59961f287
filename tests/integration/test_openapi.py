"""The served document holds: it validates, and what is generated from it meets no surprise."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from controller.http.openapi import document
from controller.http.operations import OPERATIONS
from controller.http.routes import ROUTES
from tests.platform import Platform, eventually

CONFIG = SchemathesisConfig.from_dict(
    {
        "seed": 20,
        "generation": {
            "deterministic": True,
            "database": "none",
            # Headers that nobody described are the function's to read.
            "allow-extra-parameters": False,
        },
        # What is followed has no end.
        "parameters": {"path.endpoint": "echo", "query.follow": "0"},
        # A deadline of a nanosecond has passed when it arrives.
        "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "504"]}},
    }
)
schema = schemathesis.openapi.from_dict(document(ROUTES), config=CONFIG)


@schemathesis.serializer("application/toml")
def _toml(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """A table whose every key is set on a line of its own, as JSON values can be."""
    return "".join(f"{key} = {json.dumps(value[key])}\n" for key in value).encode()


# No schema can say that the archive must hold the handler, or which content a digest has.
NOT_MADE_FROM_A_SCHEMA = {"deployFunction", "uploadArtifact"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform")) as platform:
        made = platform.post("/v1/keys", {"name": "generated", "role": "admin"})
        platform.key = made.json()["key"]
        yield platform


@pytest.fixture
def echo(platform: Platform) -> Platform:
    """A platform with what the document's examples name: a function, and an invocation of it."""
    platform.must_deploy("echo", "def handle(event, context): return event")
    (example,) = {
        parameter["example"]
        for parameter in OPERATIONS["GET /v1/invocations/{id}"].parameters
        if parameter["name"] == "id"
    }
    address = f"/v1/invocations/{example}"
    if platform.get(address).status == 404:
        platform.post("/invoke/echo?mode=async", "kept", {"Faasd-Request-Id": example})
    assert eventually(lambda: platform.get(address).json()["status"] == "succeeded")
    return platform


def test_the_served_document_is_the_one_of_the_route_table(platform: Platform) -> None:
    served = platform.get("/openapi.json").json()

    OpenAPIV31SpecValidator(served).validate()
    assert served == document(ROUTES)


@schema.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    # The fixture gives every operation the same state; its examples need not be alone.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_generated_request_meets_an_undocumented_answer(
    case: schemathesis.Case[Any], echo: Platform
) -> None:
    is_special = case.operation.definition.raw["operationId"] in NOT_MADE_FROM_A_SCHEMA

    case.call_and_validate(
        base_url=echo.url,
        headers={"Authorization": f"Bearer {echo.key}"},
        excluded_checks=[positive_data_acceptance] if is_special else [],
    )
