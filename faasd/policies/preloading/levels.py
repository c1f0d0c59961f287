"""How ready a function is on a node: levels, what each holds and saves, and the profile of a function.

Levels are cumulative in readiness, never in cost: a stage says what one place at that level takes
in memory, alone. Where instances are forks of a template, that stays beside them as a place of its
own, and an instance takes only what it has written since.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

Share = tuple[str, float]
"""What is there once per node however many hold it: its key, and megabytes."""


class Level(enum.IntEnum):
    """From nothing to a process that waits for its next call."""

    ABSENT = 0
    SANDBOX = 1
    """A bare sandbox."""
    LIBRARIES = 2
    """One that a process with the runtime's libraries belongs to, or is forked into in no time."""
    LAYER = 3
    """The requirements layer of the function is imported as well."""
    MAPPED = 4
    """A template: the module is imported, `load()` is done; the kernel may have dropped weights."""
    RESIDENT = 5
    """A template whose weights are in memory."""
    INSTANCE = 6
    """A process that can serve (on a GPU: attached to it)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A level of one function: what a place at this level takes, and how long a request waits.

    `start_s` is the time from here until a handler can begin. `load_s` and `load_cpu_s` are what it
    takes to come here from the stage before.
    """

    level: Level
    start_s: float
    private_mb: float = 0.0
    shared: tuple[Share, ...] = ()
    load_s: float = 0.0
    load_cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What is measured of a function. The first stage is its floor: what is there without a plan.

    `reserved_mb` is for platforms that book the whole limit of a sandbox whatever is in it; what is
    loaded into a sandbox of another function then takes nothing more.
    """

    stages: tuple[Stage, ...]
    exec_s: float = 0.1
    tenant: str = ""
    runtime: str = ""
    limit_mb: float = 0.0
    reserved_mb: float = 0.0
    forks: bool = False
    _by_level: tuple[Stage, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        levels = [one.level for one in self.stages]
        if not levels or levels != sorted(set(levels)):
            raise ValueError(
                f"stages must rise from a floor, not be {[str(one) for one in levels]}"
            )
        found: list[Stage] = []
        for level in Level:
            below = [one for one in self.stages if one.level <= level]
            found.append(below[-1] if below else self.stages[0])
        object.__setattr__(self, "_by_level", tuple(found))

    @property
    def floor(self) -> Stage:
        return self.stages[0]

    def stage(self, level: Level) -> Stage:
        """The highest stage that is not above this level; the floor for any below it."""
        return self._by_level[level]

    def saves_s(self, level: Level, over: Level = Level.ABSENT) -> float:
        """Seconds that a request waits less for a place at this level than for one at `over`."""
        by_level = self._by_level
        return max(0.0, by_level[over].start_s - by_level[level].start_s)

    def load_s(self, level: Level, since: Level = Level.ABSENT) -> float:
        """Seconds it takes to bring a place there, from the floor or from a level above it."""
        return sum(one.load_s for one in self.stages[1:] if since < one.level <= level)

    def load_cpu_s(self, level: Level, since: Level = Level.ABSENT) -> float:
        return sum(one.load_cpu_s for one in self.stages[1:] if since < one.level <= level)

    def takes(self, level: Level, *, hosted: bool = False) -> Stage:
        """What a place at this level takes of a node's memory, as a stage."""
        stage = self._by_level[level]
        if self.reserved_mb and stage.level > Level.ABSENT:
            return Stage(stage.level, stage.start_s, 0.0 if hosted else self.reserved_mb)
        return stage


def processes(
    *,
    sandbox_s: float,
    import_s: float,
    load_s: float,
    exec_s: float,
    memory_mb: float,
    sandbox_mb: float = 3.0,
    libraries_mb: float = 180.0,
    warm_s: float = 0.001,
    limit_mb: float = 0.0,
    reserved: bool = False,
    tenant: str = "",
    runtime: str = "",
) -> Profile:
    """A function whose instances are whole processes, which share nothing."""
    return Profile(
        stages=(
            Stage(Level.ABSENT, sandbox_s + import_s + load_s),
            Stage(Level.SANDBOX, import_s + load_s, sandbox_mb, (), sandbox_s, sandbox_s / 2),
            Stage(Level.LIBRARIES, load_s, min(libraries_mb, memory_mb), (), import_s, import_s),
            Stage(Level.INSTANCE, warm_s, memory_mb, (), load_s, load_s),
        ),
        exec_s=exec_s,
        tenant=tenant,
        runtime=runtime,
        limit_mb=limit_mb or memory_mb,
        reserved_mb=(limit_mb or memory_mb) if reserved else 0.0,
    )


def forks(
    *,
    floor_s: float,
    import_s: float,
    load_s: float,
    exec_s: float,
    template_mb: float,
    weights_mb: float = 0.0,
    weights: str = "",
    instance_mb: float = 4.0,
    fork_s: float = 0.02,
    page_in_s: float = 0.0,
    warm_s: float = 0.001,
    limit_mb: float = 0.0,
    tenant: str = "",
    runtime: str = "",
) -> Profile:
    """A function whose instances are forks of a template; the node always has the libraries.

    `floor_s` is what a bare sandbox and a fork of the library zygote take, `import_s` what the
    function's own imports do. Weights are mapped from a file that all who map it share: what a
    resident template holds of them is counted once, by the key `weights`.
    """
    share = ((weights, weights_mb),) if weights and weights_mb else ()
    stages = [
        Stage(Level.LIBRARIES, floor_s + import_s + load_s),
        Stage(
            Level.MAPPED,
            fork_s + page_in_s,
            template_mb,
            (),
            floor_s + import_s + load_s,
            import_s + load_s,
        ),
    ]
    if page_in_s:
        stages.append(Stage(Level.RESIDENT, fork_s, template_mb, share, page_in_s, page_in_s / 2))
    elif share:
        mapped = stages.pop()
        stages.append(
            Stage(
                Level.RESIDENT,
                mapped.start_s,
                template_mb,
                share,
                mapped.load_s,
                mapped.load_cpu_s,
            )
        )
    stages.append(Stage(Level.INSTANCE, warm_s, instance_mb, (), fork_s, fork_s))
    return Profile(
        stages=tuple(stages),
        exec_s=exec_s,
        tenant=tenant,
        runtime=runtime,
        limit_mb=limit_mb or template_mb + weights_mb + instance_mb,
        forks=True,
    )
