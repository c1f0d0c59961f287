"""`faasd ls`, `rm`, `revisions`, `rollback` and `logs`: what is deployed and what it prints."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from faasd.cli.printing import json_text, moment, print_json, print_table, say
from faasd.cli.session import Session

if TYPE_CHECKING:
    from faasd.client import Function, LogLine

Name = Annotated[str, typer.Argument(metavar="NAME", help="The function's name.")]
Revision = Annotated[
    str | None, typer.Argument(metavar="[REV]", help="The revision; else the one before.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines as they come.")]
Tail = Annotated[
    int, typer.Option("--tail", min=0, metavar="N", help="Begin with the last N lines.")
]


def ls(session: Session) -> None:
    """List the functions."""
    from faasd.client.answers import plain

    with session.connect() as client:
        functions = client.functions()
    if session.json:
        print_json({"functions": plain(functions)})
    elif functions:
        print_table(
            ("NAME", "REVISION", "RUNTIME", "IDLE", "BUSY", "QUEUED", "MB", "CREATED"),
            [_row(function) for function in functions],
        )
    else:
        say("There is no function yet; deploy one with `faasd deploy DIR`.")


def rm(session: Session, name: Name) -> None:
    """Remove a function; what runs is finished."""
    with session.connect() as client:
        client.remove(name)
    if session.json:
        print_json({"removed": name})
    else:
        say(f"{name} is removed.")


def revisions(session: Session, name: Name) -> None:
    """List a function's revisions."""
    from faasd.client.answers import plain

    with session.connect() as client:
        found = client.function(name).revisions
    if session.json:
        print_json({"revisions": plain(found)})
        return
    print_table(
        ("REVISION", "CREATED", "ACTIVE"),
        [(one.revision, moment(one.created_at), "yes" if one.active else "") for one in found],
    )


def rollback(session: Session, name: Name, revision: Revision = None) -> None:
    """Make an earlier revision the active one."""
    from faasd.client.answers import plain

    with session.connect() as client:
        function = client.rollback(name, revision)
    if session.json:
        print_json(plain(function))
    else:
        say(f"{function.name} serves revision {function.revision}.")


def logs(session: Session, name: Name, follow: Follow = False, tail: Tail = 100) -> None:
    """Print what a function printed."""
    from faasd.client.answers import plain

    with session.connect() as client:
        for line in client.logs(name, follow=follow, tail=tail):
            text = json_text(plain(line), pretty=False) if session.json else _log_text(line)
            print(text, flush=follow)


def _row(function: Function) -> tuple[object, ...]:
    return (
        function.name,
        function.revision,
        function.runtime,
        function.instances.idle,
        function.instances.busy + function.instances.starting,
        function.queued,
        float(function.memory_mb),
        moment(function.created_at),
    )


def _log_text(line: LogLine) -> str:
    stamp = datetime.fromtimestamp(line.ts, UTC).isoformat(" ", "milliseconds")
    mark = "!" if line.stream == "stderr" else " "
    return f"{stamp.removesuffix('+00:00')} {line.revision} {line.instance} {mark} {line.line}"
