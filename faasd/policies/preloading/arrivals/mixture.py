"""All models of a function at once, each believed as far as its forecasts came true.

The weight of a model is its prior times the probabilities that it gave to the gaps that came, older ones
counting less. Given a silence, models that did not expect it lose weight by themselves, since
survival is mixed and not chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from faasd.policies.preloading.arrivals.exponential import Exponential
from faasd.policies.preloading.arrivals.histogram import Counts, GapHistogram, everyone
from faasd.policies.preloading.arrivals.model import GapModel, log_score
from faasd.policies.preloading.arrivals.periodic import Periodic
from faasd.policies.preloading.arrivals.shared import Population, SharedPrior

MEMORY = 0.9
_NO_WORSE = -20.0
_NEGLIGIBLE = 0.01


class Everyone:
    """What is known of all functions."""

    def __init__(self) -> None:
        self.population = Population()
        self.counts: Counts = everyone()

    def newcomer(self) -> Mixture:
        """A function of which nothing is known yet."""
        return Mixture(
            (
                ("shared", SharedPrior(self.population), 0.45),
                ("histogram", GapHistogram(self.counts), 0.35),
                ("exponential", Exponential(), 0.1),
                ("periodic", Periodic(), 0.1),
            )
        )


class Mixture:
    def __init__(self, models: tuple[tuple[str, GapModel, float], ...]) -> None:
        self._names = [name for name, _, _ in models]
        self._models = [model for _, model, _ in models]
        self._prior = [math.log(weight) for _, _, weight in models]
        self._scores = [0.0] * len(models)
        self._weights = [weight for _, _, weight in models]
        self._seen = 0

    @property
    def weights(self) -> dict[str, float]:
        """How far each model is believed."""
        return dict(zip(self._names, self._weights, strict=True))

    def observe(self, gap_s: float, times: int = 1) -> None:
        if self._seen:
            self._judge(gap_s)
        self._seen += times
        for model in self._models:
            model.observe(gap_s, times)

    def tail(self, gaps_s: Sequence[float]) -> list[float]:
        total = [0.0] * len(gaps_s)
        for weight, model in zip(self._weights, self._models, strict=True):
            if weight > _NEGLIGIBLE:
                total = [one + weight * more for one, more in zip(total, model.tail(gaps_s))]  # noqa: B905
        return total

    def _judge(self, gap_s: float) -> None:
        scores = self._scores
        for place, model in enumerate(self._models):
            scores[place] = MEMORY * scores[place] + log_score(model, gap_s)
        highest = max(scores)
        for place, score in enumerate(scores):
            scores[place] = max(score - highest, _NO_WORSE)
        raw = [math.exp(one + two) for one, two in zip(scores, self._prior, strict=True)]
        total = sum(raw)
        self._weights = [one / total for one in raw]
