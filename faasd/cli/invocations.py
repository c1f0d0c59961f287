"""`faasd invocations` and `redrive`: what was queued, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from faasd.cli.printing import moment, print_json, print_table, say
from faasd.cli.session import Session

if TYPE_CHECKING:
    from faasd.client import Invocation

Status = Annotated[
    str | None,
    typer.Option(
        "--status", metavar="STATUS", help="Only queued, running, succeeded or dead ones."
    ),
]
OfFunction = Annotated[
    str | None, typer.Option("--function", metavar="NAME", help="Only those of this function.")
]
Limit = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most so many.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The invocation's id.")]


def invocations(
    session: Session, status: Status = None, function: OfFunction = None, limit: Limit = 100
) -> None:
    """List asynchronous invocations, newest first."""
    from faasd.client.answers import plain

    with session.connect() as client:
        found = client.invocations(status, function, limit)
    if session.json:
        print_json({"invocations": plain(found)})
        return
    print_table(
        ("ID", "FUNCTION", "STATUS", "ATTEMPTS", "CREATED", "ERROR"), [_row(one) for one in found]
    )


def redrive(session: Session, invocation_id: Id) -> None:
    """Queue a dead invocation again."""
    with session.connect() as client:
        client.redrive(invocation_id)
    if session.json:
        print_json({"id": invocation_id, "status": "queued"})
    else:
        say(f"{invocation_id} is queued again.")


def _row(one: Invocation) -> tuple[object, ...]:
    error = one.error["detail"] if one.error else ""
    return (one.id, one.function, one.status, len(one.attempts), moment(one.created_at), error)
