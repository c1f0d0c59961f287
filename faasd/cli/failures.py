"""How a command that failed ends: what is printed on stderr, and the exit code."""

from __future__ import annotations

import traceback

from faasd.cli.printing import json_text, say
from faasd.cli.session import Session
from faasd.errors import FaasdError, InternalError, Unavailable

FAILED = 1
UNREACHABLE = 3
INTERRUPTED = 130


def report(error: FaasdError, session: Session) -> int:
    """Print what the user's code printed and its traceback, the error and its remedy; the exit code."""
    if session.json:
        say(json_text(error.to_problem(), pretty=False))
        return _exit_code(error)
    for shown in (error.extra.get("output"), error.traceback):
        if shown:
            say(str(shown).rstrip() + "\n")
    say(f"Error: {error.detail or error.title}")
    if error.remedy:
        say(error.remedy)
    return _exit_code(error)


def report_defect(error: Exception, session: Session) -> int:
    """Print an exception that is nobody's fault but faasd's; the exit code."""
    if session.debug:
        say("".join(traceback.format_exception(error)))
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return report(
        InternalError(
            f"faasd failed where it must not ({what}).",
            remedy="This is a defect of faasd; `faasd --debug ...` shows the traceback to report.",
        ),
        session,
    )


def _exit_code(error: FaasdError) -> int:
    if not isinstance(error, Unavailable):
        return FAILED
    from faasd.client import Unreachable

    return UNREACHABLE if isinstance(error, Unreachable) else FAILED
