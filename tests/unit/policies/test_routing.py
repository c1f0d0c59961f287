"""Which worker gets a call: cases worked out by hand, and what holds for every input."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd.policies.routing.bounded_hash import BoundedHash
from faasd.policies.routing.bounded_queue import BoundedQueue
from faasd.policies.routing.candidate import Candidate, Locality
from faasd.policies.routing.least_outstanding import LeastOutstanding
from faasd.policies.routing.locality import LocalityFirst, nearest
from faasd.policies.routing.power_of_k import PowerOfK
from faasd.policies.routing.rendezvous import owner
from faasd.policies.routing.round_robin import RoundRobin
from faasd.policies.routing.routers import ROUTERS, choose_default

candidates = st.lists(
    st.builds(
        Candidate,
        worker=st.text("abcdef", min_size=1, max_size=3),
        slots=st.integers(1, 64),
        outstanding=st.integers(0, 200),
        locality=st.sampled_from(Locality),
        held=st.integers(0, 20),
        places=st.integers(1, 20),
        start_cost_s=st.floats(0, 10),
        exec_s=st.floats(0.001, 10),
    ),
    max_size=8,
    unique_by=lambda one: one.worker,
)
some = candidates.filter(bool)


class Scripted(random.Random):
    """Random numbers that were agreed on."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self._numbers = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)


def worker(
    name: str,
    outstanding: int = 0,
    *,
    slots: int = 4,
    locality: Locality = Locality.NOTHING,
    held: int = 0,
    places: int = 4,
    start_cost_s: float = 0.0,
    exec_s: float = 0.1,
) -> Candidate:
    return Candidate(name, slots, outstanding, locality, held, places, start_cost_s, exec_s)


# Whatever the policy.


@pytest.mark.parametrize("name", ROUTERS)
def test_every_policy_that_a_setting_names_chooses_nobody_from_nobody(name: str) -> None:
    assert ROUTERS[name](random.Random(1)).choose([]) is None


@pytest.mark.parametrize("name", ROUTERS)
def test_every_policy_takes_the_only_worker_while_it_has_room(name: str) -> None:
    assert ROUTERS[name](random.Random(1)).choose([worker("a", 3)], "f@r1") == "a"


@pytest.mark.parametrize("name", ROUTERS)
@given(everyone=some)
def test_only_a_bounded_queue_holds_a_call_back_and_only_when_all_are_full(
    name: str, everyone: list[Candidate]
) -> None:
    full = all(one.held > one.places for one in everyone)

    chosen = ROUTERS[name](random.Random(1)).choose(everyone, "f@r1")

    short = max(one.exec_s for one in everyone) < 0.01
    holds = name == "bounded-queue" or (name == "auto" and not short)
    if chosen is None:
        assert holds
        assert full
    else:
        assert chosen in {one.worker for one in everyone}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_policy_changes_nothing_of_what_it_reads(name: str) -> None:
    everyone = [worker("a", 1), worker("b", 2, locality=Locality.IDLE)]
    before = [repr(one) for one in everyone]

    ROUTERS[name](random.Random(1)).choose(everyone, "f@r1")

    assert [repr(one) for one in everyone] == before


# Least outstanding.


def test_the_least_loaded_worker_is_chosen() -> None:
    assert LeastOutstanding().choose([worker("a", 3), worker("b", 1), worker("c", 2)]) == "b"


def test_load_is_counted_per_slot() -> None:
    small, large = worker("a", 1, slots=1), worker("b", 4, slots=8)

    assert LeastOutstanding().choose([small, large]) == "b"


def test_equal_workers_are_taken_by_name() -> None:
    assert LeastOutstanding().choose([worker("b"), worker("a")]) == "a"


def test_a_worker_with_the_template_wins_over_a_less_loaded_one() -> None:
    holder = worker("b", 5, locality=Locality.TEMPLATE)

    assert LeastOutstanding().choose([worker("a", 0), holder]) == "b"


def test_a_holder_with_an_idle_instance_wins_over_a_less_loaded_holder() -> None:
    template = worker("a", 0, locality=Locality.TEMPLATE)
    idle = worker("b", 2, locality=Locality.IDLE)

    assert LeastOutstanding().choose([template, idle]) == "b"


def test_an_idle_instance_on_a_full_worker_does_not_win() -> None:
    template = worker("a", 3, locality=Locality.TEMPLATE)
    idle = worker("b", 4, locality=Locality.IDLE)

    assert LeastOutstanding().choose([template, idle]) == "a"


def test_a_holder_keeps_the_call_up_to_its_patience() -> None:
    holder = worker("b", 7, locality=Locality.TEMPLATE)

    assert LeastOutstanding(patience=2.0).choose([worker("a"), holder]) == "b"


def test_a_holder_loses_the_call_past_its_patience() -> None:
    holder = worker("b", 8, locality=Locality.TEMPLATE)

    assert LeastOutstanding(patience=2.0).choose([worker("a"), holder]) == "a"


def test_a_burst_fills_unequal_workers_in_proportion() -> None:
    router, outstanding, slots = LeastOutstanding(), {"a": 0, "b": 0}, {"a": 2, "b": 6}

    for _ in range(80):
        chosen = router.choose([worker(n, outstanding[n], slots=slots[n]) for n in outstanding])
        assert chosen is not None
        outstanding[chosen] += 1

    assert outstanding == {"a": 20, "b": 60}


@given(candidates)
def test_someone_is_chosen_whenever_someone_is_there(everyone: list[Candidate]) -> None:
    chosen = LeastOutstanding().choose(everyone)

    assert chosen in {one.worker for one in everyone} if everyone else chosen is None


@given(candidates, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(everyone: list[Candidate], random: object) -> None:
    shuffled = list(everyone)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert LeastOutstanding().choose(shuffled) == LeastOutstanding().choose(everyone)


@given(some)
def test_a_worker_without_the_template_is_chosen_only_at_the_least_score(
    everyone: list[Candidate],
) -> None:
    chosen = LeastOutstanding().choose(everyone)
    [found] = [one for one in everyone if one.worker == chosen]

    if found.locality is Locality.NOTHING:
        assert found.score == min(one.score for one in everyone)


@given(some, st.floats(0, 5))
def test_one_pass_finds_what_sorting_would(everyone: list[Candidate], patience: float) -> None:
    ranked = sorted(everyone, key=lambda one: (one.score, -one.locality, one.worker))
    holders = [one for one in ranked if one.locality >= Locality.TEMPLATE]
    idle = [one for one in holders if one.locality is Locality.IDLE and one.score <= 1]
    patient = bool(holders) and holders[0].score <= patience

    expected = (idle or holders)[0] if patient else ranked[0]
    assert LeastOutstanding(patience=patience).choose(everyone) == expected.worker


# Locality, before load is compared.


def names(chosen: Sequence[Candidate]) -> list[str]:
    return [one.worker for one in chosen]


def test_workers_with_an_idle_instance_come_first_then_those_with_a_template() -> None:
    cold = worker("a")
    template = worker("b", 1, locality=Locality.TEMPLATE)
    idle = worker("c", 2, locality=Locality.IDLE)
    also_idle = worker("d", 3, locality=Locality.IDLE)

    assert names(nearest([cold, template, idle, also_idle])) == ["c", "d"]
    assert names(nearest([cold, template])) == ["b"]
    assert names(nearest([cold])) == ["a"]


@pytest.mark.parametrize(
    "busy",
    [
        worker("b", 4, locality=Locality.IDLE),
        worker("b", 2, locality=Locality.IDLE, held=2, places=2),
    ],
    ids=["no slot is free", "no place is free"],
)
def test_a_worker_without_room_is_not_near_whatever_it_holds(busy: Candidate) -> None:
    cold = worker("a")

    assert names(nearest([cold, busy])) == ["a", "b"]


def test_where_all_would_wait_a_short_queue_is_preferred_to_a_cold_start() -> None:
    holder = worker("b", 8, locality=Locality.TEMPLATE, start_cost_s=0.01, exec_s=0.1)
    cold = worker("a", 0, start_cost_s=3.0, exec_s=0.1)

    assert LocalityFirst(BoundedQueue()).choose([cold, holder]) == "b"


def test_where_all_would_wait_a_cold_start_is_preferred_to_a_long_queue() -> None:
    holder = worker("b", 8, locality=Locality.TEMPLATE, start_cost_s=0.01, exec_s=2.0)
    cold = worker("a", 0, start_cost_s=3.0, exec_s=2.0)

    assert LocalityFirst(BoundedQueue()).choose([cold, holder]) == "a"


def test_a_full_holder_does_not_hide_the_others_from_a_bounded_queue() -> None:
    holder = worker("b", 2, locality=Locality.TEMPLATE, held=2, places=1)

    assert LocalityFirst(BoundedQueue()).choose([worker("a"), holder]) == "a"


@given(some)
def test_the_nearest_are_some_of_those_that_were_given(everyone: list[Candidate]) -> None:
    near = nearest(everyone)

    assert near
    assert all(one in everyone for one in near)


# The better of a few at random.


def test_of_two_that_were_drawn_the_one_that_would_be_done_sooner_is_taken() -> None:
    everyone = [worker("a", 3), worker("b", 1), worker("c", 0)]

    assert PowerOfK(Scripted(0.0, 0.4)).choose(everyone) == "b"
    assert PowerOfK(Scripted(0.4, 0.0)).choose(everyone) == "b"


def test_a_tie_goes_to_the_first_that_was_drawn() -> None:
    everyone = [worker("a"), worker("b"), worker("c")]

    assert PowerOfK(Scripted(0.9, 0.1)).choose(everyone) == "c"


def test_one_may_be_drawn_twice() -> None:
    everyone = [worker("a", 3), worker("b", 0)]

    assert PowerOfK(Scripted(0.0, 0.1)).choose(everyone) == "a"


def test_more_draws_look_at_more_workers() -> None:
    everyone = [worker("a", 3), worker("b", 2), worker("c", 1), worker("d", 0)]

    assert PowerOfK(Scripted(0.0, 0.3, 0.6), k=3).choose(everyone) == "c"


def test_one_draw_is_random_choice() -> None:
    everyone, numbers = [worker("a", 9), worker("b"), worker("c")], [0.1, 0.5, 0.9, 0.3]

    single = PowerOfK(Scripted(*numbers), k=1)
    blind = ROUTERS["random"](Scripted(*numbers))

    assert [single.choose(everyone) for _ in numbers] == [blind.choose(everyone) for _ in numbers]


def test_a_larger_worker_is_chosen_with_more_calls_on_it() -> None:
    small, large = worker("a", 2, slots=2), worker("b", 6, slots=8)

    assert PowerOfK(Scripted(0.0, 0.9)).choose([small, large]) == "b"


# Bounded queues.


def test_the_shortest_queue_is_joined_the_first_among_equals() -> None:
    assert BoundedQueue().choose([worker("a", 2), worker("b", 1), worker("c", 1)]) == "b"


def test_a_worker_may_have_one_call_more_than_it_has_places() -> None:
    filling = [worker("a", held=held, places=4) for held in range(7)]

    assert [BoundedQueue().choose([one]) for one in filling] == ["a"] * 5 + [None] * 2
    assert [BoundedQueue(extra=0).choose([one]) for one in filling] == ["a"] * 4 + [None] * 3


def test_the_bound_is_per_revision_and_not_of_the_whole_worker() -> None:
    busy_with_others = worker("a", 40, held=0)
    full_of_ours = worker("b", 5, held=5)

    assert BoundedQueue().choose([busy_with_others, full_of_ours]) == "a"


def test_a_burst_fills_every_worker_to_its_bound_before_any_call_is_held() -> None:
    everyone = [worker("a", places=2), worker("b", places=3)]
    by_name = {one.worker: one for one in everyone}

    sent = 0
    while (chosen := BoundedQueue().choose(everyone)) is not None:
        by_name[chosen].held += 1
        by_name[chosen].outstanding += 1
        sent += 1

    assert sent == (2 + 1) + (3 + 1)


# Consistent hashing with bounded loads.


KEYS = [f"default/f{number}@r1" for number in range(4000)]


def homes(everyone: list[Candidate]) -> dict[str, str]:
    found = {key: BoundedHash().choose(everyone, key) for key in KEYS}
    return {key: name for key, name in found.items() if name is not None}


def test_a_key_keeps_its_worker_and_keys_spread_by_slots() -> None:
    everyone = [worker("a", slots=2), worker("b", slots=4), worker("c", slots=2)]

    first, again = homes(everyone), homes(list(reversed(everyone)))

    assert first == again
    shares = Counter(first.values())
    for one in everyone:
        assert shares[one.worker] / len(KEYS) == pytest.approx(one.slots / 8, abs=0.03)


def test_a_worker_that_joins_takes_its_share_and_moves_no_other_key() -> None:
    before = homes([worker(name) for name in "abc"])
    after = homes([worker(name) for name in "abcd"])

    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {"d"}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 4, abs=0.03)


def test_a_worker_that_leaves_gives_up_its_own_keys_only() -> None:
    before = homes([worker(name) for name in "abcd"])
    after = homes([worker(name) for name in "abc"])

    assert all(after[key] == before[key] for key in KEYS if before[key] != "d")


def test_a_key_leaves_a_worker_that_has_more_than_its_share_and_comes_back() -> None:
    everyone = [worker(name, 4) for name in "abc"]
    home = BoundedHash().choose(everyone, "f@r1")
    [at_home] = [one for one in everyone if one.worker == home]

    at_home.outstanding = 40
    elsewhere = BoundedHash().choose(everyone, "f@r1")
    at_home.outstanding = 4

    assert elsewhere != home
    assert BoundedHash().choose(everyone, "f@r1") == home


@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=8),
    st.integers(1, 300),
    st.sampled_from([0.05, 0.25, 1.0]),
)
def test_one_key_alone_never_fills_a_worker_beyond_its_bound(
    slots: list[int], calls: int, epsilon: float
) -> None:
    everyone = [worker(str(place), slots=each) for place, each in enumerate(slots)]
    policy = BoundedHash(epsilon=epsilon)

    for _ in range(calls):
        chosen = policy.choose(everyone, "f@r1")
        assert chosen is not None
        everyone[int(chosen)].outstanding += 1

    for one in everyone:
        assert one.outstanding < (1 + epsilon) * calls * one.slots / sum(slots) + 1


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 64), min_size=1), st.text())
def test_a_key_belongs_to_one_of_the_workers_in_whatever_order_they_are_named(
    slots: dict[str, int], key: str
) -> None:
    found = owner(key, slots)

    assert found in slots
    assert owner(key, dict(reversed(slots.items()))) == found


def test_without_workers_a_key_belongs_to_nobody() -> None:
    assert owner("f@r1", {}) is None


# Baselines, and the choice among the policies.


def test_round_robin_takes_turns_and_goes_on_when_the_workers_change() -> None:
    router, three = RoundRobin(), [worker(name) for name in "abc"]

    assert [router.choose(three) for _ in range(4)] == ["a", "b", "c", "a"]
    assert [router.choose(three[:1]) for _ in range(2)] == ["a", "a"]


def test_random_choice_gives_every_worker_the_same() -> None:
    router = ROUTERS["random"](random.Random(3))

    chosen = Counter(router.choose([worker("a", 50), worker("b")]) for _ in range(10_000))

    assert chosen["a"] / 10_000 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("exec_s", "expected"),
    [(0.0001, "power-of-two"), (0.009, "power-of-two"), (0.01, "bounded-queue")],
)
def test_calls_queue_at_the_controller_where_they_run_ten_times_as_long_as_their_dispatch(
    exec_s: float, expected: str
) -> None:
    assert choose_default(exec_s) == expected


def test_a_slower_dispatch_asks_for_longer_calls() -> None:
    assert choose_default(0.05, dispatch_s=0.01) == "power-of-two"


def test_the_choice_is_made_per_revision_by_what_its_calls_take() -> None:
    router = ROUTERS["auto"](random.Random(1))

    long, short = (worker("a", held=5, places=4, exec_s=exec_s) for exec_s in (0.1, 0.001))

    assert router.choose([long]) is None
    assert router.choose([short]) == "a"
