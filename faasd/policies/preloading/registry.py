"""The policies by name, and how one is chosen: `fixed`, or `fixed:idle_s=600,keeps=sandbox`."""

from __future__ import annotations

import inspect
from typing import Any

from faasd.policies.preloading.fixed import Fixed
from faasd.policies.preloading.greedy_dual import GreedyDual
from faasd.policies.preloading.histogram import Histogram
from faasd.policies.preloading.instainfer import InstaInfer, NoPredictor, NoScheduler, SelfOnly
from faasd.policies.preloading.levels import Level
from faasd.policies.preloading.loads import Bounds
from faasd.policies.preloading.none import Nothing
from faasd.policies.preloading.pagurus import Pagurus
from faasd.policies.preloading.policy import Policy
from faasd.policies.preloading.rainbowcake import RainbowCake
from faasd.policies.preloading.worth import Worth

POLICIES: dict[str, type[Policy]] = {
    one.name: one
    for one in (
        Worth,
        Nothing,
        Fixed,
        Histogram,
        GreedyDual,
        Pagurus,
        RainbowCake,
        InstaInfer,
        NoPredictor,
        NoScheduler,
        SelfOnly,
    )
}
DEFAULT = Worth.name


def make(choice: str = DEFAULT, bounds: Bounds | None = None) -> Policy:
    """A policy by its name and options. Raises ValueError with what there is to choose.

    `bounds` are for those that load ahead of requests.
    """
    name, _, text = choice.strip().partition(":")
    policy = POLICIES.get(name.strip())
    if policy is None:
        raise ValueError(f"there is no policy {name!r}; choose one of {', '.join(POLICIES)}")
    chosen = _options(policy, text)
    if bounds is not None and "bounds" in inspect.signature(policy).parameters:
        chosen["bounds"] = bounds
    return policy(**chosen)


def options(policy: type[Policy]) -> dict[str, Any]:
    """The options of a policy that can be written as text, with their defaults."""
    parameters = inspect.signature(policy).parameters.values()
    return {one.name: one.default for one in parameters if _parser(one.default) is not None}


def _options(policy: type[Policy], text: str) -> dict[str, Any]:
    known = options(policy)
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, given, value = part.partition("=")
        name = name.strip()
        if not given or name not in known:
            there = ", ".join(known) or "none"
            raise ValueError(f"{policy.name} has no option {part!r}; its options: {there}")
        parse = _parser(known[name])
        assert parse is not None
        try:
            found[name] = parse(value.strip())
        except (ValueError, KeyError):
            raise ValueError(f"{value!r} is no value for {name} of {policy.name}") from None
    return found


def _parser(default: Any) -> Any:
    match default:
        case bool():
            return _truth
        case Level():
            return _level
        case int() | float() | str():
            return type(default)
    return None


def _truth(text: str) -> bool:
    return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]


def _level(text: str) -> Level:
    return Level[text.upper()]
