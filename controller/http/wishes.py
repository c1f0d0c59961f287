"""How a caller wants an invocation to be scheduled: the headers that say so, and who may say what."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from controller.auth import Caller
from faasd.errors import BadRequest, Forbidden
from faasd.spec import HIGHEST_PRIORITY, LOWEST_PRIORITY

_WORD = re.compile(r"[!-~]{1,128}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,3}")
_LONGEST_SLO_MS = 1e9


@dataclass(frozen=True, slots=True)
class Wishes:
    """None where nothing was said: the function's spec or the caller's key decide then."""

    priority: int | None = None
    slo_s: float | None = None
    tenant: str | None = None
    session: str = ""

    def of(self, caller: Caller, priority: int) -> tuple[float | None, int, str, str]:
        """SLO, priority, tenant and session of an invocation; `priority` is the function's.

        Raises Forbidden: a caller may step back on its own account, not before others.
        """
        if self.priority is not None:
            if self.priority > priority and caller.role == "invoke":
                raise Forbidden(
                    f"Faasd-Priority: {self.priority} is more than the function's {priority}, "
                    'which needs a key of the role "deploy".'
                )
            priority = self.priority
        tenant = caller.tenant
        if self.tenant is not None:
            if caller.role != "admin":
                raise Forbidden('Faasd-Tenant needs a key of the role "admin".')
            tenant = self.tenant
        return self.slo_s, priority, tenant, self.session


NONE = Wishes()


def wishes(field: Callable[[str], str | None]) -> Wishes:
    """What the headers say; `field` gives one by its name. Raises BadRequest."""
    priority, slo = field("faasd-priority"), field("faasd-slo-ms")
    tenant, session = field("faasd-tenant"), field("faasd-session")
    if priority is slo is tenant is session is None:
        return NONE
    return Wishes(
        None if priority is None else _priority(priority),
        None if slo is None else _slo_s(slo),
        None if tenant is None else _word("Faasd-Tenant", tenant),
        "" if session is None else _word("Faasd-Session", session),
    )


def _priority(text: str) -> int:
    if _INTEGER.fullmatch(text) and LOWEST_PRIORITY <= int(text) <= HIGHEST_PRIORITY:
        return int(text)
    raise BadRequest(
        f"Faasd-Priority = {text[:40]!r} is not one.",
        remedy=f"Use a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}; more goes first.",
    )


def _slo_s(text: str) -> float:
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds <= _LONGEST_SLO_MS:
        raise BadRequest(
            f"Faasd-Slo-Ms = {text[:40]!r} is not a number of milliseconds above 0.",
            remedy="Send within what time you would like to be answered, e.g. `Faasd-Slo-Ms: 200`.",
        )
    return milliseconds / 1000


def _word(header: str, text: str) -> str:
    if _WORD.fullmatch(text):
        return text
    raise BadRequest(
        f"{header} is not one.", remedy="Use 1 to 128 printable ASCII characters without blanks."
    )
