"""`faasd keys`: who may do what."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from faasd.cli.printing import moment, print_json, print_table, say
from faasd.cli.session import Session


class Role(enum.StrEnum):
    """What a key allows; each role includes the ones before it."""

    INVOKE = "invoke"
    DEPLOY = "deploy"
    ADMIN = "admin"


Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")]
KeyRole = Annotated[Role, typer.Option("--role", help="What the key allows.")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `faasd keys ls` shows.")]


def create(session: Session, name: Name, role: KeyRole = Role.INVOKE) -> None:
    """Make a key of the namespace named with --namespace, else of `default`."""
    from faasd.client.answers import plain

    with session.connect() as client:
        made = client.create_key(name, role.value, session.namespace or "default")
    if session.json:
        print_json(plain(made))
        return
    say(f"Key {made.id} ({made.role} in {made.namespace}); it is shown this once:")
    print(made.key)


def ls(session: Session) -> None:
    """List the keys, without their secrets."""
    from faasd.client.answers import plain

    with session.connect() as client:
        keys = client.keys()
    if session.json:
        listed = [{**key, "key": None} for key in plain(keys)]
        print_json({"keys": listed})
        return
    print_table(
        ("ID", "NAME", "ROLE", "NAMESPACE", "CREATED"),
        [(key.id, key.name, key.role, key.namespace, moment(key.created_at)) for key in keys],
    )


def rm(session: Session, key_id: KeyId) -> None:
    """Delete a key; it is refused from then on."""
    with session.connect() as client:
        client.delete_key(key_id)
    if session.json:
        print_json({"removed": key_id})
    else:
        say(f"The key {key_id} is deleted.")
