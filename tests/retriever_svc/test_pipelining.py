from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ragserve.errors import DataLossError, InvalidInputError
from retriever_svc.pipelining import pipelined

AT_MOST = 4


class Numbers:
    """Requests 0, 1, 2 and so on, and how many of them were read."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self.count):
            self.read += 1
            yield number


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_answers_come_as_they_finish() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def answer(number: int) -> int:
        await gates[number].wait()
        return number

    answers = pipelined(aiter(Numbers(3)), answer, AT_MOST)
    for number in (2, 0, 1):
        gates[number].set()
        assert await anext(answers) == number
    assert [each async for each in answers] == []


async def test_no_more_are_at_work_than_allowed() -> None:
    running, most = 0, 0

    async def answer(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    answers = [each async for each in pipelined(aiter(Numbers(100)), answer, AT_MOST)]
    assert sorted(answers) == list(range(100))
    assert most == AT_MOST


async def test_answers_that_nobody_takes_hold_up_the_requests() -> None:
    """A client that sends and does not read must not fill the memory of the service."""
    numbers = Numbers(1_000)

    async def answer(number: int) -> int:
        return number

    answers = pipelined(aiter(numbers), answer, AT_MOST)
    taken = [await anext(answers)]
    await settle()
    assert numbers.read <= AT_MOST + 1
    taken += [each async for each in answers]
    assert sorted(taken) == list(range(1_000))


async def test_what_is_at_work_is_cancelled_when_the_caller_stops() -> None:
    cancelled: list[int] = []

    async def answer(number: int) -> int:
        if number == 0:
            return number
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    answers = pipelined(aiter(Numbers(3)), answer, AT_MOST)
    assert await anext(answers) == 0
    await settle()
    await answers.aclose()
    await settle()
    assert sorted(cancelled) == [1, 2]


async def test_an_answer_that_fails_ends_the_stream() -> None:
    async def answer(number: int) -> int:
        if number == 1:
            raise DataLossError("broken")
        return number

    with pytest.raises(DataLossError):
        [each async for each in pipelined(aiter(Numbers(3)), answer, AT_MOST)]


async def test_requests_before_a_bad_one_are_answered() -> None:
    async def requests() -> AsyncIterator[int]:
        for number in range(20):
            yield number
        raise InvalidInputError("request", "bad")

    async def answer(number: int) -> int:
        await asyncio.sleep(0.001 * (number % 3))
        return number

    answers: list[int] = []

    async def collect() -> None:
        async for each in pipelined(requests(), answer, AT_MOST):
            answers.append(each)  # noqa: PERF401

    with pytest.raises(InvalidInputError):
        await collect()
    assert sorted(answers) == list(range(20))
