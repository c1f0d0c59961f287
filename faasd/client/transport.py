"""The client's one HTTP session: sends requests, and turns every failure into an error of ours.

Owned by one event loop. Knows the contract's problem responses, and nothing of its calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from faasd.client import bodies
from faasd.client.items import json_object
from faasd.client.target import Target
from faasd.errors import BadRequest, DeadlineExceeded, FaasdError, Unavailable, from_problem

CONNECT_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 60.0


class Unreachable(Unavailable):
    """No controller answers at the address."""

    default_remedy = "Start it with `faasd up`, or name another address with --url or FAASD_URL."


class Transport:
    """An HTTP session that is opened by its first request. Not thread-safe."""

    def __init__(self, target: Target, timeout_s: float | None) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The JSON object that a control call answers."""
        options.setdefault("timeout_s", self._timeout_s or CONTROL_TIMEOUT_S)
        async with self.request(method, path, **options) as response:
            return await self.object_of(response)

    async def object_of(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The JSON object in a control call's response; empty when there is no body."""
        body = await response.read()
        if response.ok and not body:
            return {}
        try:
            value = json.loads(body) if response.ok else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self.foreign(response)
        return value

    def foreign(self, response: aiohttp.ClientResponse) -> FaasdError:
        """The error for a response that no controller gives."""
        return Unreachable(
            f"{self.target.url} answered {response.status} with {response.content_type}: "
            "that is not a faasd controller.",
            remedy="Name the controller's address with --url or FAASD_URL.",
        )

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, timeout_s: float | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response that is no problem of faasd's; its body is still to be read.

        Raises the error that a problem response describes, Unreachable when nothing answers, and
        DeadlineExceeded after `timeout_s`, which bounds the reading of the body too.
        """
        # `encoded` keeps yarl from folding what `segment` has quoted.
        url = URL(self.target.url + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        # Redirects are not followed: the key is for this address alone.
        options |= {"timeout": timeout, "allow_redirects": False}
        with self._translated(timeout_s):
            async with self._opened().request(method, url, **options) as response:
                await _raise_problem(response)
                yield response

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # How many requests run at once is the caller's to bound: a limit here would only hide
            # waiting in front of the controller's own queue.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), headers=self.target.headers()
            )
        return self._session

    @contextmanager
    def _translated(self, timeout_s: float | None) -> Iterator[None]:
        url = self.target.url
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(f"Nothing answers at {url} ({_reason(error)}).") from None
        except TimeoutError:
            limit = "in time" if timeout_s is None else f"within {timeout_s:g} s"
            raise DeadlineExceeded(
                f"There was no answer from {url} {limit}.",
                remedy="Allow more time: timeout_s of the client, or --deadline-ms.",
            ) from None
        except aiohttp.ClientPayloadError:
            raise Unavailable(
                f"The answer of {url} broke off before its end.",
                remedy="See `faasd logs` for the function and the controller's log for itself.",
            ) from None
        except aiohttp.ClientError as error:
            if isinstance(error.__cause__, FaasdError):
                # An error of ours in the making of the request's body comes wrapped.
                raise error.__cause__ from None
            raise Unavailable(f"The connection to {url} failed: {_reason(error)}.") from None


def segment(text: str) -> str:
    """A value as one part of a path. Raises BadRequest when it cannot be one."""
    if text in {"", ".", ".."}:
        raise BadRequest(f"{text!r} names nothing.", remedy="Give a name or an id.")
    return quote(text, safe="")


async def _raise_problem(response: aiohttp.ClientResponse) -> None:
    if response.content_type != bodies.PROBLEM:
        return
    problem = json_object(await response.read())
    # A function may return problem objects of its own; they are results.
    if not str(problem.get("type", "")).startswith("urn:faasd:error:"):
        return
    retry_after = response.headers.get("Retry-After", "")
    if retry_after.isdigit():
        problem.setdefault("retry_after_s", float(retry_after))
    error = from_problem(problem)
    error.extra["request_id"] = problem.get("request_id")
    raise error


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        code = error.os_error.errno
        # asyncio words a refused connection its own way; name resolution has codes below zero.
        words = os.strerror(code) if code is not None and code > 0 else error.os_error.strerror
        return (words or str(error.os_error)).lower()
    return str(error) or type(error).__name__
