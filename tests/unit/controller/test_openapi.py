import json
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from controller.http.app import Route
from controller.http.openapi import document
from controller.http.operations import OPERATIONS
from controller.http.routes import ROUTES
from faasd import errors, spec
from faasd.spec import FunctionSpec


async def _handler(_request: web.Request) -> web.StreamResponse:
    return web.Response()


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document(ROUTES)


def operation(described: dict[str, Any], route: Route) -> dict[str, Any]:
    found: dict[str, Any] = described["paths"][route.path][route.method.lower()]
    return found


def codes(described: dict[str, Any], method: str, path: str) -> set[str]:
    return set(described["paths"][path][method]["responses"])


def test_the_document_is_valid_openapi_3_1(described: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(described).validate()


def test_the_document_survives_json(described: dict[str, Any]) -> None:
    assert json.loads(json.dumps(described)) == described


def test_every_route_of_the_table_is_described(described: dict[str, Any]) -> None:
    for route in ROUTES:
        assert operation(described, route)["summary"]


def test_nothing_is_described_that_is_no_route() -> None:
    assert set(OPERATIONS) == {f"{route.method} {route.path}" for route in ROUTES}


def test_a_route_without_a_description_is_an_error() -> None:
    with pytest.raises(LookupError, match="GET /v1/surprises is not described"):
        document([Route("GET", "/v1/surprises", _handler, None)])


def test_operation_ids_are_unique() -> None:
    ids = [described.id for described in OPERATIONS.values()]

    assert len(set(ids)) == len(ids)


def test_a_route_with_a_role_says_so_and_may_be_refused(described: dict[str, Any]) -> None:
    for route in ROUTES:
        found = operation(described, route)
        if route.role is None:
            assert found["security"] == []
            assert not {"401", "403"} & set(found["responses"])
        else:
            assert "security" not in found
            assert f"role `{route.role}`" in found["description"]
            assert {"400", "401", "403"} <= set(found["responses"])


def test_every_answer_bears_the_request_id(described: dict[str, Any]) -> None:
    for route in ROUTES:
        for answer in operation(described, route)["responses"].values():
            assert "faasd-request-id" in answer["headers"]


def test_every_error_is_a_problem_except_where_there_is_no_body(described: dict[str, Any]) -> None:
    for route in ROUTES:
        for status, answer in operation(described, route)["responses"].items():
            if status[0] in "45":
                media = set(answer.get("content", ()))
                assert media == (set() if route.method == "HEAD" else {"application/problem+json"})


def test_an_invocation_tells_its_cost_whatever_its_end(described: dict[str, Any]) -> None:
    answers = described["paths"]["/invoke/{endpoint}"]["post"]["responses"]

    assert {"200", "404", "429", "500", "502", "503", "504", "default"} <= set(answers)
    for status in set(answers) - {"202"}:
        assert {"Server-Timing", "faasd-start", "faasd-revision"} <= set(answers[status]["headers"])


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("put", "/v1/functions/{name}", {"200", "201", "400", "409", "413", "422", "503"}),
        ("post", "/v1/functions/{name}/rollback", {"200", "404", "409", "422", "503"}),
        ("put", "/v1/artifacts/{sha256}", {"200", "201", "413", "422"}),
        ("get", "/v1/invocations/{id}/result", {"200", "404", "409", "default"}),
        ("post", "/v1/keys", {"201", "413"}),
        ("get", "/readyz", {"200", "503"}),
    ],
)
def test_the_errors_of_a_call_are_listed_by_status(
    described: dict[str, Any], method: str, path: str, statuses: set[str]
) -> None:
    assert statuses <= codes(described, method, path)


def test_a_wait_is_named_where_trying_again_helps(described: dict[str, Any]) -> None:
    answers = described["paths"]["/invoke/{endpoint}"]["post"]["responses"]

    assert "Retry-After" in answers["429"]["headers"]
    assert "Retry-After" in answers["503"]["headers"]


def test_every_error_code_of_the_taxonomy_is_a_code_of_a_problem(
    described: dict[str, Any],
) -> None:
    problem = described["components"]["schemas"]["Problem"]

    assert set(problem["properties"]["code"]["enum"]) == set(errors.BY_CODE)


def test_the_spec_is_described_as_it_is_validated(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]

    assert set(schemas["FunctionSpec"]["properties"]) == set(FunctionSpec.model_fields)
    assert schemas["Limits"]["properties"]["max_body_mb"]["maximum"] == 1024
    assert schemas["FunctionSpec"]["additionalProperties"] is False


def test_the_example_of_a_spec_is_accepted(described: dict[str, Any]) -> None:
    (example,) = described["components"]["schemas"]["FunctionSpec"]["examples"]

    assert spec.validate_spec(example).name == "sentiment"
