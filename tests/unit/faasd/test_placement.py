"""Where GPUs go: cases worked out by hand, and what holds for every sequence of requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faasd.policies.placement import (
    Device,
    Holding,
    Placement,
    Refusal,
    Request,
    candidates,
    make_room,
    place,
    release,
    spread,
)

SMALL = Device("A", "gpu0", 16_000)
LARGE = Device("B", "gpu1", 40_000)
PARTS = [
    Device("M0", "gpu2.0", 20_000, partition=True),
    Device("M1", "gpu2.1", 20_000, partition=True),
]


def lost(uuid: str, label: str) -> Device:
    return Device(uuid, label, 80_000, fault="GPU is lost")


def placed(found: Placement | Refusal) -> tuple[str, ...]:
    assert isinstance(found, Placement), found
    return found.devices


def refused(found: Placement | Refusal) -> Refusal:
    assert isinstance(found, Refusal), found
    return found


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(0.5, 4_000), ("A",)),
        (Request(0.5, 20_000), ("B",)),
        (Request(0.5), ("A",)),
        (Request(1), ("A",)),
        (Request(1, 17_000), ("B",)),
        (Request(2), ("A", "B")),
    ],
    ids=str,
)
def test_an_empty_machine_gives_the_smallest_devices_that_do(
    request_: Request, expected: tuple[str, ...]
) -> None:
    assert placed(place("i", request_, [LARGE, SMALL])) == expected


def test_a_fraction_goes_where_the_least_memory_is_left() -> None:
    held = [Holding("other", "B", 0.1, 36_000)]

    assert placed(place("i", Request(0.1, 3_000), [SMALL, LARGE], held)) == ("B",)
    assert placed(place("i", Request(0.1, 5_000), [SMALL, LARGE], held)) == ("A",)


def test_a_whole_device_is_held_alone() -> None:
    held = [Holding("fraction", "A", 0.1, 10), Holding("whole", "B", 1.0, 10)]

    both = refused(place("i", Request(1), [SMALL, LARGE], held))
    fraction = placed(place("i", Request(0.9, 10), [SMALL, LARGE], held))

    assert "gpu0 is held by an instance, gpu1 is held by an instance" in both.detail
    assert fraction == ("A",)


def test_four_quarters_fill_a_device_whatever_else_uses_some_of_it() -> None:
    device = Device("A", "gpu0", 16_000, foreign_mb=437.25)
    held: tuple[Holding, ...] = ()
    for number in range(4):
        found = place(str(number), Request(0.25), [device], held)
        assert isinstance(found, Placement)
        held += found.holdings

    assert "0 of its share free" in refused(place("5", Request(0.25), [device], held)).detail


def test_what_others_use_of_a_device_cannot_be_had() -> None:
    device = Device("A", "gpu0", 16_000, foreign_mb=12_000)

    found = refused(place("i", Request(0.1, 5_000), [device]))

    assert found.detail == (
        "The function needs 0.1 of a GPU with 5,000 MB; gpu0 has 4,000 MB free of 16,000 MB."
    )
    assert found.waiting_helps


@pytest.mark.parametrize(
    ("request_", "devices", "told"),
    [
        (Request(0.5, 12_000), [Device("C", "gpu3", 4_000)], "gpu3 has 4,000 MB."),
        (Request(1), [lost("A", "gpu0")], "gpu0 is out of service (GPU is lost)"),
        (Request(2), [SMALL], "2 GPUs; only gpu0 can be had."),
        (Request(2, 9_000), PARTS, "2 GPUs with 9,000 MB each; gpu2.0 is a MIG device"),
        (Request(1), [], "1 GPU; there is none."),
        (Request(1.5), [SMALL, LARGE], "gpus = 1.5 is neither a fraction"),
        (Request(0, 100), [SMALL], "gpu_memory_mb = 100 is asked for with gpus = 0"),
    ],
)
def test_what_can_never_be_placed_is_told_with_the_reason(
    request_: Request, devices: list[Device], told: str
) -> None:
    found = refused(place("i", request_, devices))

    assert told in found.detail
    assert not found.waiting_helps


def test_waiting_helps_where_only_others_are_in_the_way() -> None:
    held = [Holding("other", "A", 1.0)]

    assert refused(place("i", Request(1), [SMALL], held)).waiting_helps
    assert not refused(place("i", Request(1, 20_000), [SMALL], held)).waiting_helps


def test_a_sandbox_keeps_its_instances_on_its_own_devices() -> None:
    found = refused(place("i", Request(1), [SMALL, LARGE], [Holding("o", "A", 1.0)], within={"A"}))

    assert "gpu1 is not in this sandbox" in found.detail
    assert placed(place("i", Request(1), [SMALL, LARGE], within={"B"})) == ("B",)


def test_a_mig_device_is_a_device_of_its_own() -> None:
    assert placed(place("i", Request(1), PARTS, [Holding("o", "M0", 0.5)])) == ("M1",)


def test_room_is_made_by_the_longest_unused_and_by_no_more_than_needed() -> None:
    held = [
        Holding("old", "A", 0.1, 2_000),
        Holding("older", "B", 0.1, 30_000),
        Holding("new", "A", 0.1, 12_000),
    ]

    ended = make_room(Request(0.1, 13_000), [SMALL, LARGE], held, ["older", "old", "new"])
    within = make_room(
        Request(0.1, 13_000), [SMALL, LARGE], held, ["older", "old", "new"], within={"A"}
    )

    assert ended == ("older",)
    assert within == ("new",)


def test_no_room_is_made_where_it_would_not_be_enough() -> None:
    held = [Holding("idle", "A", 0.5), Holding("busy", "A", 0.5)]

    assert make_room(Request(1), [SMALL], held, ["idle"]) is None
    assert make_room(Request(1), [SMALL], [], ["idle"]) == ()


def test_the_devices_of_a_sandbox_are_those_that_its_instances_would_use() -> None:
    machine = [Device(name, name, 16_000) for name in "ABCD"]

    assert spread(Request(1), 1, machine) == ("A",)
    assert spread(Request(1), 8, machine) == ("A", "B", "C", "D")
    assert spread(Request(0.25), 4, machine) == ("A",)
    assert spread(Request(0.25), 5, machine) == ("A", "B")
    assert spread(Request(2), 1, machine) == ("A", "B")
    assert spread(Request(5), 1, machine) == ()


def test_a_sandbox_prefers_devices_that_have_room_now() -> None:
    machine = [Device(name, name, 16_000) for name in "AB"]
    held = [Holding("other", "A", 1.0)]

    assert spread(Request(1), 1, machine, held) == ("B",)
    assert spread(Request(1), 2, machine, held) == ("B", "A")


amounts = st.sampled_from([0, 100, 1_000, 4_000, 7_999.5, 16_000, 30_000])
requests = st.builds(
    Request, gpus=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.9, 1, 2, 3]), memory_mb=amounts
)
machines = st.lists(
    st.builds(
        Device,
        uuid=st.sampled_from("ABCDEF"),
        label=st.just("gpu"),
        memory_mb=st.sampled_from([4_000, 16_000, 40_000]),
        foreign_mb=st.sampled_from([0, 437.25, 3_999, 50_000]),
        fault=st.sampled_from(["", "", "", "GPU is lost"]),
        partition=st.booleans(),
    ),
    max_size=5,
    unique_by=lambda one: one.uuid,
)
# A request, or how far back the instance to release was placed.
histories = st.lists(requests | st.integers(0, 5), max_size=40)


def live_through(
    machine: list[Device], history: list[Request | int]
) -> tuple[tuple[Holding, ...], list[str]]:
    """The holdings at the end, and the instances that hold them in order of arrival."""
    held: tuple[Holding, ...] = ()
    live: list[str] = []
    for number, event in enumerate(history):
        if isinstance(event, int):
            if event < len(live):
                held = release(held, {live.pop(event)})
            continue
        found = place(str(number), event, machine, held)
        if isinstance(found, Placement):
            held += found.holdings
            live.append(str(number))
    return held, live


@given(machines, histories)
def test_no_device_is_ever_given_beyond_what_it_has(
    machine: list[Device], history: list[Request | int]
) -> None:
    held, _ = live_through(machine, history)

    for device in machine:
        here = [one for one in held if one.device == device.uuid]
        assert sum(one.share for one in here) <= 1 + 1e-5
        assert sum(one.claims_mb(device) for one in here) <= device.usable_mb + 1e-3
        assert len(here) <= 1 or all(one.share < 1 for one in here)
        assert not here or not device.fault


@given(machines, histories, requests)
def test_a_placement_has_as_many_devices_as_were_asked_for(
    machine: list[Device], history: list[Request | int], request: Request
) -> None:
    held, _ = live_through(machine, history)

    found = place("new", request, machine, held)

    if isinstance(found, Placement):
        chosen = [one for one in machine if one.uuid in found.devices]
        assert len(chosen) == len(found.devices) == request.count
        assert request.count == 1 or not any(one.partition for one in chosen)
        assert set(found.devices) <= candidates(request, machine)
    else:
        assert found.detail.startswith("The function needs")
        assert found.waiting_helps == bool(candidates(request, machine))


@given(machines, histories, requests)
def test_a_release_restores_what_was_there_before(
    machine: list[Device], history: list[Request | int], request: Request
) -> None:
    held, _ = live_through(machine, history)

    found = place("new", request, machine, held)

    if isinstance(found, Placement):
        left = release((*held, *found.holdings), {"new"})
        assert left == held
        assert place("new", request, machine, left) == found


@given(machines, histories, requests)
def test_room_that_was_made_is_enough_and_none_of_it_needless(
    machine: list[Device], history: list[Request | int], request: Request
) -> None:
    held, live = live_through(machine, history)

    ended = make_room(request, machine, held, live)

    if ended is None:
        assert isinstance(place("new", request, machine, release(held, live)), Refusal)
        return
    assert isinstance(place("new", request, machine, release(held, ended)), Placement)
    for spared in ended:
        left = release(held, set(ended) - {spared})
        assert isinstance(place("new", request, machine, left), Refusal)


@given(machines, histories, requests, st.integers(1, 20))
def test_a_sandbox_gets_devices_exactly_when_its_instances_could_ever_be_placed(
    machine: list[Device], history: list[Request | int], request: Request, count: int
) -> None:
    held, _ = live_through(machine, history)

    found = spread(request, count, machine, held)

    possible = candidates(request, machine)
    assert set(found) <= possible
    assert len(found) >= request.count or not possible
