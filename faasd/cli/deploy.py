"""`faasd deploy`: a folder becomes a function that serves."""

from __future__ import annotations

import contextlib
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from faasd.cli.printing import print_json, say
from faasd.cli.session import Session

if TYPE_CHECKING:
    from faasd.client import Progress

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder with function.toml.")]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Instead of the name in function.toml.")
]


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Instead of a value in function.toml, e.g. limits.timeout_s=5; may be repeated.",
    ),
]


def deploy(session: Session, folder: Folder, name: Name = None, settings: Settings = None) -> None:
    """Deploy the function in DIR, and wait until it serves."""
    from faasd.client.answers import plain

    with session.connect() as client, _progress(session) as tell:
        function = client.deploy(folder, name, tell, settings=_settings(settings or []))
    if session.json:
        print_json(plain(function))
        return
    say(f"{function.name} serves revision {function.revision} at")
    print(f"{client.url}{function.url}" if function.url.startswith("/") else function.url)


def _settings(given: list[str]) -> dict[str, Any]:
    """Values in TOML's notation; what is none of it is a string."""
    found: dict[str, Any] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{one!r} is not KEY=VALUE.", param_hint="--set")
        try:
            found[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


@contextlib.contextmanager
def _progress(session: Session) -> Iterator[Callable[[Progress], None]]:
    """Where the steps go: nowhere with --json, a live line on a terminal, else plain lines."""
    if session.json:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _live_line() as tell:
            yield tell
    else:
        yield lambda step: say(_line(step))


@contextlib.contextmanager
def _live_line() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    latest: list[Progress] = []

    def tell(step: Progress) -> None:
        if latest and latest[0].stage != step.stage:
            console.print(Text(_line(latest[0]), style="dim"))
        latest[:] = [step]
        status.update(Text(_line(step)))

    with console.status("") as status:
        yield tell


def _line(step: Progress) -> str:
    return f"{step.stage}: {step.detail}" if step.detail else step.stage
