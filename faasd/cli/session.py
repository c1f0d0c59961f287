"""What all commands that talk to a controller share: their options, and the way to connect."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from faasd.client import Client


@dataclass(slots=True)
class Session:
    """The options of one run of `faasd`; given before the command's name, after it, or both."""

    url: str | None = None
    key: str | None = None
    namespace: str | None = None
    json: bool = False
    debug: bool = False

    def connect(self) -> Client:
        """A client of the named controller, to be used as a context manager."""
        # Late, for it takes longer to import than `faasd --help` takes in all.
        from faasd.client import Client

        return Client(self.url, self.key, self.namespace)


def take_options(
    ctx: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="The controller's address; else FAASD_URL.", metavar="URL")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The API key; else FAASD_API_KEY.", metavar="KEY")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Act in this namespace (admin keys).", metavar="NAME")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a defect of faasd.")
    ] = False,
) -> None:
    """Functions for machine-learning inference: deploy them, invoke them, see what they do."""
    session: Session = ctx.obj
    session.url = url or session.url
    session.key = key or session.key
    session.namespace = namespace or session.namespace
    session.json = json or session.json
    session.debug = debug or session.debug


def remote(function: Callable[..., None]) -> Callable[..., None]:
    """The command `function(session, ...)` with the shared options added to its own."""
    shared = inspect.signature(take_options, eval_str=True).parameters
    _, *own = inspect.signature(function, eval_str=True).parameters.values()

    @functools.wraps(function)
    def command(**options: Any) -> None:
        ctx = options["ctx"]
        take_options(**{name: options.pop(name) for name in shared})
        function(ctx.obj, **options)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own, *shared.values())
    ]
    # typer reads a command's options from these two.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
