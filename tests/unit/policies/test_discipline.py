"""How many calls run at once, and what is known of how long they run."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.policies.queueing.discipline import ProcessorUse, ServiceTimes, sharing
from faasd.policies.queueing.queue import CallQueue
from tests.unit.policies.station import Job, Outcome, Station, arrivals, percentile

SHORT_S, LONG_S, LONG_SHARE = 0.01, 1.0, 0.05
MEAN_S = SHORT_S * (1 - LONG_SHARE) + LONG_S * LONG_SHARE


def observed(*exec_s: float) -> ServiceTimes:
    times = ServiceTimes()
    for now, one in enumerate(exec_s):
        times.observe(one, now / 100)
    return times


def test_nothing_is_known_before_enough_runs() -> None:
    times = observed(*[0.1] * 19)

    assert times.cv2 is None
    assert times.within_s(0.2) is None
    assert times.mean_s == pytest.approx(0.1)
    assert ServiceTimes().mean_s is None
    assert repr(times) == "<ServiceTimes not known yet>"


def test_equal_runs_have_no_dispersion() -> None:
    times = observed(*[0.1] * 50)

    assert times.cv2 == pytest.approx(0.0)
    assert times.within_s(0.5) == pytest.approx(0.1)
    assert repr(times) == "<ServiceTimes 0.1 s, CV2 0>"


def test_runs_of_no_time_at_all_have_no_dispersion() -> None:
    assert observed(*[0.0] * 50).cv2 == 0.0


def test_a_slow_first_run_is_not_taken_for_dispersion() -> None:
    times = observed(5.0, *[0.1] * 30)

    assert times.cv2 == pytest.approx(0.0)
    assert times.mean_s == pytest.approx(0.1)


def test_dispersion_among_the_first_runs_is_seen_at_once() -> None:
    cv2 = observed(*[0.01, 0.01, 0.01, 0.01, 1.0] * 4).cv2

    assert cv2 is not None
    assert cv2 > 2.0


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda dice: dice.expovariate(2.0), 1.0),
        (lambda dice: dice.uniform(0.9, 1.1), 0.0033),
        (lambda dice: 1.0 if dice.random() < 0.2 else 0.01, 3.8),
    ],
)
def test_estimates_agree_with_the_distribution(draw: object, expected: float) -> None:
    assert callable(draw)
    dice = random.Random("draws")
    times = ServiceTimes()
    seen = []
    for now in range(20_000):
        times.observe(draw(dice), now / 100)
        if times.cv2 is not None:
            seen.append(times.cv2)

    assert statistics.mean(seen) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("draw", [lambda d: d.expovariate(1.0), lambda d: d.gauss(5.0, 1.0)])
def test_nearly_every_run_stays_within_the_bound(draw: object) -> None:
    assert callable(draw)
    dice = random.Random("draws")
    times = ServiceTimes()
    beyond = 0
    for now in range(10_000):
        bound = times.within_s(now / 100)
        exec_s = draw(dice)
        beyond += bound is not None and exec_s > bound
        times.observe(exec_s, now / 100)

    assert beyond < 600


def test_times_that_changed_are_learnt() -> None:
    times = observed(*[1.0] * 100, *[0.1] * 400)

    assert times.mean_s == pytest.approx(0.1, rel=0.01)
    assert times.within_s(5.0) == pytest.approx(0.1, abs=0.05)


def test_after_a_pause_runs_are_looked_at_afresh() -> None:
    times = observed(*[1.0] * 50)
    assert times.within_s(1.0) == pytest.approx(1.0)

    assert times.within_s(1000.0) is None
    for run in range(19):
        times.observe(0.1, 1000.0 + run)
        assert times.within_s(1000.0 + run) is None
        assert times.mean_s == pytest.approx(1.0), "what was known holds until more is known"
    times.observe(0.1, 1020.0)
    assert times.within_s(1020.0) == pytest.approx(0.1)


@pytest.mark.parametrize("cv2", [None, 0.0, 0.5, 1.0])
def test_runs_that_hardly_differ_take_a_core_each(cv2: float | None) -> None:
    assert sharing(cv2, 8) == 8


def test_runs_that_differ_share_the_cores_the_more_the_more_they_differ() -> None:
    assert [sharing(cv2, 4) for cv2 in (1.3, 2.0, 3.5, 4.0, 50.0)] == [5, 8, 14, 16, 16]


def test_sharing_stays_within_its_bounds() -> None:
    assert sharing(50.0, 4, most_per_core=2.0) == 8
    assert sharing(50.0, 4, limit=6) == 6
    assert sharing(None, 4, limit=0) == 1
    assert sharing(0.5, 0) == 1


@settings(deadline=None)
@given(cv2=st.floats(0, 1e6), more=st.floats(0, 1e6), cores=st.integers(1, 256))
def test_more_dispersion_never_means_less_sharing(cv2: float, more: float, cores: int) -> None:
    assert cores <= sharing(cv2, cores) <= sharing(cv2 + more, cores) <= 4 * cores


def mixed_jobs(seed: str, *, cores: int) -> list[Job]:
    """Ninety-five short calls to five that take a hundred times as long, at a load of 0.7."""
    dice = random.Random(seed)
    return [
        Job(time, LONG_S if dice.random() < LONG_SHARE else SHORT_S)
        for time in arrivals(seed, rate=0.7 * cores / MEAN_S, until=200.0)
    ]


def short_p99(outcomes: list[Outcome]) -> float:
    return percentile((one.sojourn_s for one in outcomes if one.job.exec_s == SHORT_S), 0.99)


@pytest.mark.parametrize("seed", ["one", "two"])
def test_sharing_frees_short_calls_from_waiting_behind_long_ones(seed: str) -> None:
    jobs = mixed_jobs(seed, cores=4)
    slots = sharing(observed(*[job.exec_s for job in jobs]).cv2, 4)

    in_turn = short_p99(Station(CallQueue(), cores=4).run(jobs))
    shared = short_p99(Station(CallQueue(), cores=4, slots=slots).run(jobs))

    assert slots == 16
    assert shared < in_turn / 5


def test_where_runs_are_alike_each_waits_its_turn_and_none_loses_by_sharing() -> None:
    jobs = [Job(time, MEAN_S) for time in arrivals("alike", rate=0.7 * 4 / MEAN_S, until=200.0)]
    slots = sharing(observed(*[job.exec_s for job in jobs]).cv2, 4)

    in_turn = Station(CallQueue(), cores=4, slots=slots).run(jobs)
    shared = Station(CallQueue(), cores=4, slots=16).run(jobs)

    assert slots == 4
    for share in (0.5, 0.99):
        better, worse = (percentile((x.sojourn_s for x in y), share) for y in (in_turn, shared))
        assert better <= worse


def test_calls_that_compute_are_told_from_calls_that_wait() -> None:
    computing, waiting = ProcessorUse(), ProcessorUse()

    for _ in range(5):
        computing.observe(0.9, 1.0)
        waiting.observe(0.05, 1.0)

    assert computing.computes
    assert not waiting.computes


def test_what_hardly_ran_says_nothing_of_the_processor() -> None:
    use = ProcessorUse()

    use.observe(0.01, 0.01)

    assert not use.computes
