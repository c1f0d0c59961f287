"""Every tunable of the daemons: its unit, its default, what it does.

Built once on the command line (defaults < environment < flags) and passed down. Environment
variables are FAASD_ plus the field's name, e.g. FAASD_PORT.
"""

from __future__ import annotations

import ipaddress
import platform
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from faasd.errors import BadRequest
from faasd.policies.routing.routers import ROUTERS

# A worker's sandboxes run elsewhere than where it was started.
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


def is_loopback(host: str) -> bool:
    """Whether the name or address can only mean this machine."""
    if host in ("localhost", "::1"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ControllerSettings(BaseSettings):
    """The controller: HTTP, store, routing, asynchronous invocations."""

    model_config = SettingsConfigDict(
        env_prefix="FAASD_", extra="ignore", frozen=True, validate_default=True
    )

    host: str = Field("127.0.0.1", description="address of the HTTP API")
    port: int = Field(8080, ge=0, le=65535, description="port of the HTTP API; 0 takes a free one")
    data: Folder = Field(Path("faasd-data"), description="folder of everything that must last")
    cluster_host: str = Field("127.0.0.1", description="address where workers join")
    cluster_port: int | None = Field(
        None, ge=0, le=65535, description="port where workers join; none without"
    )
    cluster_secret: SecretStr | None = Field(
        None, description="shared by the controller and its workers, 16 characters or more"
    )
    routing: str = Field(
        "auto",
        pattern=f"^({'|'.join(ROUTERS)})$",
        description="how calls are spread over the workers: " + ", ".join(ROUTERS),
    )
    heartbeat_timeout_s: float = Field(5.0, gt=0, description="a worker silent for so long is lost")
    artifact_max_mb: float = Field(20_480, gt=0, description="largest artifact")
    code_max_mb: float = Field(256, gt=0, description="largest unpacked code archive")
    deploy_timeout_s: float = Field(1800, gt=0, description="longest deploy, layer build included")
    async_concurrency: int = Field(64, ge=1, description="asynchronous invocations running at once")
    result_retention_s: float = Field(
        86_400, gt=0, description="how long finished invocations are kept"
    )
    idempotency_retention_s: float = Field(86_400, gt=0, description="how long keys are kept")
    shutdown_grace_s: float = Field(10.0, ge=0, description="wait for running requests at the end")
    http_keep_alive_s: float = Field(
        75.0, gt=0, description="a connection without a request is ended after so long"
    )
    http_patience_s: float = Field(
        30.0,
        gt=0,
        description="a head not whole, or a body or reply that gets no further, ends it after so long",
    )

    @model_validator(mode="after")
    def _secret_where_needed(self) -> Self:
        if self.cluster_port is not None:
            secret = self.cluster_secret.get_secret_value() if self.cluster_secret else ""
            if len(secret) < 16:
                raise ValueError(
                    "cluster_port needs cluster_secret (FAASD_CLUSTER_SECRET) "
                    "of at least 16 characters"
                )
        return self


class WorkerSettings(BaseSettings):
    """The worker: sandboxes, memory, artifacts."""

    model_config = SettingsConfigDict(
        env_prefix="FAASD_WORKER_", extra="ignore", frozen=True, validate_default=True
    )

    id: str = Field("", description="name of the node; the host's name when empty")
    data: Folder = Field(Path("faasd-data/worker"), description="folder of caches and sandboxes")
    controller: str = Field("127.0.0.1:8081", description="address where the controller listens")
    controllers: str = Field(
        "", description="addresses of several controllers, separated by commas; instead of the one"
    )
    cluster_secret: SecretStr | None = Field(
        None,
        description="as the controller's",
        validation_alias=AliasChoices("FAASD_WORKER_CLUSTER_SECRET", "FAASD_CLUSTER_SECRET"),
    )
    runtime: str = Field(
        "process", pattern="^(process|docker|fake)$", description="kind of sandboxes"
    )
    slots: int | None = Field(
        None, ge=1, description="instances this node is meant for; its cores when empty"
    )
    memory_budget_mb: float | None = Field(
        None, gt=0, description="measured memory of all functions; 75 % of what is free when empty"
    )
    template_keep_alive_s: float = Field(
        600.0, ge=0, description="how long a template without instances is kept"
    )
    memory_interval_s: float = Field(2.0, gt=0, description="between two measurements of memory")
    cancel_grace_s: float = Field(
        1.0, ge=0, description="a handler told to stop is killed after so long"
    )
    heartbeat_s: float = Field(1.0, gt=0, description="between two reports to the controller")
    log_lines: int = Field(2000, ge=1, description="lines kept per function")
    log_request_kb: int = Field(256, ge=1, description="output kept per invocation")
    preload_runtimes: list[str] = Field(
        default_factory=lambda: ["python"], description="zygotes started before they are needed"
    )
    docker_image_prefix: str = Field(
        "faasd-runtime-", description="images of the runtimes are named this and the runtime"
    )
    docker_image_tag: str = Field("latest", description="tag of the images of the runtimes")
    docker_timeout_s: float = Field(60.0, gt=0, description="longest answer of the Docker engine")
    docker_parallel: int = Field(4, ge=1, description="containers being made at once")
    bare_least: int = Field(1, ge=0, description="bare sandboxes kept ready per runtime in use")
    bare_most: int = Field(16, ge=1, description="most bare sandboxes kept ready per runtime")
    mps_pipes: Folder | None = Field(
        None, description="pipe folder of a CUDA MPS daemon; processes only"
    )
    allowed_networks: list[str] = Field(
        default_factory=list, description="Docker networks that functions may name"
    )
    layer_timeout_s: float = Field(1200, gt=0, description="longest build of a requirements layer")
    shutdown_grace_s: float = Field(10.0, ge=0, description="wait for running invocations")

    @property
    def node_id(self) -> str:
        """The name of the node."""
        return self.id or platform.node() or "worker"

    @property
    def addresses(self) -> list[str]:
        """Where its controllers listen, each once."""
        given = [address.strip() for address in self.controllers.split(",")]
        return list(dict.fromkeys(filter(None, given))) or [self.controller]


_Settings = TypeVar("_Settings", bound=BaseSettings)


def build(cls: type[_Settings], **flags: Any) -> _Settings:
    """Settings from flags (those that are not None), environment and defaults.

    Raises BadRequest with one sentence for each value that is not accepted.
    """
    try:
        return cls(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'settings'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise BadRequest("; ".join(faults) + ".", remedy="Correct the setting.") from None
