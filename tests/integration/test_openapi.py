"""The served document holds: it validates, and what is generated from it meets no surprise."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig

from controller.http.openapi import document
from controller.http.routes import ROUTES
from tests.platform import Platform

ECHO = "def handle(event, context): return event"

CONFIG = SchemathesisConfig.from_dict(
    {
        "seed": 20,
        "generation": {"deterministic": True, "database": "none"},
        "parameters": {
            "path.endpoint": "echo",
            "query.follow": "0",
            "header.Faasd-Deadline-Ms": 60_000,
        },
    }
)
schema = schemathesis.openapi.from_dict(document(ROUTES), config=CONFIG)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform")) as platform:
        platform.must_deploy("echo", ECHO)
        yield platform


@pytest.fixture(scope="module")
def key(platform: Platform) -> str:
    made = platform.post("/v1/keys", {"name": "fuzz", "role": "admin"})
    return str(made.json()["key"])


def test_the_served_document_is_the_one_of_the_route_table(platform: Platform) -> None:
    served = platform.get("/openapi.json")

    OpenAPIV31SpecValidator(served.json()).validate()
    assert served.json() == document(ROUTES)


@schema.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
def test_no_generated_request_meets_an_undocumented_answer(
    case: schemathesis.Case, platform: Platform, key: str
) -> None:
    case.call_and_validate(base_url=platform.url, headers={"Authorization": f"Bearer {key}"})
