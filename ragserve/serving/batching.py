"""Joins concurrent items into batches. Knows no transport.

Nothing waits for a batch to fill: a batch is what is queued, and what arrives meanwhile is the next one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar

from ragserve.errors import InternalError, ResourceExhaustedError, UnavailableError
from ragserve.serving.metrics import StageClock

In = TypeVar("In")
Out = TypeVar("Out")

# Weight of the newest batch in the running mean of batch seconds.
SMOOTHING = 0.2
# A further lane opens for a batch at least this part of what runs in the others. Without it, of the callers that one
# batch answered the first to ask again would be a batch alone, and so on.
SHARE = 0.75
FIRST_RETRY_SECONDS = 0.1


@dataclass
class _Waiting(Generic[In, Out]):
    """A queued item, its caller and when it came (monotonic seconds)."""

    item: In
    cost: int
    future: asyncio.Future[Out]
    clock: StageClock | None
    since: float = field(default_factory=time.monotonic)


class _Lane:
    """A thread, whether a batch runs in it, and what that costs.

    Not an executor of one: its futures and locks take longer than all else that a batch of one question needs here.
    """

    def __init__(self, name: str) -> None:
        self.busy = False
        self.cost = 0
        self._runs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[], None]) -> None:
        """Runs it in the thread, after what was submitted before. It may not raise."""
        self._runs.put(run)

    def close(self) -> None:
        """Ends the thread once all has run."""
        self._runs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (run := self._runs.get()) is not None:
            run()
            del run  # and what it refers to, for as long as nothing follows


class Batcher(Generic[In, Out]):
    """Runs `run_batch` in threads of its own, on batches of at most `max_items` and `max_cost`.

    At most `lanes` batches run at a time, each in one thread: with more than one, `run_batch` must be safe to call from
    several.

    `run_batch` gets the items in order of arrival and returns one result for each; a result that is an exception
    fails its own item only, an exception that is raised fails the whole batch. `cost` is what an item weighs, such
    as its tokens; one item above `max_cost` runs alone. With `max_waiting` items queued, more are refused.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[In]], Sequence[Out | Exception]],
        *,
        name: str,
        max_items: int,
        max_waiting: int,
        max_cost: int | None = None,
        cost: Callable[[In], int] = lambda _: 1,
        lanes: int = 1,
    ) -> None:
        self._run_batch = run_batch
        self._name = name
        self._max_items = max_items
        self._max_waiting = max_waiting
        self._max_cost = max_cost
        self._cost = cost
        self._queue: deque[_Waiting[In, Out]] = deque()
        self._lanes = [_Lane(f"{name}_{lane}") for lane in range(lanes)]
        self._dispatching = False
        self._closed = False
        self._finished = asyncio.Event()  # nothing runs
        self._finished.set()
        self._batch_seconds: float | None = None

    @property
    def waiting(self) -> int:
        """How many items are queued, those of callers that left included."""
        return len(self._queue)

    async def submit(self, item: In, clock: StageClock | None = None) -> Out:
        """The item's result; the time spent queued goes to the clock's stage "queue".

        Raises ResourceExhaustedError when the queue is full and UnavailableError after close.
        """
        if self._closed:
            raise UnavailableError(f"{self._name} is shutting down")
        self._forget_callers_that_left()
        if len(self._queue) >= self._max_waiting:
            raise ResourceExhaustedError(
                f"the queue of {self._name} is full: {self._max_waiting} waiting",
                retry_after_seconds=self._retry_after(),
            )
        future: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(item, self._cost(item), future, clock))
        if not self._dispatching:
            # Behind what the loop has to do already: other items that come in the same turn.
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)
        return await future

    async def close(self) -> None:
        """Finishes what is queued, then ends the threads."""
        self._closed = True
        self._dispatch()
        await self._finished.wait()
        for lane in self._lanes:
            lane.close()

    def _dispatch(self) -> None:
        """Starts what may start. Lanes are filled from the first on: a lone caller finds a thread with warm caches."""
        self._dispatching = False
        for lane in self._lanes:
            if not lane.busy and self._may_start():
                batch = self._next_batch()
                if batch:
                    self._start(lane, batch)

    def _may_start(self) -> bool:
        """Whether what is queued is enough for one lane more."""
        running = sum(lane.cost for lane in self._lanes if lane.busy)
        if not running:
            return True
        return sum(waiting.cost for waiting in self._queue if not waiting.future.done()) >= SHARE * running

    def _next_batch(self) -> list[_Waiting[In, Out]]:
        """The longest allowed run of items whose callers still wait, from the front of the queue."""
        batch: list[_Waiting[In, Out]] = []
        total = 0
        while self._queue and len(batch) < self._max_items:
            first = self._queue[0]
            if first.future.done():
                self._queue.popleft()
                continue
            total += first.cost
            if batch and self._max_cost is not None and total > self._max_cost:
                break
            batch.append(self._queue.popleft())
        return batch

    def _start(self, lane: _Lane, batch: Sequence[_Waiting[In, Out]]) -> None:
        """Runs a batch in the lane's thread."""
        lane.busy, lane.cost = True, sum(waiting.cost for waiting in batch)
        self._finished.clear()
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        for waiting in batch:
            if waiting.clock is not None:
                waiting.clock.add("queue", started - waiting.since)

        def run() -> None:
            results = self._results([waiting.item for waiting in batch])
            loop.call_soon_threadsafe(finish, results)

        def finish(results: Sequence[Out | Exception]) -> None:
            lane.busy = False
            self._remember(time.monotonic() - started)
            self._dispatch()
            _answer(batch, results)
            if not any(lane.busy for lane in self._lanes):
                self._finished.set()

        lane.submit(run)

    def _results(self, items: Sequence[In]) -> Sequence[Out | Exception]:
        """In a lane's thread: one result for each item, whatever happens, or their callers would wait forever."""
        try:
            results = list(self._run_batch(items))
        except Exception as error:
            return [error] * len(items)
        except BaseException as error:  # as a panic in a Rust library
            failed = InternalError(f"{self._name} failed: {error}")
            failed.__cause__ = error
            return [failed] * len(items)
        if len(results) != len(items):
            return [InternalError(f"{self._name} gave {len(results)} results for {len(items)} items")] * len(items)
        return results

    def _forget_callers_that_left(self) -> None:
        """Makes room when the queue looks full: cancelled callers hold no place."""
        if len(self._queue) >= self._max_waiting:
            self._queue = deque(waiting for waiting in self._queue if not waiting.future.done())

    def _remember(self, seconds: float) -> None:
        mean = self._batch_seconds
        self._batch_seconds = seconds if mean is None else mean + SMOOTHING * (seconds - mean)

    def _retry_after(self) -> float:
        """Seconds until what is queued now should be done."""
        if self._batch_seconds is None:
            return FIRST_RETRY_SECONDS
        return self._batch_seconds * (1 + len(self._queue) / (self._max_items * len(self._lanes)))


def _answer(batch: Sequence[_Waiting[In, Out]], results: Sequence[Out | Exception]) -> None:
    """Give the callers that still wait their results."""
    for waiting, result in zip(batch, results, strict=True):
        if waiting.future.done():
            continue
        if isinstance(result, Exception):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)
