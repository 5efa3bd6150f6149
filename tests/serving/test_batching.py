from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ragserve.errors import InternalError, InvalidInputError, ResourceExhaustedError, UnavailableError
from ragserve.serving.batching import Batcher, BatchLimits, Size
from ragserve.serving.metrics import StageClock
from tests.serving.conftest import until


class Work:
    """A batch function that waits at a gate and remembers its batches."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()

    def __call__(self, items: Sequence[int]) -> list[Any]:
        self.batches.append(list(items))
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(60)
        return [InvalidInputError("item", "is 13") if item == 13 else item * 10 for item in items]


@asynccontextmanager
async def batcher(
    work: Callable[[Sequence[int]], Sequence[Any]],
    size: Callable[[int], Size] = lambda _: Size(),
    lanes: int = 1,
    **limits: Any,
) -> AsyncIterator[Batcher[int, int]]:
    most = BatchLimits(**{"max_items": 4, "max_waiting": 8, **limits})
    made: Batcher[int, int] = Batcher(work, name="work", limits=most, size=size, lanes=lanes)
    yield made
    if isinstance(work, Work):
        work.gate.set()
    await made.close()


async def submitted(to: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(to.submit(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_an_item_alone_does_not_wait() -> None:
    work = Work()
    work.gate.set()
    async with batcher(work) as batches:
        assert await asyncio.wait_for(batches.submit(1), 30) == 10
        assert await asyncio.wait_for(batches.submit(2), 30) == 20
    assert work.batches == [[1], [2]]
    assert work.threads == {"work_0"}


async def test_what_arrives_meanwhile_is_the_next_batch() -> None:
    work = Work()
    async with batcher(work) as batches:
        first = await submitted(batches, 1)
        await until(lambda: work.batches)
        rest = await submitted(batches, 2, 3, 4, 5, 6)
        work.gate.set()
        assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40, 50, 60]
    assert work.batches == [[1], [2, 3, 4, 5], [6]]


async def test_batches_are_capped_by_cost() -> None:
    work = Work()
    async with batcher(work, max_cost=10, size=Size) as batches:
        first = await submitted(batches, 1)
        await until(lambda: work.batches)
        rest = await submitted(batches, 4, 6, 1, 99, 2)
        work.gate.set()
        await asyncio.gather(*first, *rest)
    assert work.batches == [[1], [4, 6], [1], [99], [2]]


async def test_callers_that_left_are_skipped() -> None:
    work = Work()
    async with batcher(work) as batches:
        first = await submitted(batches, 1)
        await until(lambda: work.batches)
        rest = await submitted(batches, 2, 3, 4)
        rest[1].cancel()
        await asyncio.wait((rest[1],))
        work.gate.set()
        assert await asyncio.gather(first[0], rest[0], rest[2]) == [10, 20, 40]
    assert work.batches == [[1], [2, 4]]


async def test_a_caller_that_leaves_during_its_batch_harms_nobody() -> None:
    work = Work()
    async with batcher(work) as batches:
        first = await submitted(batches, 1)
        await until(lambda: work.batches)
        pair = await submitted(batches, 2, 3)
        first[0].cancel()
        work.gate.set()
        assert await asyncio.gather(*pair) == [20, 30]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    work = Work()
    async with batcher(work, max_waiting=2) as batches:
        running = await submitted(batches, 1)
        await until(lambda: work.batches)
        waiting = await submitted(batches, 2, 3)
        with pytest.raises(ResourceExhaustedError, match="2 waiting") as full:
            await batches.submit(4)
        assert full.value.retry_after_seconds is not None
        assert full.value.retry_after_seconds > 0
        waiting[0].cancel()
        await asyncio.wait((waiting[0],))
        late = await submitted(batches, 5)
        work.gate.set()
        assert await asyncio.gather(*running, waiting[1], *late) == [10, 30, 50]


async def test_the_time_to_come_back_follows_the_batches() -> None:
    def slow(items: Sequence[int]) -> Sequence[int]:
        time.sleep(0.05)
        return items

    async with batcher(slow, max_items=1, max_waiting=4) as batches:
        await batches.submit(0)
        tasks = await submitted(batches, 1)
        await asyncio.sleep(0.01)
        tasks += await submitted(batches, 2, 3, 4, 5)
        with pytest.raises(ResourceExhaustedError) as full:
            await batches.submit(6)
        assert full.value.retry_after_seconds is not None
        assert 0.2 < full.value.retry_after_seconds < 30
        await asyncio.gather(*tasks)


async def test_one_bad_item_fails_alone() -> None:
    work = Work()
    async with batcher(work) as batches:
        tasks = await submitted(batches, 12, 13, 14)
        work.gate.set()
        good, bad, other = await asyncio.gather(*tasks, return_exceptions=True)
    assert (good, other) == (120, 140)
    assert isinstance(bad, InvalidInputError)


async def test_a_batch_that_raises_fails_its_items_and_the_worker_goes_on() -> None:
    def broken(items: Sequence[int]) -> Sequence[int]:
        if 0 in items:
            raise ZeroDivisionError
        return items

    async with batcher(broken) as batches:
        with pytest.raises(ZeroDivisionError):
            await batches.submit(0)
        assert await batches.submit(1) == 1


async def test_an_idle_lane_keeps_nothing_of_its_last_batch() -> None:
    """What an item refers to may be large: a version of a knowledge base that is replaced meanwhile."""

    class Item:
        pass

    made: Batcher[Item, int] = Batcher(
        lambda items: [1] * len(items), name="work", limits=BatchLimits(max_items=4, max_waiting=8), lanes=2
    )
    item = Item()
    seen = weakref.ref(item)
    assert await made.submit(item) == 1
    del item
    await until(lambda: seen() is None)
    await made.close()


async def test_a_wrong_number_of_results_is_a_bug() -> None:
    async with batcher(lambda items: [*items, 1]) as batches:
        with pytest.raises(InternalError, match="2 results for 1 items"):
            await batches.submit(0)


async def test_the_queue_time_goes_to_the_clock() -> None:
    work = Work()
    async with batcher(work) as batches:
        first = await submitted(batches, 1)
        await until(lambda: work.batches)
        clock = StageClock()
        second = asyncio.create_task(batches.submit(2, clock))
        await asyncio.sleep(0.05)
        work.gate.set()
        await asyncio.gather(*first, second)
    (timing,) = clock.timings()
    assert (timing.stage, timing.count) == ("queue", 1)
    assert 0.04 < timing.seconds < 30


async def test_close_finishes_what_is_queued_and_refuses_the_rest() -> None:
    work = Work()
    async with batcher(work) as batches:
        tasks = await submitted(batches, 1, 2)
        work.gate.set()
        await batches.close()
        assert [task.result() for task in tasks] == [10, 20]
        with pytest.raises(UnavailableError):
            await batches.submit(3)


async def test_closing_an_unused_batcher() -> None:
    async with batcher(Work()):
        pass


async def test_what_is_no_exception_fails_the_batch_and_nothing_else() -> None:
    """As a panic in a library written in Rust: a BaseException."""

    class Panic(BaseException):
        pass

    def work(items: Sequence[int]) -> list[int]:
        if 13 in items:
            raise Panic("gave up")
        return list(items)

    async with batcher(work) as batches:
        with pytest.raises(InternalError, match="work failed: gave up"):
            await asyncio.wait_for(batches.submit(13), 30)
        assert await asyncio.wait_for(batches.submit(1), 30) == 1


async def test_a_second_lane_opens_for_a_batch_like_the_one_that_runs() -> None:
    work = Work()
    async with batcher(work, lanes=2) as batches:
        tasks = await submitted(batches, 1, 2, 3, 4)
        await until(lambda: work.batches)
        tasks += await submitted(batches, 5, 6)
        await asyncio.sleep(0.05)
        assert work.batches == [[1, 2, 3, 4]]
        tasks += await submitted(batches, 7)
        await until(lambda: len(work.batches) == 2)
        tasks += await submitted(batches, 8)
        work.gate.set()
        assert await asyncio.gather(*tasks) == [item * 10 for item in range(1, 9)]
    assert work.batches == [[1, 2, 3, 4], [5, 6, 7], [8]]
    assert len(work.threads) == 2


async def test_items_of_like_length_go_with_the_oldest() -> None:
    work = Work()
    async with batcher(work, size=lambda item: Size(length=item), max_padding=5, max_items=3) as batches:
        tasks = await submitted(batches, 1)  # runs, while the others gather
        await until(lambda: work.batches)
        tasks += await submitted(batches, 20, 50, 22, 18, 21, 90)
        work.gate.set()
        await asyncio.gather(*tasks)
    # To 20: 21 and 22, which is as near as 18 but came first, for 3 of padding; to 50 neither 18 nor 90.
    assert work.batches == [[1], [20, 21, 22], [50], [18], [90]]


async def test_padding_counts_for_all_that_is_padded() -> None:
    work = Work()
    async with batcher(work, size=lambda item: Size(length=item), max_padding=5) as batches:
        tasks = await submitted(batches, 1)
        await until(lambda: work.batches)
        tasks += await submitted(batches, 20, 20, 20, 22)
        work.gate.set()
        await asyncio.gather(*tasks)
    assert work.batches == [[1], [20, 20, 20], [22]]  # three times 2 are 6


async def test_what_waits_does_not_wait_for_the_loop() -> None:
    work = Work()
    async with batcher(work, max_items=1) as batches:
        tasks = await submitted(batches, 1, 2, 3)
        await until(lambda: work.batches)
        work.gate.set()
        deadline = time.monotonic() + 30
        while len(work.batches) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251  # the loop does nothing else
        assert work.batches == [[1], [2], [3]]
        assert not any(task.done() for task in tasks)
        assert await asyncio.gather(*tasks) == [10, 20, 30]


async def test_a_lone_caller_always_finds_the_same_thread() -> None:
    work = Work()
    work.gate.set()
    async with batcher(work, lanes=3) as batches:
        for item in range(10):
            await batches.submit(item)
    assert work.threads == {"work_0"}


async def test_closing_finishes_what_is_queued_in_every_lane() -> None:
    work = Work()
    async with batcher(work, lanes=2, max_items=1) as batches:
        tasks = await submitted(batches, 1, 2, 3, 4, 5)
        await until(lambda: len(work.batches) == 2)
        closing = asyncio.create_task(batches.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        work.gate.set()
        await asyncio.wait_for(closing, 30)
        assert [task.result() for task in tasks] == [10, 20, 30, 40, 50]
