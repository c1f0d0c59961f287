"""The platform as seen by a load generator: what is deployed there, and how one request is sent.

One aiohttp session without limit on connections; what is the same for all requests of an endpoint is made once.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from loadgen import payloads
from loadgen.errors import LoadgenError, UsageError
from loadgen.payloads import Payload
from loadgen.results import (
    CLIENT_TIMEOUT,
    CONNECTION_ERROR,
    INVALID_RESPONSE,
    NO_PHASES,
    NO_START,
    PHASES,
    Phases,
    Reply,
)

LISTING_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint with what is posted to it."""

    endpoint: str
    payload: Payload


@asynccontextmanager
async def open_session(
    *, timeout_s: float, api_key: str | None
) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"User-Agent": "loadgen", "Accept-Encoding": "identity"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=None),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
    ) as session:
        yield session


async def deployed(session: aiohttp.ClientSession, url: URL) -> dict[str, Payload]:
    """The deployed functions by name, each with the payload that its spec suggests."""
    body = await _listing(session, url)
    try:
        found = {entry["name"]: entry.get("spec", {}).get("example") for entry in body["functions"]}
    except (KeyError, TypeError, AttributeError):
        raise LoadgenError(f"{url} does not answer GET /v1/functions as faasd does.") from None
    if not found:
        raise LoadgenError(f"No function is deployed at {url}; deploy one with `faasd deploy DIR`.")
    return {name: payloads.from_example(example, name) for name, example in found.items()}


async def _listing(session: aiohttp.ClientSession, url: URL) -> dict[str, Any]:
    try:
        async with session.get(
            url / "v1" / "functions", timeout=aiohttp.ClientTimeout(total=LISTING_TIMEOUT_S)
        ) as response:
            text = await response.text()
    except aiohttp.InvalidURL:
        raise UsageError(f"--url {url} is not a URL such as http://127.0.0.1:8080.") from None
    except TimeoutError:
        raise LoadgenError(
            f"{url} did not list its functions within {LISTING_TIMEOUT_S:g} s."
        ) from None
    except (aiohttp.ClientError, OSError) as error:
        raise LoadgenError(
            f"The platform at {url} cannot be reached ({_cause(error)}); start it with `faasd up`."
        ) from None
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if response.status != 200 or not isinstance(body, dict):
        problem = body if isinstance(body, dict) else {}
        said = " ".join(str(problem[key]) for key in ("detail", "remedy") if problem.get(key))
        raise LoadgenError(
            f"{url} answered GET /v1/functions with status {response.status}. {said}".rstrip()
        )
    return body


def _cause(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return str(error)


class HttpSender:
    """Sends invocations and says what became of each; raises nothing but cancellation.

    Targets are given by their place in the sequence.
    """

    def __init__(self, session: aiohttp.ClientSession, url: URL, targets: Sequence[Target]) -> None:
        self._session = session
        self._prepared = [
            (
                url / "invoke" / target.endpoint,
                {"Content-Type": target.payload.content_type},
                target.payload.body,
            )
            for target in targets
        ]

    async def send(self, target: int) -> Reply:
        url, headers, body = self._prepared[target]
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
        except TimeoutError:
            return Reply(CLIENT_TIMEOUT)
        except aiohttp.ClientResponseError:
            return Reply(INVALID_RESPONSE)
        except (aiohttp.ClientError, OSError):
            return Reply(CONNECTION_ERROR)
        return reply_of(response.status, response.headers, content)


def reply_of(
    status: int, headers: Mapping[str, str] | CIMultiDictProxy[str], content: bytes
) -> Reply:
    """A response, reduced to what is recorded of it."""
    return Reply(
        code="" if 200 <= status < 300 else _failure(status, headers, content),
        status=status,
        start=headers.get("faasd-start", NO_START),
        phases_ms=server_timing(headers.get("Server-Timing", "")),
        worker=headers.get("faasd-worker", ""),
        request_id=headers.get("faasd-request-id", ""),
    )


def server_timing(header: str) -> Phases:
    """The five phases of a Server-Timing header, in ms; NaN for one that is not there."""
    if not header:
        return NO_PHASES
    found: dict[str, float] = {}
    for metric in header.split(","):
        name, _, duration = metric.partition(";dur=")
        try:
            found[name.strip()] = float(duration)
        except ValueError:
            continue
    nan = float("nan")
    queue, sandbox, libs, load, execution = (found.get(phase, nan) for phase in PHASES)
    return (queue, sandbox, libs, load, execution)


def _failure(
    status: int, headers: Mapping[str, str] | CIMultiDictProxy[str], content: bytes
) -> str:
    """The code of a problem response; without one, the status."""
    if "json" in headers.get("Content-Type", ""):
        try:
            code = json.loads(content)["code"]
        except (ValueError, KeyError, TypeError):
            code = None
        if isinstance(code, str) and code:
            return code
    return f"http_{status}"
