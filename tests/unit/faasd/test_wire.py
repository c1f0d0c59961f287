"""The connection between controller and worker: multiplexed, and each gets its own answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faasd.errors import (
    BY_CODE,
    Cancelled,
    FaasdError,
    InternalError,
    NotFound,
    WorkerLost,
)
from faasd.wire import (
    Answer,
    Channel,
    Request,
)
from tests.loops import in_loop, run_bounded, until
from tests.unit.faasd.channels import Waiting, collect, connected, ends, quiet, serving

pytestmark = pytest.mark.usefixtures("each_loop")


@pytest.mark.parametrize(
    "payload", [None, b"", b"\0\xff", "text", 7, [1, [2.5]], {"a": None}, b"x" * (5 << 20)]
)
@in_loop
async def test_a_request_is_answered_with_what_the_other_side_says(payload: Any) -> None:
    async with connected() as (here, there):
        answer = await here.call("echo", payload)

        assert answer == Answer(payload, None)
        await until(lambda: quiet(here, there))


@in_loop
async def test_the_method_is_told() -> None:
    async def name(request: Request) -> Answer:
        return Answer(request.method)

    async with connected(name) as (here, _there):
        assert (await here.call("the method", None)).payload == "the method"


@in_loop
async def test_both_sides_ask_each_other_at_once() -> None:
    async def double(request: Request) -> Answer:
        return Answer(request.payload * 2)

    async with connected(double) as (here, there):
        asked = [channel.call("any", n) for n in range(50) for channel in (here, there)]
        answers = [answer.payload for answer in await asyncio.gather(*asked)]

    assert answers == [value for n in range(50) for value in (n * 2, n)]


@in_loop
async def test_a_request_may_ask_back_before_it_is_answered() -> None:
    async with contextlib.AsyncExitStack() as stack:
        left, right = await ends()
        here = await stack.enter_async_context(serving(left))

        async def ask_back(request: Request) -> Answer:
            return Answer([(await there.call("echo", request.payload)).payload])

        there = await stack.enter_async_context(serving(right, ask_back))

        assert (await here.call("nested", "x")).payload == ["x"]


@in_loop
async def test_many_in_flight_are_answered_in_any_order() -> None:
    waiting = Waiting()
    async with connected(waiting.serve) as (here, there):
        calls = [asyncio.ensure_future(here.call("wait", n)) for n in range(300)]
        await until(lambda: len(waiting.begun) == 300)

        for n in reversed(range(300)):
            waiting.begun[n].set_result(-n)
        answers = await asyncio.gather(*calls)

        assert [answer.payload for answer in answers] == [-n for n in range(300)]
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize("kind", sorted(BY_CODE))
@in_loop
async def test_every_class_of_error_crosses_and_comes_back(kind: str) -> None:
    raised = BY_CODE[kind](
        "What was wrong.", remedy="Do this.", retry_after_s=1.5, traceback="T", worker="w", n=[1]
    )

    async def refuse(_request: Request) -> Answer:
        raise raised

    async with connected(refuse) as (here, there):
        with pytest.raises(FaasdError) as caught:
            await here.call("refused", None)

        assert type(caught.value) is BY_CODE[kind]
        assert caught.value.to_problem() == raised.to_problem()
        await until(lambda: quiet(here, there))


@pytest.mark.parametrize(
    "defect", [ZeroDivisionError("inner"), BrokenPipeError("inner"), TimeoutError("inner")]
)
@in_loop
async def test_a_defect_is_answered_and_keeps_its_details(defect: Exception) -> None:
    async def fail(request: Request) -> Answer:
        if request.method == "fail":
            raise defect
        return Answer("still here")

    async with connected(fail) as (here, _there):
        with pytest.raises(InternalError) as caught:
            await here.call("fail", None)

        assert "inner" not in str(caught.value.to_problem())
        assert (await here.call("work", None)).payload == "still here"


@in_loop
async def test_an_answer_that_cannot_be_packed_is_a_defect_of_the_other_side() -> None:
    async def answer(request: Request) -> Answer:
        return Answer(object() if request.payload else None)

    async with connected(answer) as (here, _there):
        with pytest.raises(InternalError):
            await here.call("any", payload=True)

        assert (await here.call("any", payload=False)).payload is None


@in_loop
async def test_cancelling_a_call_cancels_it_on_the_other_side_and_no_other() -> None:
    waiting = Waiting()
    async with connected(waiting.serve) as (here, there):
        first, second = (asyncio.ensure_future(here.call("wait", n)) for n in (1, 2))
        await until(lambda: len(waiting.begun) == 2)

        first.cancel()
        await until(lambda: waiting.cancelled)
        waiting.begun[2].set_result("served")

        assert (await second).payload == "served"
        assert waiting.cancelled == [1]
        with pytest.raises(asyncio.CancelledError):
            await first
        await until(lambda: quiet(here, there))


@in_loop
async def test_a_cancellation_that_meets_the_answer_leaves_nothing_behind() -> None:
    waiting = Waiting()
    async with connected(waiting.serve) as (here, there):
        call = asyncio.ensure_future(here.call("wait", 1))
        await until(lambda: waiting.begun)

        waiting.begun[1].set_result("too late")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        await until(lambda: quiet(here, there))
        assert waiting.cancelled == []


@in_loop
async def test_what_the_serving_side_cancels_by_itself_comes_back_as_cancelled() -> None:
    async def give_up(_request: Request) -> Answer:
        raise asyncio.CancelledError

    async with connected(give_up) as (here, _there):
        with pytest.raises(Cancelled):
            await here.call("any", None)


@in_loop
async def test_notes_arrive_in_the_order_they_were_sent() -> None:
    heard: list[tuple[str, Any]] = []
    async with connected(note=lambda *note: heard.append(note)) as (here, _there):
        for n in range(100):
            here.notify("note", n)
        await here.call("echo", None)

    assert heard == [("note", n) for n in range(100)]


@in_loop
async def test_a_lost_connection_fails_all_that_is_asked_and_cancels_all_that_is_served() -> None:
    waiting = Waiting()
    async with connected(waiting.serve, back=waiting.serve) as (here, there):
        calls = [asyncio.ensure_future(here.call("wait", f"out{n}")) for n in range(20)]
        calls += [asyncio.ensure_future(there.call("wait", f"in{n}")) for n in range(20)]
        await until(lambda: len(waiting.begun) == 40)

        here.close()

        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {WorkerLost}
        await until(lambda: quiet(here, there))
        assert len(waiting.cancelled) == 40


@in_loop
async def test_a_closed_channel_refuses_calls_and_swallows_notes() -> None:
    left, right = await ends()
    async with serving(left) as here:
        here.close()

        here.notify("note", None)
        with pytest.raises(WorkerLost):
            await here.call("echo", None)
    right.abort()


@in_loop
async def test_whoever_was_heard_is_remembered() -> None:
    async with connected() as (here, there):
        before = there.heard_at
        await until(lambda: asyncio.get_running_loop().time() > before)
        await here.call("echo", None)

        assert there.heard_at > before


Step = tuple[str, int, int, int | None]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reply", "error", "items", "broken", "upload", "both"]),
        st.integers(0, 6),
        st.integers(0, 5),
        st.none() | st.integers(0, 12),
    ),
    max_size=25,
)


async def _ask(channel: Channel, number: int, step: Step) -> Any:
    """What came of one request: a value, the items, or the class of an error."""
    seen: list[Any] = []
    try:
        parts = _numbered(number, step[2]) if step[0] in ("upload", "both") else None
        answer = await channel.call(step[0], [number, *step[1:3]], parts)
        if answer.items is None:
            return answer.payload
        async for item in answer.items:
            seen.append(item)  # noqa: PERF401
    except FaasdError as error:
        return (seen, type(error), error.detail)
    return seen


def _expected(number: int, step: Step) -> Any:
    kind, _turns, count, _cancelled = step
    items = [[number, n] for n in range(count)]
    return {
        "reply": number,
        "error": ([], NotFound, str(number)),
        "items": items,
        "broken": (items, NotFound, str(number)),
        "upload": items,
        "both": items,
    }[kind]


async def _numbered(number: int, count: int) -> AsyncIterator[Any]:
    for n in range(count):
        yield [number, n]
        await asyncio.sleep(0)


async def _act(request: Request) -> Answer:
    method, (number, turns, count) = request.method, request.payload
    for _ in range(turns):
        await asyncio.sleep(0)
    if method == "reply":
        return Answer(number)
    if method == "error":
        raise NotFound(str(number))
    if method == "upload":
        return await collect(request)
    if method == "both":
        return Answer(None, request.items)

    async def items() -> AsyncIterator[Any]:
        async for item in _numbered(number, count):
            yield item
        if method == "broken":
            raise NotFound(str(number))

    return Answer(None, items())


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS)
def test_however_requests_interleave_each_gets_its_own_answer(
    ours: list[Step], theirs: list[Step]
) -> None:
    async def cancel_after(call: asyncio.Future[Any], turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()

    async def main() -> None:
        async with connected(_act, back=_act) as (here, there):
            asked = [(here, n, step) for n, step in enumerate(ours)]
            asked += [(there, n, step) for n, step in enumerate(theirs)]
            calls = [asyncio.ensure_future(_ask(*one)) for one in asked]
            cancelling = [
                cancel_after(call, step[3])
                for call, (_, _, step) in zip(calls, asked, strict=True)
                if step[3] is not None
            ]
            await asyncio.gather(*cancelling)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)

            for outcome, (_, number, step) in zip(outcomes, asked, strict=True):
                if not isinstance(outcome, asyncio.CancelledError):
                    assert outcome == _expected(number, step)
                else:
                    assert step[3] is not None
            await until(lambda: quiet(here, there))

    run_bounded(main())
