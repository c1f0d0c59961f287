"""`faasd invoke`: one request to a function, in each of the ways there are."""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from faasd.cli.failures import FAILED
from faasd.cli.printing import json_text, print_json, say
from faasd.cli.session import Session
from faasd.errors import BadRequest

if TYPE_CHECKING:
    from faasd.client import Client, InvokeResult

BYTES = "application/octet-stream"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The function, or another endpoint.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        metavar="TEXT|@FILE|-",
        help="The body: this text, a file's content, or what comes on stdin.",
    ),
]
ContentType = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Of the body; else found from the text or the file's name."),
]
DeadlineMs = Annotated[
    int | None, typer.Option(min=1, metavar="MS", help="Give up after so many milliseconds.")
]
Asynchronous = Annotated[bool, typer.Option("--async", help="Queue it, and print its id.")]
Wait = Annotated[bool, typer.Option("--wait", help="With --async: wait for the result.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print items as the function yields them.")]
IdempotencyKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="Run once for this key, then repeat the result.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the start kind and timings.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result here.")
]


@dataclass(frozen=True, slots=True)
class Body:
    """A request body; None as its type means there is none."""

    content: bytes | None
    content_type: str | None


def invoke(
    session: Session,
    name: Name,
    data: Data = None,
    content_type: ContentType = None,
    deadline_ms: DeadlineMs = None,
    asynchronous: Asynchronous = False,
    wait: Wait = False,
    stream: Stream = False,
    idempotency_key: IdempotencyKey = None,
    verbose: Verbose = False,
    output: Output = None,
) -> None:
    """Invoke a function and print what it returns."""
    _check_ways(asynchronous=asynchronous, wait=wait, stream=stream, verbose=verbose)
    body = read_body(data)
    request: dict[str, Any] = {
        "value": body.content,
        "content_type": content_type or body.content_type,
        "deadline_s": None if deadline_ms is None else deadline_ms / 1000,
        "idempotency_key": idempotency_key,
    }
    with session.connect() as client:
        if stream:
            _stream(session, client, name, request, output)
            return
        if not asynchronous:
            result = client.invoke(name, **request)
        else:
            invocation_id = client.submit(name, **request)
            if not wait:
                _print_queued(session, invocation_id)
                return
            say_unless_json(session, f"Invocation {invocation_id} is queued.")
            result = client.result(invocation_id)
    if verbose:
        say(cost_line(result))
    _print_result(session, result, output)


def read_body(data: str | None) -> Body:
    """The body that -d describes. Raises BadRequest for a file that cannot be read."""
    if data is None:
        return Body(None, None)
    if data == "-":
        content = sys.stdin.buffer.read()
        return Body(content, guess_type(content))
    if data.startswith("@"):
        return _file_body(Path(data[1:]))
    content = data.encode("utf-8", "surrogateescape")
    return Body(content, guess_type(content))


def guess_type(content: bytes) -> str:
    """JSON if it is JSON, else text if it is UTF-8, else bytes."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return BYTES
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "text/plain; charset=utf-8"
    return "application/json"


def cost_line(result: InvokeResult) -> str:
    """What -v says of a result."""
    phases = ", ".join(f"{name} {ms:.1f} ms" for name, ms in result.timings.items())
    replayed = ", replayed" if result.replayed else ""
    return (
        f"{result.start_kind or 'unknown'} start on {result.worker or 'no worker'}, revision "
        f"{result.revision or 'unknown'}, request {result.request_id}{replayed}; {phases}"
    )


def say_unless_json(session: Session, text: str) -> None:
    if not session.json:
        say(text)


def _check_ways(*, asynchronous: bool, wait: bool, stream: bool, verbose: bool) -> None:
    if wait and not asynchronous:
        raise typer.BadParameter(
            "--wait needs --async; without it the result is waited for anyway."
        )
    if stream and asynchronous:
        raise typer.BadParameter("--stream and --async exclude each other.")
    if stream and verbose:
        raise typer.BadParameter("-v needs a whole result; leave out --stream.")


def _file_body(path: Path) -> Body:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadRequest(
            f"'{path}' cannot be read: {error.strerror}.",
            remedy="Name a readable file after the @ of -d.",
        ) from None
    return Body(content, mimetypes.guess_type(path.name)[0] or BYTES)


def _print_queued(session: Session, invocation_id: str) -> None:
    if session.json:
        print_json({"id": invocation_id, "status": "queued"})
    else:
        print(invocation_id)


def _stream(
    session: Session, client: Client, name: str, request: dict[str, Any], output: Path | None
) -> None:
    with _opened(output) as file:
        for item in client.stream(name, **request):
            file.write(_item_bytes(item, as_json=session.json))
            file.flush()


def _item_bytes(item: Any, *, as_json: bool) -> bytes:
    if as_json and isinstance(item, bytes):
        item = {"base64": base64.b64encode(item).decode()}
    elif isinstance(item, bytes):
        return item
    elif isinstance(item, str) and not as_json:
        return item.encode()
    return json_text(item, pretty=False).encode() + b"\n"


def _print_result(session: Session, result: InvokeResult, output: Path | None) -> None:
    if output is not None:
        with _opened(output) as file:
            file.write(result.body)
        say_unless_json(session, f"{len(result.body)} bytes are in '{output}'.")
    if session.json:
        print_json(_result_object(result, with_body=output is None))
    elif output is None:
        _print_body(result)
    if result.status >= 400:
        say_unless_json(session, f"The function answered with status {result.status}.")
        raise typer.Exit(FAILED)


def _result_object(result: InvokeResult, *, with_body: bool) -> dict[str, Any]:
    described = {
        "status": result.status,
        "content_type": result.content_type,
        "start": result.start_kind,
        "timings": result.timings,
        "worker": result.worker,
        "revision": result.revision,
        "request_id": result.request_id,
        "replayed": result.replayed,
    }
    if not with_body:
        return described
    value = result.value
    if isinstance(value, bytes):
        return {**described, "base64": base64.b64encode(value).decode()}
    return {**described, "value": value}


def _print_body(result: InvokeResult) -> None:
    from faasd.client import bodies

    terminal = sys.stdout.isatty()
    kind = bodies.media_type(result.content_type)
    readable = bodies.is_json(kind) or bodies.is_lines(kind) or kind.startswith("text/")
    if terminal and bodies.is_json(kind):
        print(json_text(result.value, pretty=True))
    elif terminal and not readable and result.body:
        say(f"The result is {len(result.body)} bytes of {kind or 'no type'}; -o FILE keeps them.")
    else:
        end = b"\n" if readable and not result.body.endswith(b"\n") else b""
        sys.stdout.buffer.write(result.body + end)
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    if output is None:
        yield sys.stdout.buffer
        return
    try:
        file = output.open("wb")
    except OSError as error:
        raise BadRequest(
            f"'{output}' cannot be written: {error.strerror}.", remedy="Name another file with -o."
        ) from None
    with file:
        yield file
