"""The user's function: where its attributes are, how it wants to be called."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from . import codec
from .context import Context


class Function:
    """The handler and its hooks, found once in the template and inherited by every instance."""

    def __init__(
        self,
        config: dict[str, Any],
        handler: Callable[..., Any],
        load: Callable[..., Any] | None,
        attach: Callable[..., Any] | None,
        *,
        decode: Callable[[str, bytes], Any] = codec.decode,
        outlives: Callable[[int], bool] = lambda _status: True,
    ) -> None:
        """`decode` makes an event of a content type and a body. `outlives` says whether the
        template is of use after an instance that ended with this wait status.
        """
        self.config = config
        self.handler = handler
        self.decode = decode
        self.outlives = outlives
        self._load = load
        self._attach = attach
        self.state: Any = None

    @classmethod
    def locate(cls, config: dict[str, Any]) -> Function:
        """Import the function's module. Raises what the import raises, AttributeError, TypeError."""
        handler = attribute_of(config["handler"])
        module = sys.modules[config["handler"].partition(":")[0]]
        load = attribute_of(config["load"]) if config["load"] else getattr(module, "load", None)
        function = cls(config, handler, load, getattr(module, "attach", None))
        function.check()
        return function

    @property
    def style(self) -> str:
        """`async` where several invocations share a loop in one instance, else `sync`."""
        wants_loop = inspect.iscoroutinefunction(self.handler) or inspect.isasyncgenfunction(
            self.handler
        )
        return "async" if wants_loop or self.config["concurrency"] > 1 else "sync"

    def check(self) -> None:
        """Raises TypeError when the handler cannot be called as the spec says."""
        if self.config["batch"] > 1 and self.style == "async":
            raise TypeError(
                f"{self.config['handler']}: batching.max_size > 1 needs a plain function, "
                "def handle(events, contexts), not an async one"
            )

    def load(self, context: Context) -> None:
        if callable(self._load):
            self.state = self._load(context)

    def attach(self, context: Context) -> None:
        """After the fork: let the function bind its state to this process or its device.

        A model that is the whole state is moved to a GPU without being asked to.
        """
        if callable(self._attach):
            self.state = self._attach(self.state, context)
        elif context.device != "cpu" and _is_model(self.state):
            self.state = self.state.to(context.device)


def _is_model(state: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(state, torch.nn.Module)


def attribute_of(wanted: str) -> Callable[..., Any]:
    """What "module:attribute" names. Raises what the import raises, AttributeError."""
    module_name, _, name = wanted.partition(":")
    module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if not callable(found):
        have = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        listing = ", ".join(have[:20]) or "nothing callable"
        raise AttributeError(f"{wanted}: the module has no function {name!r}; it has {listing}")
    return found  # type: ignore[no-any-return]
