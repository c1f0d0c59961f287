"""What is simulated of a function: its profile, the steps of its starts, and how long it runs.

A profile file is JSON. Each function of it has `kind` and the figures that go with that: `processes`
(whole processes that share nothing) and `forks` (forks of a template) take the arguments of the functions of
these names in `faasd/policies/preloading/levels.py`; `stages` gives the levels one by one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from faasd.policies.preloading import levels
from faasd.policies.preloading.levels import Level, Profile, Stage
from faasd.policies.queueing.discipline import sharing
from loadgen.errors import UsageError

SANDBOX, LIBS, LOAD = 0, 1, 2
"""Phases of a start, as places in `PHASES_OF_A_START`."""
PHASES_OF_A_START = ("sandbox", "libs", "load")

REFERENCES = ("forks", "processes")
"""Shipped with the package: what `--profiles` takes besides a file."""

LAWS = ("lognormal", "exponential")


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a start: first it waits, then it computes."""

    phase: int
    waits_s: float
    computes_s: float


@dataclass(frozen=True, slots=True)
class Model:
    """One function. `exec_cv` is the coefficient of variation of its run times.

    `computes` is the share of a run that it spends computing; the rest it waits, and needs no
    processor. `most` bounds its instances on a node, `queue` what may wait there.
    """

    profile: Profile
    exec_cv: float = 0.3
    law: str = "lognormal"
    computes: float = 1.0
    most: int = 8
    queue: int = 1000
    split: tuple[Step, ...] = ()
    """How the way from the floor to a template divides, where that is one stage."""
    _steps: dict[tuple[Level, Level], tuple[Step, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    @property
    def template(self) -> Level:
        """The level of a template that is ready; only with forks."""
        return self.profile.stage(Level.RESIDENT).level

    @property
    def hop_s(self) -> float:
        """What a call waits for even where an instance is idle."""
        return self.profile.stage(Level.INSTANCE).start_s

    def at_once(self, cores: float) -> int:
        """Instances that a worker has at once, as it decides: more than cores only if runs differ."""
        if self.computes < 0.5:
            return self.most
        return sharing(self.exec_cv**2, max(1, int(cores)), limit=self.most)

    def steps(self, since: Level, level: Level) -> tuple[Step, ...]:
        """The way from one level to another."""
        found = self._steps.get((since, level))
        if found is None:
            stages = [one for one in self.profile.stages[1:] if since < one.level <= level]
            found = tuple(step for one in stages for step in self._steps_of(one))
            self._steps[since, level] = found
        return found

    def _steps_of(self, stage: Stage) -> tuple[Step, ...]:
        forks = self.profile.forks
        if self.split and stage.level > Level.LAYER and stage is self.profile.stages[1]:
            return self.split
        phase = LOAD
        if stage.level is Level.SANDBOX or (forks and stage.level is Level.INSTANCE):
            phase = SANDBOX
        elif stage.level <= Level.LAYER:
            phase = LIBS
        computes_s = min(stage.load_s, stage.load_cpu_s)
        return (Step(phase, stage.load_s - computes_s, computes_s),)

    def draw(self) -> Callable[[Random], float]:
        """What draws run times."""
        mean_s, cv = self.profile.exec_s, self.exec_cv
        if self.law == "exponential":
            return lambda rng: rng.expovariate(1.0) * mean_s
        if not cv:
            return lambda rng: mean_s  # noqa: ARG005
        deviation = math.sqrt(math.log1p(cv * cv))
        middle = mean_s / math.sqrt(1.0 + cv * cv)
        exp = math.exp
        return lambda rng: middle * exp(deviation * rng.gauss(0.0, 1.0))


def with_own_figures(model: Model, duration_ms: float | None, memory_mb: float | None) -> Model:
    """The same function with what the trace tells of it."""
    profile = model.profile
    if duration_ms is not None:
        profile = replace(profile, exec_s=max(1e-6, duration_ms / 1000))
    if memory_mb is not None and not profile.forks:
        stages = tuple(
            replace(one, private_mb=memory_mb)
            if one.level is Level.INSTANCE
            else replace(one, private_mb=min(one.private_mb, memory_mb))
            for one in profile.stages
        )
        profile = replace(profile, stages=stages, limit_mb=memory_mb)
    return replace(model, profile=profile)


# Profile files


def read_profiles(choice: str) -> dict[str, Model]:
    """The functions of a profile file, or of a reference by its name. Raises UsageError."""
    if choice in REFERENCES:
        name = f"{choice}.json"
        return parse(
            json.loads(files("loadgen.simulation").joinpath(name).read_text("utf-8")), name
        )
    path = Path(choice)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"There is no profile file {choice}; name one, or a reference: {', '.join(REFERENCES)}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The profiles {choice} cannot be read ({error}).") from None
    except ValueError as error:
        raise UsageError(f"The profiles {choice} are not JSON ({error}).") from None
    return parse(found, choice)


def parse(found: Any, source: str) -> dict[str, Model]:
    functions = found.get("functions") if isinstance(found, dict) else None
    if not isinstance(functions, dict) or not functions:
        raise UsageError(
            f'{source} has no functions; expected {{"functions": {{NAME: {{"kind": "forks", ...}}}}}}.'
        )
    common = found.get("common", {})
    models: dict[str, Model] = {}
    for name, figures in functions.items():
        if not isinstance(figures, dict) or not isinstance(common, dict):
            raise UsageError(f"{source}, function {name!r}: expected an object of figures.")
        try:
            models[name] = _model(name, {**common, **figures})
        except (TypeError, ValueError, KeyError) as error:
            raise UsageError(f"{source}, function {name!r}: {_told(error)}.") from None
    return models


def _told(error: Exception) -> str:
    text = str(error)
    # What Python says of arguments names functions of ours.
    return text.partition("() ")[2] or text if isinstance(error, TypeError) else text


_OURS = ("exec_cv", "law", "computes", "most", "queue")


def _model(name: str, figures: Mapping[str, Any]) -> Model:
    given = dict(figures)
    kind = given.pop("kind", None)
    ours = {key: given.pop(key) for key in _OURS if key in given}
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected {', '.join(KINDS)}")
    for key, value in {**given, **ours}.items():
        _check(key, value)
    return KINDS[kind](name, given, partial(Model, **ours))


def _check(key: str, value: Any) -> None:
    if key == "law" and value not in LAWS:
        raise ValueError(f"law is {value!r}; expected {', '.join(LAWS)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key.endswith(("_s", "_mb")) and not number:
        raise ValueError(f"{key} is {value!r}; expected a number of at least 0")
    if number and not 0 <= value < math.inf:
        raise ValueError(f"{key} is {value}; expected a number of at least 0")
    if key in {"most", "queue"} and not (number and value >= 1 and value == int(value)):
        raise ValueError(f"{key} is {value!r}; expected a whole number of at least 1")
    if key == "exec_s" and not (number and value > 0):
        raise ValueError(f"exec_s is {value!r}; expected seconds above 0")
    if key == "computes" and not (number and value <= 1):
        raise ValueError(f"computes is {value!r}; expected a share from 0 to 1")


def _processes(name: str, given: dict[str, Any], model: Callable[..., Model]) -> Model:
    del name
    return model(levels.processes(**given))


def _forks(name: str, given: dict[str, Any], model: Callable[..., Model]) -> Model:
    """Weights are the function's own unless it says with whom it shares them."""
    if given.get("weights_mb"):
        given.setdefault("weights", name)
    profile = levels.forks(**given)
    split = (
        Step(SANDBOX, given["floor_s"], 0.0),
        Step(LIBS, 0.0, given["import_s"]),
        Step(LOAD, 0.0, given["load_s"]),
    )
    return model(profile, split=split)


def _stages(name: str, given: dict[str, Any], model: Callable[..., Model]) -> Model:
    del name
    stages = tuple(_stage(one) for one in given.pop("stages"))
    known = {one.name for one in fields(Profile) if one.init}
    if unknown := given.keys() - known:
        raise ValueError(f"{', '.join(sorted(unknown))} is not known of a profile")
    return model(Profile(stages, **given))


def _stage(given: Mapping[str, Any]) -> Stage:
    figures = dict(given)
    level = figures.pop("level")
    try:
        known = Level(level) if isinstance(level, int) else Level[str(level).upper()]
    except (KeyError, ValueError):
        names = ", ".join(one.name.lower() for one in Level)
        raise ValueError(f"level is {level!r}; expected {names}") from None
    shared = tuple((str(key), float(size_mb)) for key, size_mb in figures.pop("shared", ()))
    return Stage(known, shared=shared, **figures)


KINDS: dict[str, Callable[[str, dict[str, Any], Callable[..., Model]], Model]] = {
    "processes": _processes,
    "forks": _forks,
    "stages": _stages,
}
