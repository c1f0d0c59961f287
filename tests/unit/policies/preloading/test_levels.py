"""Levels, profiles, ladders, and the memory that places take."""

from __future__ import annotations

import random

import pytest

from faasd.policies.preloading import levels
from faasd.policies.preloading.book import Book
from faasd.policies.preloading.ladder import ladder
from faasd.policies.preloading.lazyheap import LazyHeap
from faasd.policies.preloading.ledger import Ledger
from faasd.policies.preloading.levels import Level, Profile, Stage
from faasd.policies.preloading.quarantine import Quarantine

PLAIN = levels.processes(
    sandbox_s=0.5, import_s=0.75, load_s=2.25, exec_s=0.1, memory_mb=1000.0, warm_s=0.0
)
FORKED = levels.forks(
    floor_s=0.25,
    import_s=0.5,
    load_s=2.0,
    exec_s=0.1,
    template_mb=20.0,
    weights_mb=400.0,
    weights="bert",
    fork_s=0.02,
    warm_s=0.0,
)


def test_a_level_saves_what_its_start_is_shorter_by() -> None:
    assert PLAIN.saves_s(Level.INSTANCE) == pytest.approx(3.5)
    assert PLAIN.saves_s(Level.INSTANCE, Level.SANDBOX) == pytest.approx(3.0)
    assert PLAIN.saves_s(Level.LIBRARIES, Level.SANDBOX) == pytest.approx(0.75)
    assert PLAIN.saves_s(Level.SANDBOX, Level.INSTANCE) == 0.0


def test_a_level_that_a_function_does_not_have_is_the_one_below_it() -> None:
    assert PLAIN.stage(Level.RESIDENT).level is Level.LIBRARIES
    assert FORKED.stage(Level.ABSENT).level is Level.LIBRARIES
    assert FORKED.stage(Level.MAPPED).level is Level.LIBRARIES
    assert FORKED.stage(Level.RESIDENT).level is Level.RESIDENT


def test_loading_takes_all_steps_from_where_a_place_is() -> None:
    assert PLAIN.load_s(Level.INSTANCE) == pytest.approx(3.5)
    assert PLAIN.load_s(Level.INSTANCE, since=Level.LIBRARIES) == pytest.approx(2.25)
    assert FORKED.load_cpu_s(Level.INSTANCE, since=Level.RESIDENT) == pytest.approx(0.02)


def test_stages_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        Profile(stages=(Stage(Level.INSTANCE, 0.0), Stage(Level.ABSENT, 1.0)))
    with pytest.raises(ValueError, match="must rise"):
        Profile(stages=())


def test_the_ladder_has_the_levels_that_are_best_in_some_memory() -> None:
    """0.5 s for 3 MB, then 0.75 s for 177 more, which no direct way to the top would beat."""
    steps = ladder(PLAIN)
    assert [step.level for step in steps] == [Level.SANDBOX, Level.LIBRARIES, Level.INSTANCE]
    assert [step.adds_mb for step in steps] == pytest.approx([3.0, 177.0, 820.0])
    densities = [step.saves_s / step.adds_mb for step in steps]
    assert densities == sorted(densities, reverse=True)


def test_the_ladder_skips_a_level_that_is_never_best() -> None:
    """Libraries of 180 MB that save 0.05 s are passed over on the way to 2 s for 200 MB."""
    steps = ladder(
        levels.processes(sandbox_s=0.5, import_s=0.05, load_s=2.0, exec_s=0.1, memory_mb=200.0)
    )
    assert [step.level for step in steps] == [Level.SANDBOX, Level.INSTANCE]
    assert steps[1].saves_s == pytest.approx(2.049)


def test_the_last_step_of_a_ladder_with_forks_is_one_more_place() -> None:
    template, instance = ladder(FORKED)
    assert (template.below, template.level) == (Level.LIBRARIES, Level.RESIDENT)
    assert template.adds_mb == pytest.approx(420.0)
    assert (instance.below, instance.level) == (Level.RESIDENT, Level.INSTANCE)
    assert instance.saves_s == pytest.approx(0.02)
    assert instance.adds_mb == 4.0


def test_a_ladder_may_have_one_step_only_beside_forks() -> None:
    (step,) = ladder(PLAIN, steps=False)
    assert (step.below, step.level) == (Level.ABSENT, Level.INSTANCE)
    assert step.saves_s == pytest.approx(3.5)
    assert [step.level for step in ladder(FORKED, steps=False)] == [
        Level.RESIDENT,
        Level.INSTANCE,
    ]


def test_what_is_shared_is_counted_once_on_a_node() -> None:
    ledger = Ledger()
    ledger.open(0, 1000.0)
    ledger.open(1, 1000.0)
    stage = FORKED.takes(Level.RESIDENT)
    assert ledger.adds_mb(0, stage) == 420.0
    ledger.hold(0, stage)
    assert ledger.adds_mb(0, stage) == 20.0
    assert ledger.adds_mb(1, stage) == 420.0
    ledger.hold(0, stage)
    assert ledger.used_mb(0) == 440.0
    assert ledger.frees_mb(0, stage) == 20.0
    ledger.release(0, stage)
    assert ledger.frees_mb(0, stage) == 420.0
    ledger.release(0, stage)
    assert ledger.free_mb(0) == 1000.0


def test_a_reserved_sandbox_takes_its_limit_whatever_is_in_it() -> None:
    profile = levels.processes(
        sandbox_s=0.5,
        import_s=1.0,
        load_s=1.0,
        exec_s=0.1,
        memory_mb=900.0,
        limit_mb=2047.0,
        reserved=True,
    )
    book = Book()
    book.ledger.open(0, 5000.0)
    book.know(0, profile)
    book.put(0, 0, 0, Level.SANDBOX, 0.0, None)
    assert book.ledger.used_mb(0) == 2047.0
    book.put(1, 0, 0, Level.INSTANCE, 0.0, 0)
    assert book.ledger.used_mb(0) == 2047.0
    book.remove(0)
    assert book.ledger.used_mb(0) == 0.0


def test_a_place_that_is_about_to_be_lowered_is_counted_as_if_it_were() -> None:
    book = Book()
    book.ledger.open(0, 5000.0)
    book.know(0, PLAIN)
    book.put(0, 0, 0, Level.INSTANCE, 0.0, None)
    assert book.lower(0, Level.SANDBOX) == pytest.approx(997.0)
    assert book.ledger.used_mb(0) == pytest.approx(3.0)
    assert book.level[0] is Level.INSTANCE
    book.restore(0)
    assert book.ledger.used_mb(0) == pytest.approx(1000.0)
    assert book.lower(0, Level.ABSENT) == pytest.approx(1000.0)
    book.remove(0)
    assert book.ledger.used_mb(0) == pytest.approx(0.0)


def test_a_measurement_replaces_the_profile() -> None:
    book = Book()
    book.ledger.open(0, 5000.0)
    book.know(0, PLAIN)
    book.put(0, 0, 0, Level.INSTANCE, 0.0, None)
    book.measured(0, 1234.0)
    assert book.ledger.used_mb(0) == pytest.approx(1234.0)


def test_an_instance_that_is_a_fork_needs_its_template_besides() -> None:
    book = Book()
    book.ledger.open(0, 5000.0)
    book.know(0, FORKED)
    assert book.adds_mb(0, 0, Level.INSTANCE) == pytest.approx(424.0)
    book.put(0, 0, 0, Level.RESIDENT, 0.0, None)
    assert book.adds_mb(0, 0, Level.INSTANCE) == pytest.approx(4.0)


def test_a_lazy_heap_gives_items_by_their_least_keys() -> None:
    """Held against a plain dictionary over random operations."""
    rng = random.Random(1)
    heap = LazyHeap()
    model: dict[int, float] = {}
    for _ in range(5000):
        item = rng.randrange(30)
        match rng.randrange(4):
            case 0 | 1:
                key = float(rng.randrange(100))
                heap.offer(item, key)
                model[item] = min(key, model.get(item, key))
            case 2:
                heap.discard(item)
                model.pop(item, None)
            case _:
                below = float(rng.randrange(120))
                found = heap.pop(below)
                least = min(model.values(), default=None)
                if least is None or least > below:
                    assert found is None
                else:
                    assert found is not None
                    assert found[0] == least == model.pop(found[1])
        assert len(heap) == len(model)
        assert heap.least == min(model.values(), default=float("inf"))
        assert all((item in heap) is (item in model) for item in range(30))


def test_a_lazy_heap_does_not_grow_with_offers() -> None:
    heap = LazyHeap()
    for key in range(10_000, 0, -1):
        heap.offer(key % 3, float(key))
    assert len(heap._entries) <= 2 * 3 + 65


def test_the_time_in_quarantine_doubles_up_to_an_hour() -> None:
    quarantine = Quarantine()
    waits = []
    now = 0.0
    for _ in range(10):
        quarantine.failed(1, 0, "no", now)
        until = quarantine.listing()[1, 0].until
        assert quarantine.holds(1, 0, until - 0.1)
        assert not quarantine.holds(1, 0, until)
        assert not quarantine.holds(1, 1, now)
        waits.append(until - now)
        now = until
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    quarantine.succeeded(1, 0)
    assert quarantine.listing() == {}
