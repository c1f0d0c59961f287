"""What a user may say about a function, and the sentence for everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd.errors import InvalidSpec
from faasd.spec import (
    MAX_SPEC_BYTES,
    FunctionSpec,
    check_name,
    compact,
    parse_spec,
    revision_of,
    validate_spec,
)

CODE = "a" * 64
KEYS = [
    *FunctionSpec.model_fields,
    "limits",
    "timeout_s",
    "min_instances",
    "body",
    "base64",
    "port",
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(
        ["echo", "handler:handle", "histogram", "faasd", "http", "\0", "../x", "FAASD_X"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=15,
)


def sentence(**keys: Any) -> str:
    """What is said of a spec named echo with these keys."""
    with pytest.raises(InvalidSpec) as refused:
        validate_spec({"name": "echo", **keys})
    return refused.value.detail


def test_a_name_is_all_that_must_be_said() -> None:
    spec = parse_spec(b'name = "echo"')

    assert (spec.name, spec.runtime, spec.handler) == ("echo", "python", "handler:handle")
    assert (spec.limits.timeout_s, spec.limits.concurrency, spec.batching.max_size) == (60, 1, 1)
    assert spec.example is None


def test_everything_may_be_said() -> None:
    spec = parse_spec(
        b"""
        name = "sentiment-2"
        runtime = "python-torch"
        handler = "pkg.model:run"
        load = "pkg.model:load"
        requirements = "conf/requirements.txt"
        [artifacts]
        weights = "model.safetensors"
        [resources]
        cpus = 0.5
        memory_mb = 1024
        gpus = 1
        [limits]
        timeout_s = 1.5
        max_instances = 3
        max_body_mb = 0.5
        [batching]
        max_size = 8
        max_wait_ms = 5
        [scaling]
        min_instances = 3
        keep_alive = "histogram"
        [retries]
        max_attempts = 5
        [slo]
        latency_ms = 250
        [env]
        MODEL_THREADS = "1"
        [example]
        body = '{"text": "great"}'
        """
    )

    assert spec.artifacts == {"weights": "model.safetensors"}
    assert spec.scaling.keep_alive == "histogram"
    assert spec.max_body_bytes == 512 * 1024
    assert spec.example is not None
    assert spec.example.content_type == "application/json"


def test_json_says_the_same_as_toml() -> None:
    toml = parse_spec(b'name = "echo"\n[limits]\nqueue = 5')

    assert parse_spec(b'{"name": "echo", "limits": {"queue": 5}}', "application/json") == toml


def test_a_missing_name_is_named() -> None:
    with pytest.raises(InvalidSpec, match=r"The key name is missing\."):
        parse_spec(b"")


@pytest.mark.parametrize(
    "name", ["", "Echo", "-a", "a-", "a_b", "a" * 64, "a/b", "a b", "é", "a\n", 7, None]
)
def test_a_bad_name_is_refused_with_its_value(name: Any) -> None:
    assert sentence(name=name).startswith(f"name = {name!r}: ")


@pytest.mark.parametrize("name", ["a", "a" * 63, "0", "a--b", "a1-2"])
def test_a_good_name_is_accepted_everywhere(name: str) -> None:
    assert validate_spec({"name": name}).name == check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a\n", "a" * 64, "a/b", "-"])
def test_a_bad_endpoint_name_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(InvalidSpec, match="1 to 63 of a-z, 0-9 and inner hyphens"):
        check_name(name)


@pytest.mark.parametrize(
    ("section", "key", "value", "accepted"),
    [
        ("resources", "cpus", 0, "greater than 0"),
        ("resources", "cpus", 1025, "less than or equal to 1024"),
        ("resources", "cpus", float("nan"), "finite number"),
        ("resources", "memory_mb", 15, "greater than or equal to 16"),
        ("resources", "memory_mb", "lots", "valid integer"),
        ("resources", "gpus", -1, "greater than or equal to 0"),
        ("resources", "gpu_memory_mb", -1, "greater than or equal to 0"),
        ("resources", "pids", 7, "greater than or equal to 8"),
        ("resources", "tmp_mb", 0, "greater than or equal to 1"),
        ("http", "port", 0, "greater than or equal to 1"),
        ("http", "port", 65_536, "less than or equal to 65535"),
        ("limits", "timeout_s", 0, "greater than 0"),
        ("limits", "timeout_s", 86_401, "less than or equal to 86400"),
        ("limits", "timeout_s", float("inf"), "finite number"),
        ("limits", "load_timeout_s", -1, "greater than 0"),
        ("limits", "concurrency", 0, "greater than or equal to 1"),
        ("limits", "concurrency", 1.5, "valid integer"),
        ("limits", "max_instances", 1001, "less than or equal to 1000"),
        ("limits", "queue", -1, "greater than or equal to 0"),
        ("limits", "max_body_mb", 0, "greater than 0"),
        ("batching", "max_size", 0, "greater than or equal to 1"),
        ("batching", "max_wait_ms", 60_001, "less than or equal to 60000"),
        ("scaling", "min_instances", -1, "greater than or equal to 0"),
        ("scaling", "keep_alive", "for ever", "'histogram'"),
        ("scaling", "keep_alive", -1, "greater than or equal to 0"),
        ("retries", "max_attempts", 0, "greater than or equal to 1"),
        ("retries", "backoff_s", 3601, "less than or equal to 3600"),
        ("slo", "latency_ms", 0, "greater than 0"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_itself_and_what_is_accepted(
    section: str, key: str, value: Any, accepted: str
) -> None:
    said = sentence(**{section: {key: value}})

    assert f"{section}.{key} = {value!r}: " in said
    assert accepted in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("handler", "handler"),
        ("handler", "handler.py:handle()"),
        ("handler", "a-b:c"),
        ("load", ":load"),
        ("runtime", "Python 3"),
        ("contract", "cobol"),
        ("image", ""),
        ("image", "-x:1"),
        ("image", "a b"),
        ("command", []),
        ("command", "serve"),
        ("command", ["a\0b"]),
        ("network", ""),
        ("network", "container:other"),
        ("network", "host"),
        ("http", {"path": "predict"}),
        ("http", {"ready": "/a b"}),
        ("requirements", ""),
        ("artifacts", {"Weights": "model.bin"}),
        ("artifacts", {"weights": ""}),
        ("env", {"1A": "x"}),
        ("env", {"A": 1}),
    ],
)
def test_bad_text_is_refused_with_its_key(key: str, value: Any) -> None:
    assert key in sentence(**{key: value})


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.txt", "a/../../x"])
def test_requirements_outside_the_folder_are_refused(path: str) -> None:
    said = sentence(requirements=path)

    assert said == "requirements: must be a path inside the function's folder."


def test_the_environment_keeps_the_platforms_names_out() -> None:
    said = sentence(env={"FAASD_PORT": "1"})

    assert said == "env: FAASD_PORT: names beginning with FAASD_ belong to the platform."


def test_the_environment_keeps_nul_characters_out() -> None:
    assert sentence(env={"A": "x\0y"}) == "env: value of A holds a NUL character."


def test_a_minimum_above_the_maximum_is_refused() -> None:
    said = sentence(scaling={"min_instances": 9})

    assert said == ("the spec: scaling.min_instances must not exceed limits.max_instances (8).")


def test_batching_and_sharing_together_are_refused() -> None:
    said = sentence(batching={"max_size": 2}, limits={"concurrency": 2})

    assert "batching.max_size and limits.concurrency cannot both exceed 1" in said


@pytest.mark.parametrize(
    "keys",
    [
        {"image": "registry.example:5000/team/model:v1"},
        {"image": "model@sha256:" + "0" * 64},
        {"contract": "openwhisk", "image": "python:3.9-slim"},
        {"contract": "http", "image": "model:v1", "http": {"port": 80, "ready": "/healthz"}},
        {"contract": "http", "command": ["python3", "-m", "server"], "requirements": "r.txt"},
        {"contract": "http", "image": "model:v1", "limits": {"concurrency": 100}},
        {"contract": "lambda", "image": "model:v1", "command": ["/entry.sh", "app.handle"]},
        {"network": "internet"},
        {"network": "models_default"},
    ],
)
def test_a_contract_with_what_it_needs_is_accepted_and_survives_its_forms(
    keys: dict[str, Any],
) -> None:
    spec = validate_spec({"name": "echo", **keys})

    assert validate_spec(json.loads(spec.canonical())) == spec
    assert validate_spec(spec.model_dump(mode="json")) == spec
    assert validate_spec(json.loads(spec.model_dump_json(exclude_unset=True))) == spec


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (
            {"image": "a:1", "runtime": "python-torch"},
            "runtime and image exclude each other: an image brings its own libraries",
        ),
        (
            {"image": "a:1", "requirements": "requirements.txt"},
            (
                "requirements are installed beside a runtime's packages: with image, put them into the "
                "image"
            ),
        ),
        ({"command": ["a"]}, 'command needs contract = "http" or contract = "lambda"'),
        ({"http": {"port": 80}}, '[http] needs contract = "http"'),
        (
            {"contract": "lambda", "image": "a:1", "http": {"port": 80}},
            '[http] needs contract = "http"',
        ),
        (
            {"contract": "openwhisk", "batching": {"max_size": 2}},
            'batching.max_size above 1 needs contract = "faasd", not contract = "openwhisk"',
        ),
        (
            {"contract": "openwhisk", "limits": {"concurrency": 2}},
            (
                'limits.concurrency must be 1 with contract = "openwhisk", which takes one invocation '
                "at a time"
            ),
        ),
        (
            {"contract": "lambda", "image": "a:1", "limits": {"concurrency": 2}},
            (
                'limits.concurrency must be 1 with contract = "lambda", which takes one invocation at '
                "a time"
            ),
        ),
        (
            {"contract": "http"},
            'contract = "http" needs image, or command to start a program of the code\'s folder',
        ),
        (
            {"contract": "lambda", "image": "a:1", "handler": "app:handle"},
            (
                'handler and load are not used with contract = "lambda": name in command what serves '
                "invocations"
            ),
        ),
        (
            {"contract": "http", "image": "a:1", "limits": {"max_instances": 2}},
            (
                'limits.max_instances must be 1 with contract = "http": each worker runs its program '
                "once"
            ),
        ),
        (
            {"contract": "http", "image": "a:1", "env": {"PORT": "1"}},
            'env.PORT is the platform\'s to say with contract = "http"',
        ),
    ],
)
def test_what_does_not_go_with_a_contract_is_refused_with_the_reason(
    keys: dict[str, Any], why: str
) -> None:
    assert sentence(**keys) == f"the spec: {why}."


def test_the_machines_own_networks_are_not_for_functions() -> None:
    said = sentence(network="host")

    assert said.startswith("network: 'host' is not for functions; accepted are")


def test_defaults_follow_the_contract() -> None:
    action = validate_spec({"name": "echo", "contract": "openwhisk"})
    server = validate_spec({"name": "echo", "contract": "http", "command": ["serve"]})

    assert (action.handler, action.limits.max_instances) == ("main:main", 8)
    assert (server.limits.max_instances, server.http.port) == (1, 8080)


def test_a_contract_says_what_must_be_found_in_the_code() -> None:
    own = validate_spec({"name": "echo", "load": "models:load"})
    server = validate_spec({"name": "echo", "contract": "http", "command": ["serve"]})

    assert own.attributes == {"handler": "handler:handle", "load": "models:load"}
    assert (own.relayed, server.relayed, server.attributes) == (False, True, {})


def test_a_contract_says_what_its_program_is_told() -> None:
    own = validate_spec({"name": "echo"})
    server = validate_spec(
        {"name": "echo", "contract": "http", "command": ["serve"], "http": {"port": 80}}
    )
    runtime = validate_spec({"name": "echo", "contract": "lambda", "image": "a:1"})

    assert own.program_env == {}
    assert server.program_env == {"PORT": "80"}
    assert runtime.program_env["AWS_LAMBDA_RUNTIME_API"] == "127.0.0.1:9001"
    assert runtime.program_env["AWS_LAMBDA_FUNCTION_NAME"] == "echo"


@pytest.mark.parametrize("example", [{}, {"body": "x", "base64": "eA=="}])
def test_an_example_has_one_body(example: dict[str, str]) -> None:
    assert sentence(example=example) == "example: needs either body or base64."


def test_an_examples_base64_must_be_base64() -> None:
    assert sentence(example={"base64": "%%%"}).startswith("example.base64: is not base64")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("handlers", "handler"), ("limit", "limits"), ("artefacts", "artifacts")],
)
def test_a_mistyped_key_is_answered_with_the_one_that_was_meant(typo: str, meant: str) -> None:
    said = sentence(**{typo: 1})

    assert f"Unknown key {typo}: accepted here are artifacts, batching, command" in said
    assert f"(did you mean {meant}?)" in said


@pytest.mark.parametrize(
    ("section", "typo", "meant"),
    [("limits", "timeout", "timeout_s"), ("example", "bodi", "body"), ("slo", "latency", "")],
)
def test_a_mistyped_key_of_a_section_is_answered_from_that_section(
    section: str, typo: str, meant: str
) -> None:
    said = sentence(**{section: {typo: 1}})

    assert f"Unknown key {section}.{typo}: " in said
    assert meant in said
    assert "artifacts" not in said


@pytest.mark.parametrize("key", ["function-", "literal", "literal[x]", "function-before[x]"])
def test_a_key_that_looks_like_the_name_of_a_type_is_refused_as_any_other(key: str) -> None:
    assert sentence(**{key: 1}).startswith(f"Unknown key {key}: accepted here are artifacts")


def test_a_key_like_nothing_is_answered_without_a_guess() -> None:
    assert "did you mean" not in sentence(zzzzzz=1)


def test_every_fault_gets_a_sentence_of_its_own() -> None:
    with pytest.raises(InvalidSpec) as refused:
        validate_spec({"name": "echo", "limits": {"queue": -1}, "resources": {"cpus": 0}, "x": 1})

    assert len(refused.value.extra["faults"]) == 3


def test_a_flood_of_faults_is_cut_short() -> None:
    with pytest.raises(InvalidSpec) as refused:
        validate_spec({"name": "echo", **{f"key{n}": n for n in range(500)}})

    assert len(refused.value.extra["faults"]) == 20


def test_a_huge_value_is_quoted_in_part() -> None:
    assert len(sentence(name="x" * 10_000)) < 300
    assert len(sentence(**{"k" * 10_000: 1})) < 600


def test_what_is_not_toml_is_refused_with_the_place() -> None:
    with pytest.raises(InvalidSpec, match=r"The spec is not TOML: .*line 2"):
        parse_spec(b'name = "echo"\nqueue = many\n')


def test_what_is_not_json_is_refused_with_the_place() -> None:
    with pytest.raises(InvalidSpec, match=r"The spec is not JSON: .*line 1"):
        parse_spec(b"{", "application/json")


def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="not TOML"):
        parse_spec(b'name = "\xff"')


@pytest.mark.parametrize("nesting", [b"[" * 100_000, b'{"a":' * 40_000])
def test_json_without_bottom_is_refused(nesting: bytes) -> None:
    with pytest.raises(InvalidSpec):
        parse_spec(nesting, "application/json")


def test_toml_without_bottom_is_refused() -> None:
    with pytest.raises(InvalidSpec):
        parse_spec(b"x = " + b"[" * 100_000)


def test_a_spec_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(InvalidSpec, match=f"at most {MAX_SPEC_BYTES} are accepted"):
        parse_spec(b"#" * (MAX_SPEC_BYTES + 1))


@pytest.mark.parametrize("raw", [[], "x", 1, None])
def test_what_is_no_table_is_refused(raw: Any) -> None:
    with pytest.raises(InvalidSpec, match="must be a table of keys"):
        validate_spec(raw)


def test_the_canonical_form_does_not_depend_on_the_order_of_keys() -> None:
    one = validate_spec({"name": "echo", "env": {"A": "1", "B": "2"}})
    other = validate_spec({"env": {"B": "2", "A": "1"}, "name": "echo"})

    assert one.canonical() == other.canonical()


def test_a_spec_survives_its_canonical_form() -> None:
    spec = validate_spec({"name": "echo", "scaling": {"keep_alive": 5}})

    assert validate_spec(json.loads(spec.canonical())) == spec


def test_a_revision_is_the_same_for_the_same_content() -> None:
    said, defaulted = {"name": "echo", "limits": {"queue": 1000}}, {"name": "echo"}

    one = revision_of(validate_spec(said), CODE, {"a": "1", "b": "2"})

    assert one == revision_of(validate_spec(defaulted), CODE, {"b": "2", "a": "1"})
    assert len(one) == 12


def test_a_revision_that_uses_no_later_key_is_the_one_it_was_before() -> None:
    assert revision_of(validate_spec({"name": "echo"}), CODE, {}) == "9b8c89585d20"


@pytest.mark.parametrize(
    ("raw", "code", "artifacts"),
    [
        ({"name": "echo", "limits": {"queue": 1}}, CODE, {}),
        ({"name": "echo", "image": "a:1"}, CODE, {}),
        ({"name": "echo", "network": "internet"}, CODE, {}),
        ({"name": "echo", "resources": {"pids": 64}}, CODE, {}),
        ({"name": "echo", "resources": {"tmp_mb": 64}}, CODE, {}),
        ({"name": "echo"}, "b" * 64, {}),
        ({"name": "echo"}, CODE, {"weights": "c" * 64}),
    ],
)
def test_a_revision_is_another_for_other_content(
    raw: dict[str, Any], code: str, artifacts: dict[str, str]
) -> None:
    plain = revision_of(validate_spec({"name": "echo"}), CODE, {})

    assert revision_of(validate_spec(raw), code, artifacts) != plain


@given(st.binary(max_size=200), st.sampled_from(["application/toml", "application/json"]))
def test_any_bytes_are_a_spec_or_refused(text: bytes, content_type: str) -> None:
    try:
        parse_spec(text, content_type)
    except InvalidSpec as error:
        assert error.detail  # noqa: PT017


@given(st.text(max_size=200))
def test_any_text_is_a_spec_or_refused(text: str) -> None:
    try:
        parse_spec(text.encode("utf-8", "surrogatepass"))
    except InvalidSpec as error:
        assert error.detail  # noqa: PT017


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), values, max_size=6))
def test_any_object_is_a_spec_or_refused(raw: dict[str, Any]) -> None:
    try:
        spec = parse_spec(json.dumps({"name": "echo", **raw}).encode(), "application/json")
    except InvalidSpec as error:
        assert error.detail.endswith((".", "?)."))  # noqa: PT017
        assert len(error.extra.get("faults", [])) <= 20  # noqa: PT017
    else:
        assert validate_spec(json.loads(spec.canonical())) == spec


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"env": {"A": "b"}, "artifacts": {"model": "model.bin"}, "slo": {"latency_ms": 5}},
        {"contract": "http", "image": "model:v1", "http": {"port": 9000}},
        {"scheduling": {"tenants": {"team": 2.0}}, "example": {"body": "{}"}},
    ],
)
def test_a_compact_spec_says_the_same(keys: dict[str, Any]) -> None:
    spec = validate_spec({"name": "echo", **keys})

    small = compact(spec)

    assert small == spec
    assert small.model_dump(mode="json") == spec.model_dump(mode="json")
    assert small.canonical() == spec.canonical()
    assert validate_spec(small.model_dump(mode="json")) == spec


def test_compact_specs_share_the_sections_that_are_equal() -> None:
    limits = {"timeout_s": 7}
    one = compact(validate_spec({"name": "one", "limits": limits}))
    other = compact(validate_spec({"name": "other", "limits": limits, "retries": {}}))
    third = compact(validate_spec({"name": "third", "limits": {"timeout_s": 8}}))

    assert one.limits is other.limits
    assert one.retries is other.retries
    assert one.limits is not third.limits
    assert (one.limits.timeout_s, third.limits.timeout_s) == (7, 8)
