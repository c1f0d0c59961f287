"""Models of the gaps between calls, against formulae and against gaps that were drawn from them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest

from faasd.policies.preloading.arrivals.exponential import Exponential, rate_of
from faasd.policies.preloading.arrivals.histogram import EDGES, GapHistogram, bin_of, everyone
from faasd.policies.preloading.arrivals.mixture import Everyone
from faasd.policies.preloading.arrivals.model import (
    NEAR,
    SHORT_S,
    GapModel,
    chance,
    log_score,
    survival,
)
from faasd.policies.preloading.arrivals.outlook import HORIZONS, look_out, steady
from faasd.policies.preloading.arrivals.periodic import ODD, Periodic
from faasd.policies.preloading.arrivals.score import MODELS, held_out
from faasd.policies.preloading.arrivals.shared import SHAPE, Population, SharedPrior

Gaps = Callable[[random.Random], float]


def by_chance(mean_s: float) -> Gaps:
    return lambda rng: rng.expovariate(1.0 / mean_s)


def by_clock(period_s: float) -> Gaps:
    return lambda rng: rng.gauss(period_s, 0.02 * period_s)


def in_bursts(rng: random.Random) -> float:
    return rng.expovariate(1.0 / 6.0) if rng.random() < 0.8 else rng.expovariate(1.0 / 1800.0)


def times(gaps: Gaps, seed: int, count: int) -> list[float]:
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += max(0.0, gaps(rng))
        found.append(at)
    return found


def learnt(model: GapModel, gaps: Sequence[float]) -> GapModel:
    for gap_s in gaps:
        model.observe(gap_s)
    return model


def test_n_calls_have_n_minus_one_gaps() -> None:
    assert rate_of([0.0, 10.0, 40.0]) == pytest.approx(2 / 40)
    assert rate_of([5.0]) == 0.0
    assert rate_of([]) == 0.0


def test_calls_at_one_instant_have_a_rate_that_can_be_reckoned_with() -> None:
    assert math.isfinite(rate_of([3.0, 3.0, 3.0]))
    assert rate_of([3.0, 3.0, 3.0]) > 1e5


def test_the_exponential_is_by_the_window() -> None:
    model = Exponential(window=3)
    learnt(model, [1000.0, 10.0, 20.0, 30.0])
    assert model.rate == pytest.approx(3 / 60)
    assert survival(model, 60.0) == pytest.approx(math.exp(-3.0))
    assert chance(model, 500.0, 20.0) == pytest.approx(1 - math.exp(-1.0))


def test_before_any_gap_the_exponential_expects_no_call() -> None:
    assert chance(Exponential(), 0.0, 1e9) == 0.0


def test_the_shared_prior_is_that_of_the_population_until_gaps_are_seen() -> None:
    """A typical gap of 3,600 s before anything is known: (1800 / (1800 + t)) ** 0.5."""
    model = SharedPrior(Population())
    assert survival(model, 1800.0) == pytest.approx(0.5**0.5)


def test_the_shared_prior_after_gaps_is_a_gamma_mixture_of_rates() -> None:
    population = Population()
    model = learnt(SharedPrior(population), [100.0])
    # The population's mean of logs: four of an hour, and one of 100 s.
    typical_s = math.exp((4 * math.log(3600.0) + math.log(100.0)) / 5)
    assert population.typical_s == pytest.approx(typical_s)
    span_s = SHAPE * typical_s + 100.0
    assert survival(model, 50.0) == pytest.approx((span_s / (span_s + 50.0)) ** (SHAPE + 1))


def test_a_rare_function_is_read_in_the_light_of_the_others() -> None:
    """One gap of an hour, among functions with gaps of a minute or of a day."""
    lively, quiet = Population(), Population()
    for _ in range(50):
        learnt(SharedPrior(lively), [60.0])
        learnt(SharedPrior(quiet), [86_400.0])
    among_lively = learnt(SharedPrior(lively), [3600.0])
    among_quiet = learnt(SharedPrior(quiet), [3600.0])
    assert chance(among_lively, 0.0, 600.0) > 2 * chance(among_quiet, 0.0, 600.0)


def test_the_longer_a_function_is_silent_the_less_soon_it_is_expected() -> None:
    model = learnt(SharedPrior(Population()), [60.0] * 5)
    chances = [chance(model, idle_s, 60.0) for idle_s in (0.0, 600.0, 6000.0, 60_000.0)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.2 > 0.01 > chances[-1]


def test_bins_of_a_gap() -> None:
    assert bin_of(0.0) == 0
    assert bin_of(SHORT_S) == 1
    assert bin_of(EDGES[5] - 1e-6) == 5
    assert bin_of(1e9) == len(EDGES)


def test_the_histogram_has_the_gaps_that_were_and_two_of_all() -> None:
    model = GapHistogram(everyone())
    learnt(model, [1.0] * 8)
    # 8 of 10 are in the first bin, and nearly all of the other two: 8 of the 16.25 of all functions.
    inside = (8 + 2 * 8.25 / 16.25) / 10
    assert survival(model, SHORT_S) == pytest.approx(1 - inside)


def test_bursts_with_pauses_are_seen_as_such() -> None:
    """After a short silence a call is soon expected, and after a longer one for long not."""
    model = learnt(GapHistogram(everyone()), [5.0] * 40 + [2000.0] * 10)
    assert chance(model, 0.0, 10.0) > 0.7
    assert chance(model, 60.0, 60.0) < 0.1


def test_a_clock_is_known_from_three_gaps() -> None:
    model = Periodic()
    learnt(model, [300.0, 300.0])
    assert model.period_s is None
    model.observe(300.0)
    assert model.period_s == 300.0
    assert survival(model, 200.0) > 0.95 * (1 - ODD)
    assert survival(model, 400.0) < ODD
    assert chance(model, 270.0, 60.0) > 0.7
    assert chance(model, 0.0, 60.0) < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_survival_is_a_probability_that_falls(name: str) -> None:
    rng = random.Random(3)
    model = MODELS[name](Everyone())
    points = sorted(10.0 ** rng.uniform(-3, 6) for _ in range(200))
    for gap_s in [0.0, 1e-9, *times(in_bursts, 1, 30), 1e9]:
        tail = model.tail(points)
        assert all(0.0 <= one <= 1.0 + 1e-9 for one in tail)
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(tail))
        assert survival(model, 0.0) >= tail[0] - 1e-12
        model.observe(gap_s)


@pytest.mark.parametrize("name", MODELS)
def test_many_gaps_may_be_told_at_once(name: str) -> None:
    single, together = MODELS[name](Everyone()), MODELS[name](Everyone())
    for gap_s in [50.0] * 12:
        single.observe(gap_s)
    together.observe(50.0, 12)
    if name in {"exponential", "shared", "periodic"}:
        assert together.tail([10.0, 60.0]) == pytest.approx(single.tail([10.0, 60.0]))
    together.observe(1e-6, 1_000_000)
    assert chance(together, 0.0, SHORT_S) > 0.5


def test_a_score_is_the_chance_to_meet_a_gap_to_within_a_tenth() -> None:
    model = learnt(Exponential(), [100.0])
    met = math.exp(-0.5 / NEAR) - math.exp(-0.5 * NEAR)
    assert log_score(model, 50.0) == pytest.approx(math.log(met))
    assert log_score(model, 1.0) == pytest.approx(math.log(1 - math.exp(-SHORT_S / 100.0)))


@pytest.mark.parametrize(
    ("gaps", "best"),
    [(by_clock(600.0), "periodic"), (in_bursts, "histogram"), (by_chance(300.0), "shared")],
)
def test_the_mixture_is_about_as_good_as_the_best_for_each_kind(gaps: Gaps, best: str) -> None:
    arrivals = {str(one): times(gaps, one, 80) for one in range(20)}
    middle = sorted(at for found in arrivals.values() for at in found)[800]
    scores = held_out(arrivals, middle)
    assert max(scores, key=lambda name: scores[name]) in {best, "mixture"}
    assert scores["mixture"] > scores[best] - 0.1


def test_the_mixture_is_better_than_any_single_model_where_kinds_are_mixed() -> None:
    kinds = [by_clock(600.0), in_bursts, by_chance(300.0), by_clock(60.0), by_chance(3000.0)]
    arrivals = {str(one): times(kinds[one % 5], one, 60) for one in range(50)}
    middle = sorted(at for found in arrivals.values() for at in found)[1500]
    scores = held_out(arrivals, middle)
    assert max(scores, key=lambda name: scores[name]) == "mixture"


def test_models_are_believed_by_what_they_foretold() -> None:
    clock = learnt(Everyone().newcomer(), times(by_clock(600.0), 1, 2)[:1] + [600.0] * 15)
    bursts = learnt(Everyone().newcomer(), [in_bursts(random.Random(seed)) for seed in range(60)])
    assert clock.weights["periodic"] > 0.8  # type: ignore[attr-defined]
    assert bursts.weights["histogram"] > 0.5  # type: ignore[attr-defined]


def test_gaps_before_the_split_are_learnt_and_not_judged() -> None:
    arrivals = {"a": [0.0, 100.0, 200.0, 300.0]}
    assert held_out(arrivals, 1000.0)["exponential"] == 0.0
    model = learnt(Exponential(), [100.0, 100.0])
    assert held_out(arrivals, 200.0)["exponential"] == pytest.approx(log_score(model, 100.0))


# What holding is worth


def test_of_calls_by_chance_holding_pays_at_their_rate() -> None:
    model = learnt(Exponential(), [200.0] * 20)
    outlook = look_out(model, 0.0)
    assert outlook.rate == pytest.approx(1 / 200.0, rel=0.01)
    for horizon, hold_s, likely in zip(HORIZONS, outlook.holds, outlook.chances, strict=True):
        assert likely == pytest.approx(1 - math.exp(-horizon / 200.0))
        assert hold_s == pytest.approx(200.0 * likely, rel=0.1)


def test_of_calls_by_the_clock_holding_pays_before_the_next_and_not_after_the_last() -> None:
    model = learnt(Periodic(), [600.0] * 9)
    rates = [look_out(model, idle_s).rate for idle_s in (0.0, 300.0, 540.0, 590.0)]
    assert rates == sorted(rates)
    assert rates[-1] > 8 * rates[0]
    assert look_out(model, 300.0).within_s > 100.0


def test_of_a_silence_that_nobody_expected_little_is_known() -> None:
    outlook = look_out(learnt(Exponential(), [1.0] * 20), 1000.0)
    assert outlook.rate == pytest.approx(1e-3)


def test_the_gain_is_that_of_the_best_time_of_holding() -> None:
    """At a rate of 0.01 a second saved is worth 0.01 a second: dearer memory is not held at all."""
    outlook = steady(0.01)
    assert outlook.gain_s(1.0, 0.02) <= 0.0
    assert outlook.gain_s(1.0, 0.0) == pytest.approx(1.0, abs=1e-3)
    assert outlook.gain_s(1.0, 0.005) == pytest.approx(0.5, abs=1e-3)


def test_a_call_is_soon_likely_when_six_percent_have_come() -> None:
    assert steady(0.5 / 60.0).soon_s == pytest.approx(0.06 * 120.0)
    model = learnt(Exponential(), [120.0] * 20)
    assert look_out(model, 0.0).soon_s == pytest.approx(7.4, rel=0.05)
