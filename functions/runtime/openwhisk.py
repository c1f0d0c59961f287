"""Functions as OpenWhisk calls them: `main(args)` takes a dict and returns one.

The caller's JSON object becomes `args`; the activation is described in `__OW_*` variables of the
environment, anew for each. A result with `error` is an application error; one with `statusCode` is
the response of a web action.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import inspect
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from . import codec
from .context import Context, Response
from .function import Function, attribute_of

_APPLICATION_ERROR = 502
_TEXT_TYPES = ("json", "xml", "javascript", "x-www-form-urlencoded")


def locate(config: dict[str, Any]) -> Function:
    """Import the action's module. Raises what the import raises, AttributeError, TypeError."""
    module_name, _, _attribute = config["handler"].partition(":")
    if module_name == "__main__":
        _import_main(config["code"])
    # No hook is taken for its name: a helper of the action may happen to be called `load`.
    action = attribute_of(config["handler"])
    load = attribute_of(config["load"]) if config["load"] else None
    if inspect.iscoroutinefunction(action) or inspect.isgeneratorfunction(action):
        raise TypeError(f"{config['handler']}: an OpenWhisk action is a plain function, main(args)")
    return Function(config, _as_handler(action, config), load, None)


def _import_main(folder: str) -> None:
    """`__main__.py` of the code, under the name that is the zygote's own."""
    path = os.path.join(folder, "__main__.py")
    spec = importlib.util.spec_from_file_location("__main__", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["__main__"] = module
    spec.loader.exec_module(module)


def _as_handler(action: Callable[[Any], Any], config: dict[str, Any]) -> Callable[..., Any]:
    def handle(event: Any, context: Context) -> Response:
        os.environ.update(_activation(config, context))
        return response(action(arguments(event)))

    return handle


def arguments(event: Any) -> dict[str, Any]:
    """What the action gets. Raises BadEvent."""
    if event is None:
        return {}
    if not isinstance(event, dict):
        raise codec.BadEvent(
            "An OpenWhisk action takes a JSON object, sent as application/json, "
            f"not {_kind_of(event)}."
        )
    return event


def response(result: Any) -> Response:
    """The reply that a result stands for. Raises BadResult."""
    if not isinstance(result, dict):
        raise codec.BadResult(f"An OpenWhisk action returns a dict, not {_kind_of(result)}.")
    if "statusCode" in result:
        return _web_response(result)
    return Response(result, status=_APPLICATION_ERROR if "error" in result else 200)


def _web_response(result: dict[str, Any]) -> Response:
    try:
        status = int(result["statusCode"])
    except (TypeError, ValueError):
        raise codec.BadResult(f"statusCode is {result['statusCode']!r:.80}, no status.") from None
    if not 200 <= status <= 599:
        raise codec.BadResult(f"statusCode {status} must lie between 200 and 599.")
    given = result.get("headers") or {}
    if not isinstance(given, dict):
        raise codec.BadResult(f"headers must be a dict, not {_kind_of(given)}.")
    headers = {str(name): _header(value) for name, value in given.items()}
    content_type = next((v for name, v in headers.items() if name.lower() == "content-type"), None)
    headers = {name: v for name, v in headers.items() if name.lower() != "content-type"}
    body = result.get("body")
    if body is None:
        return Response(b"", content_type, status, headers)
    if isinstance(body, str):
        content_type = content_type or "text/html; charset=utf-8"
        return Response(_body(body, content_type), content_type, status, headers)
    return Response(body, content_type, status, headers)


def _header(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_header(one) for one in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _body(text: str, content_type: str) -> str | bytes:
    """Bodies of types that are no text travel as base64."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind.endswith(_TEXT_TYPES):
        return text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise codec.BadResult(f"A body of type {kind} must be base64 ({error}).") from None


def _activation(config: dict[str, Any], context: Context) -> dict[str, str]:
    namespace, _, name = context.function.rpartition("/")
    left = config["timeout_s"]
    if context.remaining_s is not None:
        left = min(left, context.remaining_s)
    return {
        "__OW_NAMESPACE": namespace,
        "__OW_ACTION_NAME": f"/{namespace}/{name}",
        "__OW_ACTION_VERSION": context.revision,
        "__OW_ACTIVATION_ID": context.request_id,
        "__OW_TRANSACTION_ID": context.request_id,
        "__OW_DEADLINE": str(int((time.time() + left) * 1000)),
    }


def _kind_of(value: Any) -> str:
    return {str: "text", list: "a list", bytes: "bytes", type(None): "None"}.get(
        type(value), type(value).__name__
    )
