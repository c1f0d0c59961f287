"""The `faasd` command: its table of commands, and the one place where failures end.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no controller answers, 130 interrupted. Data goes to
stdout, messages and progress to stderr. A command's module is imported only when it is called for,
and imports what is heavy inside its function, so that `faasd --help` is quick.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import typer

from faasd.cli import failures
from faasd.cli.session import Session, remote, take_options
from faasd.errors import FaasdError


@dataclass(frozen=True, slots=True)
class Command:
    """A command's words, its function as "module:function", and its group in the help.

    `is_remote` commands get a session with the shared options as their first argument.
    """

    words: str
    function: str
    group: str
    is_remote: bool = True


COMMANDS = (
    Command("up", "faasd.cli.up:up", "Daemons", is_remote=False),
    Command("controller", "faasd.cli.controller:controller", "Daemons", is_remote=False),
    Command("worker", "faasd.cli.worker:worker", "Daemons", is_remote=False),
    Command("deploy", "faasd.cli.deploy:deploy", "Functions"),
    Command("invoke", "faasd.cli.invoke:invoke", "Functions"),
    Command("ls", "faasd.cli.functions:ls", "Functions"),
    Command("rm", "faasd.cli.functions:rm", "Functions"),
    Command("revisions", "faasd.cli.functions:revisions", "Functions"),
    Command("rollback", "faasd.cli.functions:rollback", "Functions"),
    Command("logs", "faasd.cli.functions:logs", "Functions"),
    Command("invocations", "faasd.cli.invocations:invocations", "Asynchronous invocations"),
    Command("redrive", "faasd.cli.invocations:redrive", "Asynchronous invocations"),
    Command("status", "faasd.cli.cluster:status", "Cluster"),
    Command("drain", "faasd.cli.cluster:drain", "Cluster"),
    Command("keys create", "faasd.cli.keys:create", "Cluster"),
    Command("keys ls", "faasd.cli.keys:ls", "Cluster"),
    Command("keys rm", "faasd.cli.keys:rm", "Cluster"),
    Command("keys bootstrap", "faasd.cli.bootstrap:bootstrap", "Cluster", is_remote=False),
    Command("version", "faasd.cli.version:version", "Other"),
)


def main(argv: Sequence[str] | None = None, commands: Iterable[Command] = COMMANDS) -> int:
    """Run one command; the exit code."""
    _escape_what_cannot_be_written()
    session = Session()
    try:
        argv = sys.argv[1:] if argv is None else argv
        code = _run(build(_called_for(argv, list(commands))), argv, session)
        sys.stdout.flush()
    except FaasdError as error:
        return failures.report(error, session)
    except KeyboardInterrupt:
        return failures.INTERRUPTED
    except BrokenPipeError:
        # The reader left, as `head` does; at exit Python would complain about the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failures.FAILED
    except Exception as error:  # Boundary of the process: no traceback of ours reaches the user.
        return failures.report_defect(error, session)
    return code


def build(commands: Iterable[Command]) -> typer.Typer:
    """The typer application of these commands."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(take_options)
    groups = {"": app}
    for command in commands:
        group, _, name = command.words.rpartition(" ")
        if group not in groups:
            groups[group] = typer.Typer(no_args_is_help=True, help="API keys.")
            app.add_typer(groups[group], name=group, rich_help_panel=command.group)
        function = _resolve(command.function)
        panel = None if group else command.group
        groups[group].command(name, rich_help_panel=panel)(
            remote(function) if command.is_remote else function
        )
    return app


def _called_for(argv: Sequence[str], commands: list[Command]) -> list[Command]:
    """The commands whose words stand on the line, so that no other module is imported; else all."""
    return [one for one in commands if one.words.split()[0] in argv] or commands


def _resolve(path: str) -> Callable[..., None]:
    module, _, name = path.partition(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), name)
    return function


def _run(app: typer.Typer, argv: Sequence[str], session: Session) -> int:
    try:
        app(args=argv, prog_name="faasd", obj=session)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _escape_what_cannot_be_written() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
