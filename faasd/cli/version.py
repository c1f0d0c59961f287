"""`faasd version`."""

from __future__ import annotations

from faasd import __version__
from faasd.cli.printing import print_json
from faasd.cli.session import Session


def version(session: Session) -> None:
    """Print the version."""
    if session.json:
        print_json({"version": __version__})
    else:
        print(f"faasd {__version__}")
