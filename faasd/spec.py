"""What a user may say about a function: the models behind function.toml.

User input is validated here, once; everywhere else a `FunctionSpec` is known to be good. Unknown keys
and bad values are refused with the key, the value and what is accepted.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from weakref import WeakValueDictionary

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from faasd.errors import InvalidSpec

MAX_SPEC_BYTES = 256 * 1024
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
# The time that tomllib takes grows with the square of the parts of a dotted key.
_DEEP_KEY = re.compile(
    r"""(?<![\w-])(?>(?:[\w-]+|"(?:[^"\\\n]|\\.){0,64}"|'[^'\n]{0,64}')[ \t]*\.[ \t]*){32}"""
)

# What pydantic puts among the keys to say which of several types it tried.
_UNION_TAG = re.compile(r"(literal|function-[a-z]+)\[")

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Attribute = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=200)
]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=500)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
Argument = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=4096)]
Image = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][A-Za-z0-9_.:/@-]*$", max_length=255)]
Network = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]
UrlPath = Annotated[str, StringConstraints(pattern=r"^/[!-~]*$", max_length=2000)]

LAMBDA_API = "127.0.0.1:9001"
_HANDLERS = {"faasd": "handler:handle", "openwhisk": "main:main"}
# Networks of an engine that are no network between functions: the machine's own, and the one of
# containers that nobody assigned.
_NOT_NETWORKS = ("host", "bridge", "default")

LOWEST_PRIORITY, HIGHEST_PRIORITY = -10, 10


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Resources(_Section):
    """What one instance may use."""

    cpus: float = Field(1.0, gt=0, le=1024, description="CPU cores of one instance; its threads")
    memory_mb: int = Field(512, ge=16, le=4_194_304, description="private memory of one instance")
    gpus: float = Field(0, ge=0, le=64, description="GPUs of one instance")
    gpu_memory_mb: int = Field(0, ge=0, description="GPU memory of one instance")
    pids: int = Field(256, ge=8, le=32_768, description="processes and threads of one sandbox")
    tmp_mb: int = Field(512, ge=1, le=1_048_576, description="size of a sandbox's /tmp")


class Limits(_Section):
    """What the platform bounds, per function."""

    timeout_s: float = Field(60, gt=0, le=86_400, description="longest run of one invocation")
    load_timeout_s: float = Field(300, gt=0, le=86_400, description="longest import and load()")
    concurrency: int = Field(1, ge=1, le=1000, description="invocations at once in one instance")
    max_instances: int = Field(8, ge=1, le=1000, description="instances on one worker")
    queue: int = Field(1000, ge=0, le=1_000_000, description="invocations waiting on one worker")
    max_body_mb: float = Field(32, gt=0, le=1024, description="largest request body")


class Batching(_Section):
    """Several invocations in one call of the handler."""

    max_size: int = Field(1, ge=1, le=1024, description="invocations in one call of the handler")
    max_wait_ms: float = Field(0, ge=0, le=60_000, description="wait for a fuller batch")


class Scaling(_Section):
    """When instances come and go."""

    min_instances: int = Field(0, ge=0, le=1000, description="instances kept on some worker")
    keep_alive: Literal["histogram"] | Annotated[float, Field(ge=0, le=604_800)] = Field(
        60.0, description='seconds an idle instance is kept, or "histogram"'
    )


class Retries(_Section):
    """How asynchronous invocations are tried again."""

    max_attempts: int = Field(3, ge=1, le=100, description="runs before it is dead")
    backoff_s: float = Field(1.0, ge=0, le=3600, description="wait before the second; doubles")


class Slo(_Section):
    """What the callers of the function's own endpoint expect."""

    latency_ms: float | None = Field(None, gt=0, description="latency objective")


class Http(_Section):
    """Where the server of a function with contract = "http" listens."""

    port: int = Field(8080, ge=1, le=65_535, description="port of the server; its $PORT")
    path: UrlPath = Field("/", description="where invocations are sent")
    ready: UrlPath | None = Field(None, description="answers below 400 once it is ready")


class Scheduling(_Section):
    """Which calls go first where they wait, and whose."""

    priority: int = Field(
        0,
        ge=LOWEST_PRIORITY,
        le=HIGHEST_PRIORITY,
        description="more goes first; callers may ask less",
    )
    tenants: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=128)],
        Annotated[float, Field(gt=0, le=1e6)],
    ] = Field(
        default_factory=dict,
        max_length=1000,
        description="share of a tenant (the name of its key) against 1 for each other",
    )


class Example(_Section):
    """A request body to try the function with; load generators send it."""

    content_type: str = Field("application/json", max_length=200)
    body: str | None = Field(None, max_length=65_536)
    base64: str | None = Field(None, max_length=131_072)

    @field_validator("base64")
    @classmethod
    def _decodes(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                base64.b64decode(value, validate=True)
            except binascii.Error as error:
                raise ValueError(f"is not base64 ({error})") from None
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.body is None) == (self.base64 is None):
            raise ValueError("needs either body or base64")
        return self


class FunctionSpec(_Section):
    """One function as its author describes it (function.toml)."""

    name: Name
    runtime: str = Field("python", pattern=NAME_PATTERN, description="library set it starts from")
    image: Image | None = Field(None, description="container image in the place of a runtime's")
    handler: Attribute = _HANDLERS["faasd"]
    load: Attribute | None = Field(None, description="called once per template")
    contract: Literal["faasd", "openwhisk", "http", "lambda"] = "faasd"
    command: list[Argument] | None = Field(None, min_length=1, max_length=100)
    network: Network = Field("none", description='"none", "internet" or a network by name')
    requirements: RelativePath | None = Field(None, description="pip requirements file")
    artifacts: dict[Name, RelativePath] = Field(default_factory=dict, max_length=100)
    resources: Resources = Field(default_factory=Resources)
    limits: Limits = Field(default_factory=Limits)
    batching: Batching = Field(default_factory=Batching)
    scaling: Scaling = Field(default_factory=Scaling)
    retries: Retries = Field(default_factory=Retries)
    slo: Slo = Field(default_factory=Slo)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    http: Http = Field(default_factory=Http)
    env: dict[EnvName, Annotated[str, StringConstraints(max_length=32_768)]] = Field(
        default_factory=dict, max_length=1000
    )
    example: Example | None = None

    @field_validator("requirements")
    @classmethod
    def _stays_inside(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("/") or ".." in value.split("/")):
            raise ValueError("must be a path inside the function's folder")
        return value

    @field_validator("network")
    @classmethod
    def _is_made_for_functions(cls, value: str) -> str:
        if value in _NOT_NETWORKS:
            raise ValueError(
                f'{value!r} is not for functions; accepted are "none", "internet" and the name of '
                "a network that was made for them"
            )
        return value

    @field_validator("env")
    @classmethod
    def _has_no_nul(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if "\0" in text:
                raise ValueError(f"value of {key} holds a NUL character")
            if key.startswith("FAASD_"):
                raise ValueError(f"{key}: names beginning with FAASD_ belong to the platform")
        return value

    @model_validator(mode="before")
    @classmethod
    def _as_the_contract_has_it(cls, raw: Any) -> Any:
        """Defaults that depend on the contract."""
        if not isinstance(raw, dict):
            return raw
        contract = raw.get("contract")
        if contract == "openwhisk":
            return {"handler": _HANDLERS["openwhisk"], **raw}
        limits = raw.get("limits", {})
        if contract in ("http", "lambda") and isinstance(limits, dict):
            return {**raw, "limits": {"max_instances": 1, **limits}}
        return raw

    @model_validator(mode="after")
    def _keeps_its_contract(self) -> Self:
        for broken, why in _contract_rules(self):
            if broken:
                raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.scaling.min_instances > self.limits.max_instances:
            raise ValueError(
                "scaling.min_instances must not exceed limits.max_instances "
                f"({self.limits.max_instances})"
            )
        if self.batching.max_size > 1 and self.limits.concurrency > 1:
            raise ValueError("batching.max_size and limits.concurrency cannot both exceed 1")
        return self

    @property
    def max_body_bytes(self) -> int:
        return int(self.limits.max_body_mb * 1024 * 1024)

    @property
    def relayed(self) -> bool:
        """Whether a program of its own serves invocations, and no handler in Python."""
        return self.contract in ("http", "lambda")

    @property
    def attributes(self) -> dict[str, str]:
        """What must be found in the code, by the key that names it."""
        if self.relayed:
            return {}
        return {"handler": self.handler} | ({"load": self.load} if self.load else {})

    @property
    def program_env(self) -> dict[str, str]:
        """What the contract tells the program that serves invocations, beside `env`."""
        if self.contract == "http":
            return {"PORT": str(self.http.port)}
        if self.contract == "lambda":
            return {
                "AWS_LAMBDA_RUNTIME_API": LAMBDA_API,
                "AWS_LAMBDA_FUNCTION_NAME": self.name,
                "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.resources.memory_mb),
                "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            }
        return {}

    def canonical(self) -> bytes:
        """The spec as bytes that are equal for equal specs."""
        plain = self.model_dump(mode="json")
        for section, key, default in _LATER_KEYS:
            table = plain[section] if section else plain
            if table[key] == default:
                del table[key]
        return json.dumps(plain, sort_keys=True).encode()


# Keys that came after revisions were stored: at their defaults they do not count, or the same
# content would become another revision.
_LATER_KEYS: tuple[tuple[str, str, Any], ...] = (
    ("", "image", None),
    ("", "command", None),
    ("", "network", "none"),
    ("", "http", Http().model_dump(mode="json")),
    ("", "scheduling", Scheduling().model_dump(mode="json")),
    ("resources", "pids", Resources().pids),
    ("resources", "tmp_mb", Resources().tmp_mb),
)


def _contract_rules(spec: FunctionSpec) -> Iterator[tuple[bool, str]]:
    """What does not go together: whether it is so, and the sentence for it."""
    contract = f'contract = "{spec.contract}"'
    yield (
        spec.image is not None and spec.runtime != "python",
        "runtime and image exclude each other: an image brings its own libraries",
    )
    yield (
        spec.image is not None and spec.requirements is not None,
        "requirements are installed beside a runtime's packages: with image, put them into the image",
    )
    yield (
        spec.command is not None and not spec.relayed,
        'command needs contract = "http" or contract = "lambda"',
    )
    yield spec.http != Http() and spec.contract != "http", '[http] needs contract = "http"'
    yield (
        spec.batching.max_size > 1 and spec.contract != "faasd",
        f'batching.max_size above 1 needs contract = "faasd", not {contract}',
    )
    yield (
        spec.limits.concurrency > 1 and spec.contract in ("openwhisk", "lambda"),
        f"limits.concurrency must be 1 with {contract}, which takes one invocation at a time",
    )
    if not spec.relayed:
        return
    yield (
        spec.image is None and spec.command is None,
        f"{contract} needs image, or command to start a program of the code's folder",
    )
    yield (
        spec.handler != _HANDLERS["faasd"] or spec.load is not None,
        f"handler and load are not used with {contract}: name in command what serves invocations",
    )
    yield (
        spec.limits.max_instances > 1,
        f"limits.max_instances must be 1 with {contract}: each worker runs its program once",
    )
    for name in sorted(spec.program_env.keys() & spec.env.keys()):
        yield True, f"env.{name} is the platform's to say with {contract}"


_ALL_KEYS = set(FunctionSpec.model_fields)
# By what they say, digested: an example may be long.
_sections: WeakValueDictionary[bytes, _Section] = WeakValueDictionary()


def compact(spec: FunctionSpec) -> FunctionSpec:
    """An equal spec in a tenth of the memory, for those who keep thousands of them.

    Sections that equal another spec's are that one's. Which keys were written is forgotten: the set
    in which pydantic keeps it is larger than all the rest.
    """
    values = {key: _shared(value) for key, value in spec}
    return FunctionSpec.model_construct(_fields_set=_ALL_KEYS, **values)


def _shared(value: Any) -> Any:
    if isinstance(value, _Section):
        return _sections.setdefault(hashlib.sha256(repr(value).encode()).digest(), value)
    return sys.intern(value) if isinstance(value, str) else value


def revision_of(spec: FunctionSpec, code_sha256: str, artifacts: dict[str, str]) -> str:
    """The content address of a revision: equal content, equal revision."""
    digest = hashlib.sha256(spec.canonical())
    digest.update(code_sha256.encode())
    digest.update(json.dumps(artifacts, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def parse_spec(text: bytes, content_type: str = "application/toml") -> FunctionSpec:
    """The spec in TOML or JSON text. Raises InvalidSpec with one sentence for every fault."""
    if len(text) > MAX_SPEC_BYTES:
        raise InvalidSpec(
            f"The spec has {len(text)} bytes; at most {MAX_SPEC_BYTES} are accepted.",
            remedy="Keep data out of function.toml: ship it as files or artifacts.",
        )
    try:
        decoded = text.decode("utf-8")
        raw = json.loads(decoded) if "json" in content_type else _toml(decoded)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        kind = "JSON" if "json" in content_type else "TOML"
        raise InvalidSpec(f"The spec is not {kind}: {error}.") from None
    return validate_spec(raw)


def _toml(text: str) -> Any:
    if _DEEP_KEY.search(text):
        raise InvalidSpec("The spec nests tables deeper than any key that is accepted.")
    return tomllib.loads(text)


def validate_spec(raw: Any) -> FunctionSpec:
    """The spec in plain values. Raises InvalidSpec naming every key at fault."""
    if not isinstance(raw, dict):
        raise InvalidSpec(f"The spec must be a table of keys, not a {type(raw).__name__}.")
    try:
        return FunctionSpec.model_validate(raw)
    except ValidationError as error:
        faults = [_sentence(fault) for fault in error.errors(include_url=False)[:20]]
        raise InvalidSpec(" ".join(faults), faults=faults) from None


def _sentence(fault: Any) -> str:
    unknown = fault["type"] == "extra_forbidden"
    *outer, last = [str(part) for part in fault["loc"]] or [""]
    path = [part for part in outer if not _UNION_TAG.match(part)]
    if unknown or (last and not _UNION_TAG.match(last)):
        path.append(last)
    key = ".".join(path) or "the spec"
    if unknown:
        return f"Unknown key {_short(key)}: accepted here are {_accepted(path)}."
    if fault["type"] == "missing":
        return f"The key {key} is missing."
    if fault["type"] == "value_error":
        return f"{key}: {fault['msg'].removeprefix('Value error, ')}."
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    if path == []:
        return f"{key}: {message}."
    return f"{key} = {_shown(fault['input'])}: {message}."


def _shown(value: Any) -> str:
    try:
        return _short(repr(value))
    except RecursionError:
        return "(deeply nested)"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _accepted(path: list[str]) -> str:
    model: type[BaseModel] = FunctionSpec
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None or not _is_section(field.annotation):
            break
        model = typing.cast("type[BaseModel]", _section_of(field.annotation))
    names = sorted(model.model_fields)
    close = difflib.get_close_matches(path[-1][:80], names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return ", ".join(names) + hint


def _is_section(annotation: Any) -> bool:
    return _section_of(annotation) is not None


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, types.UnionType):
        return next((s for a in typing.get_args(annotation) if (s := _section_of(a))), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


_ENDPOINT = re.compile(NAME_PATTERN)


def check_name(name: str) -> str:
    """The name itself, or InvalidSpec when it is not one."""
    if not _ENDPOINT.fullmatch(name):
        raise InvalidSpec(
            f"{_short(repr(name))} is not a name: use 1 to 63 of a-z, 0-9 and inner hyphens."
        )
    return name
