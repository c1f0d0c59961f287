"""Tables: aligned, and in markdown."""

from __future__ import annotations

import pytest

from bench.table import aligned, count, markdown

HEADER = ["server", "requests/s"]
ROWS = [["faasd", "1,200"], ["a longer name", "9"]]


def test_names_stand_left_and_numbers_right() -> None:
    assert aligned(HEADER, ROWS).splitlines() == [
        "server         requests/s",
        "faasd               1,200",
        "a longer name           9",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert aligned(HEADER, []) == "server  requests/s"


def test_markdown_escapes_what_would_end_a_cell() -> None:
    assert markdown(HEADER, [["a|b", "1"]]).splitlines() == [
        "| server | requests/s |",
        "| --- | ---: |",
        "| a\\|b | 1 |",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.039, "0.04"), (9.5, "9.50"), (15.04, "15.0"), (25_484.2, "25,484")]
)
def test_numbers_have_about_three_places(value: float, text: str) -> None:
    assert count(value) == text
