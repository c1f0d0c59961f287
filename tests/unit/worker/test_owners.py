"""Who owns which revision: the last to leave ends it, and the highest minimum counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.owners import Owners


def test_a_revision_is_over_when_the_last_owner_leaves() -> None:
    owners: Owners[str] = Owners()
    owners.add("f@1", "a", 0)
    owners.add("f@1", "b", 0)

    assert owners.of("f@1") == ["a", "b"]
    assert not owners.remove("f@1", "a")
    assert owners.remove("f@1", "b")
    assert owners.of("f@1") == []


def test_who_owns_nothing_ends_nothing() -> None:
    owners: Owners[str] = Owners()
    owners.add("f@1", "a", 0)

    assert not owners.remove("f@1", "b")
    assert not owners.remove("f@2", "a")
    assert owners.remove("f@1", "a")
    assert not owners.remove("f@1", "a")


def test_the_highest_minimum_counts_while_its_owner_is_there() -> None:
    owners: Owners[str] = Owners()
    assert owners.minimum("f@1") == 0

    owners.add("f@1", "a", 1)
    owners.add("f@1", "b", 3)
    assert owners.minimum("f@1") == 3
    owners.add("f@1", "b", 2)
    assert owners.minimum("f@1") == 2
    owners.remove("f@1", "b")
    assert owners.minimum("f@1") == 1


KEYS, NAMES = st.sampled_from(["f@1", "f@2", "g@1"]), st.sampled_from("abc")


@given(st.lists(st.tuples(st.booleans(), KEYS, NAMES, st.integers(0, 3)), max_size=40))
def test_owners_are_those_who_came_and_did_not_leave(
    events: list[tuple[bool, str, str, int]],
) -> None:
    owners: Owners[str] = Owners()
    wanted: dict[tuple[str, str], int] = {}
    for adds, key, name, minimum in events:
        if adds:
            owners.add(key, name, minimum)
            wanted[key, name] = minimum
        else:
            before = wanted.pop((key, name), None)
            last = not any(other == key for other, _ in wanted)
            assert owners.remove(key, name) == (before is not None and last)

        for one in ("f@1", "f@2", "g@1"):
            held = {who: least for (other, who), least in wanted.items() if other == one}
            assert set(owners.of(one)) == set(held)
            assert owners.minimum(one) == max(held.values(), default=0)
        for who in "abc":
            assert owners.wanted_by(who) == {key for key, name in wanted if name == who}
