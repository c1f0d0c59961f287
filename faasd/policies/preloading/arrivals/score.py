"""How well models foretell: the likelihood of gaps that they have not seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from faasd.policies.preloading.arrivals.exponential import Exponential
from faasd.policies.preloading.arrivals.histogram import GapHistogram
from faasd.policies.preloading.arrivals.mixture import Everyone
from faasd.policies.preloading.arrivals.model import GapModel, log_score
from faasd.policies.preloading.arrivals.periodic import Periodic
from faasd.policies.preloading.arrivals.shared import SharedPrior

Maker = Callable[[Everyone], GapModel]

MODELS: Mapping[str, Maker] = {
    "exponential": lambda _: Exponential(),
    "shared": lambda everyone: SharedPrior(everyone.population),
    "histogram": lambda everyone: GapHistogram(everyone.counts),
    "periodic": lambda _: Periodic(),
    "mixture": lambda everyone: everyone.newcomer(),
}


def held_out(
    arrivals: Mapping[str, Sequence[float]],
    split_at: float,
    models: Mapping[str, Maker] = MODELS,
) -> dict[str, float]:
    """The mean log score of each model, in nats per gap that ended after `split_at`.

    The times of each function rise. A model goes on learning while it is judged, as it does live:
    a gap is scored before it is learnt. Functions are gone through in order of time, as what is
    shared must not know the future.
    """
    gaps = sorted(
        (later, name, later - earlier)
        for name, times in arrivals.items()
        for earlier, later in itertools.pairwise(times)
    )
    return {name: _score(make, gaps, split_at) for name, make in models.items()}


def _score(make: Maker, gaps: list[tuple[float, str, float]], split_at: float) -> float:
    everyone = Everyone()
    known: dict[str, GapModel] = {}
    total, count = 0.0, 0
    for ended_at, name, gap_s in gaps:
        model = known.get(name)
        if model is None:
            model = known[name] = make(everyone)
        if ended_at > split_at:
            total += log_score(model, gap_s)
            count += 1
        model.observe(gap_s)
    return total / count if count else 0.0
