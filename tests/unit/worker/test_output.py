"""What functions print: whose line it is, how much is kept, who follows it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from faasd.invocation import LogLine
from worker.output import LONGEST_LINE, LogBook, OutputPipe

Line = tuple[str, str, str]


class Printer:
    """A pipe whose write end this test holds, and the lines that came out of it."""

    def __init__(self, budget: int) -> None:
        self.lines: list[Line] = []
        self.pipe = OutputPipe("stdout", self._emit, budget=budget)

    def _emit(self, request_id: str, stream: str, line: str) -> None:
        self.lines.append((request_id, stream, line))

    def write(self, data: bytes) -> None:
        assert os.write(self.pipe.write_end, data) == len(data)

    def turn(self, request_id: str) -> None:
        """What was written so far is the last request's; what comes next, this one's."""
        self.pipe.drain()
        self.pipe.switch(request_id)

    def texts(self) -> list[str]:
        return [line for _, _, line in self.lines]


@contextmanager
def printing(budget: int) -> Iterator[Printer]:
    printer = Printer(budget)
    try:
        yield printer
    finally:
        printer.pipe.close()


def printed(work: Callable[[Printer], None], *, budget: int = 1 << 20) -> list[Line]:
    """The lines after `work` and the end of the pipe."""

    async def main() -> list[Line]:
        with printing(budget) as printer:
            work(printer)
        return printer.lines

    return asyncio.run(main())


def test_lines_before_a_switch_belong_to_the_request_before_it() -> None:
    def work(printer: Printer) -> None:
        printer.write(b"loading\n")
        printer.turn("r1")
        printer.write(b"one\ntwo\n")
        printer.turn("r2")
        printer.write(b"three\n")
        printer.turn("")
        printer.write(b"between\n")

    assert printed(work) == [
        ("", "stdout", "loading"),
        ("r1", "stdout", "one"),
        ("r1", "stdout", "two"),
        ("r2", "stdout", "three"),
        ("", "stdout", "between"),
    ]


def test_a_line_is_whole_however_it_was_written() -> None:
    def work(printer: Printer) -> None:
        for piece in (b"gr", b"e", b"at\nne", b"xt\n"):
            printer.write(piece)
            printer.pipe.drain()

    assert [line for _, _, line in printed(work)] == ["great", "next"]


def test_a_line_without_an_end_is_told_when_its_request_is_over() -> None:
    def work(printer: Printer) -> None:
        printer.turn("r1")
        printer.write(b"no newline")
        printer.turn("r2")
        printer.write(b"another")

    assert printed(work) == [("r1", "stdout", "no newline"), ("r2", "stdout", "another")]


def test_bytes_that_are_no_text_are_shown_as_well_as_can_be() -> None:
    assert printed(lambda p: p.write(b"caf\xc3\xa9 \xff\n")) == [("", "stdout", "café \ufffd")]


def test_an_empty_line_is_a_line() -> None:
    assert [line for _, _, line in printed(lambda p: p.write(b"a\n\nb\n"))] == ["a", "", "b"]


def test_a_line_is_cut_at_the_longest() -> None:
    [(_, _, line)] = printed(lambda p: p.write(b"x" * 20_000 + b"\n"))

    assert line == "x" * LONGEST_LINE


def test_a_line_that_never_ends_is_told_in_parts() -> None:
    def work(printer: Printer) -> None:
        for _ in range(4):
            printer.write(b"x" * 10_000)
            printer.pipe.drain()

    assert len(printed(work)) >= 2


def test_a_mark_says_whose_line_it_is() -> None:
    def work(printer: Printer) -> None:
        printer.pipe.expect("r1")
        printer.pipe.expect("r2")
        printer.write(b"\x1er1\x1fone\n\x1er2\x1ftwo\n\x1e\x1fnobody's\nunmarked\n")

    assert printed(work) == [
        ("r1", "stdout", "one"),
        ("r2", "stdout", "two"),
        ("", "stdout", "nobody's"),
        ("", "stdout", "unmarked"),
    ]


def test_a_mark_of_a_request_that_is_not_running_counts_for_nothing() -> None:
    def work(printer: Printer) -> None:
        printer.pipe.expect("r1")
        printer.pipe.settle("r1")
        printer.write(b"\x1er1\x1flate\n\x1eforged\x1fline\n")

    assert printed(work) == [("", "stdout", "late"), ("", "stdout", "line")]


def test_requests_that_run_beside_each_other_have_budgets_of_their_own() -> None:
    def work(printer: Printer) -> None:
        printer.pipe.expect("loud")
        printer.pipe.expect("quiet")
        printer.write((b"\x1eloud\x1f" + b"a" * 99 + b"\n") * 30)
        printer.write(b"\x1equiet\x1fheard\n")
        printer.pipe.settle("loud")
        printer.pipe.settle("quiet")

    lines = printed(work, budget=1024)

    assert ("quiet", "stdout", "heard") in lines
    assert [request for request, _, line in lines if "dropped" in line] == ["loud"]


def test_past_the_budget_output_is_dropped_and_the_loss_is_told_once() -> None:
    def work(printer: Printer) -> None:
        printer.turn("r1")
        printer.write(b"a" * 99 + b"\n")
        for _ in range(20):
            printer.write(b"b" * 99 + b"\n")

    *kept, notice = printed(work, budget=1024)

    assert 1 <= len(kept) <= 10
    assert notice[0] == "r1"
    assert notice[2].startswith("[faasd dropped ")
    assert notice[2].endswith("bytes of output: 1 KB are kept per invocation]")


def test_the_next_request_has_a_budget_of_its_own() -> None:
    def work(printer: Printer) -> None:
        printer.turn("r1")
        printer.write((b"a" * 99 + b"\n") * 30)
        printer.turn("r2")
        printer.write(b"fresh\n")

    assert printed(work, budget=1024)[-1] == ("r2", "stdout", "fresh")


def test_half_a_line_of_a_request_past_its_budget_is_not_told_with_the_next() -> None:
    def work(printer: Printer) -> None:
        printer.turn("r1")
        printer.write((b"a" * 99 + b"\n") * 30 + b"half")
        printer.turn("r2")
        printer.write(b" line\n")

    assert printed(work, budget=1024)[-1] == ("r2", "stdout", " line")


def test_the_end_of_the_writer_closes_the_pipe_after_its_last_words() -> None:
    async def main() -> list[str]:
        printer = Printer(1 << 20)
        printer.write(b"last words")
        printer.pipe.handed_over()
        while printer.pipe._open:
            await asyncio.sleep(0)
        printer.pipe.close()
        return printer.texts()

    assert asyncio.run(main()) == ["last words"]


def test_closing_twice_is_closing_once() -> None:
    async def main() -> list[str]:
        printer = Printer(1 << 20)
        printer.write(b"x\n")
        printer.pipe.close()
        printer.pipe.close()
        printer.turn("r1")
        return printer.texts()

    assert asyncio.run(main()) == ["x"]


def added(book: LogBook, *lines: str, function: str = "default/echo") -> None:
    for line in lines:
        book.add(function, "rev", "i1", "r1", "stdout", line)


def texts(lines: list[LogLine]) -> list[str]:
    return [line.line for line in lines]


@pytest.mark.parametrize(("count", "expected"), [(2, ["b", "c"]), (99, ["a", "b", "c"]), (0, [])])
def test_the_last_lines_are_told(count: int, expected: list[str]) -> None:
    book = LogBook(10)

    added(book, "a", "b", "c")

    assert texts(book.tail("default/echo", count)) == expected


def test_no_more_lines_are_kept_than_allowed() -> None:
    book = LogBook(2)

    added(book, "a", "b", "c")

    assert texts(book.tail("default/echo", 9)) == ["b", "c"]


def test_functions_have_their_lines_to_themselves() -> None:
    book = LogBook(2)

    added(book, "mine")
    added(book, "x", "y", "z", function="default/other")

    assert texts(book.tail("default/echo", 9)) == ["mine"]


def test_a_forgotten_function_has_no_lines() -> None:
    book = LogBook(2)
    added(book, "a")

    book.forget("default/echo")

    assert book.tail("default/echo", 9) == []


def test_a_line_says_where_it_comes_from() -> None:
    book = LogBook(1)
    added(book, "hello")

    plain = book.tail("default/echo", 1)[0].to_plain()

    assert plain.pop("ts") > 0
    assert plain == {
        "function": "default/echo",
        "revision": "rev",
        "instance": "i1",
        "request_id": "r1",
        "stream": "stdout",
        "line": "hello",
    }


def test_a_follower_gets_the_tail_and_then_each_further_line_once() -> None:
    async def main() -> list[str]:
        book = LogBook(10)
        added(book, "old", "newer")
        follower = book.follow("default/echo", 1)
        seen = [(await anext(follower)).line]
        added(book, "live", "alive")
        added(book, "not mine", function="default/other")
        seen += [(await anext(follower)).line for _ in range(2)]
        await follower.aclose()  # type: ignore[attr-defined]
        return seen

    assert asyncio.run(main()) == ["newer", "live", "alive"]


def test_a_slow_follower_misses_lines_and_holds_nobody_up() -> None:
    async def main() -> tuple[list[str], list[str]]:
        book = LogBook(3)
        added(book, "first")
        slow = book.follow("default/echo", 1)
        await anext(slow)
        added(book, *"abcdef")
        seen = [(await anext(slow)).line for _ in range(3)]
        await slow.aclose()  # type: ignore[attr-defined]
        return seen, texts(book.tail("default/echo", 9))

    seen, kept = asyncio.run(main())

    assert seen == ["a", "b", "c"]
    assert kept == ["d", "e", "f"]


def test_a_follower_that_leaves_is_forgotten() -> None:
    async def main() -> int:
        book = LogBook(3)
        added(book, "first")
        follower = book.follow("default/echo", 1)
        await anext(follower)
        await follower.aclose()  # type: ignore[attr-defined]
        return len(book._followers)

    assert asyncio.run(main()) == 0


def test_a_wake_up_for_what_was_read_already_closes_nothing() -> None:
    """Data is drained at a switch while the loop has already noticed it: the pipe stays open."""

    async def run() -> list[tuple[str, str]]:
        lines: list[tuple[str, str]] = []
        pipe = OutputPipe(
            "stdout", lambda request, _, line: lines.append((request, line)), budget=99
        )
        pipe.switch("one")
        os.write(pipe.write_end, b"first\n")
        # Both are due in the same turn of the loop: the reader's callback, and this reading.
        asyncio.get_running_loop().call_soon(pipe.drain)
        await asyncio.sleep(0)
        pipe.switch("two")
        pipe._readable()
        os.write(pipe.write_end, b"second\n")
        pipe.drain()
        pipe.switch("")
        pipe.close()
        return lines

    assert asyncio.run(run()) == [("one", "first"), ("two", "second")]
