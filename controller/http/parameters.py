"""Reading what a request says beside its body: names in its address, its query, its headers."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from controller.http.app import CALLER
from faasd.errors import BadRequest, InvalidSpec
from faasd.spec import check_name


def name_of(text: str) -> str:
    """The name itself. Raises BadRequest when it is not one."""
    try:
        return check_name(text)
    except InvalidSpec as error:
        raise BadRequest(error.detail, remedy="Correct the name in the request.") from None


def full_name(request: web.Request, part: str = "name") -> str:
    """The function that the address names, as "namespace/name". Raises BadRequest."""
    return f"{request[CALLER].namespace}/{name_of(request.match_info[part])}"


def query_int(request: web.Request, name: str, *, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises BadRequest."""
    text = request.query.get(name)
    if text is None:
        return default
    readable = text.isascii() and text.isdigit() and len(text) <= 12
    if not readable or not least <= int(text) <= most:
        raise BadRequest(
            f"{name} = {text[:40]!r} is not accepted.",
            remedy=f"Use a whole number from {least} to {most}.",
        )
    return int(text)


def query_choice(request: web.Request, name: str, accepted: Collection[str]) -> str | None:
    """One of a few words of the query, or None. Raises BadRequest."""
    text = request.query.get(name)
    if text is not None and text not in accepted:
        raise BadRequest(
            f"{name} = {text[:40]!r} is not accepted.", remedy=f"Use one of {', '.join(accepted)}."
        )
    return text


def query_flag(request: web.Request, name: str) -> bool:
    """A yes or no of the query, no without it. Raises BadRequest."""
    return query_choice(request, name, ("1", "true", "0", "false")) in {"1", "true"}


def header_text(value: str) -> str:
    """A header's value as text: bytes that are not UTF-8 are read as Latin-1.

    aiohttp keeps them as lone surrogates, which can neither be stored nor sent on.
    """
    if value.isascii():
        return value
    raw = value.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
