"""Joins concurrent items into batches. Knows no transport.

Nothing waits for a batch to fill: it is taken from what is queued, and what arrives meanwhile goes into a later one.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

from ragserve.errors import InternalError, ResourceExhaustedError, UnavailableError
from ragserve.serving.metrics import StageClock

In = TypeVar("In")
Out = TypeVar("Out")

# Weight of the newest batch in the running mean of batch seconds.
SMOOTHING = 0.2
# A further lane opens when what waits is at least this part of what runs in the others. Without it, of the callers that
# one batch answered the first to ask again would be a batch alone, and so on.
SHARE = 0.75
FIRST_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class Size:
    """What an item weighs, at least 1, and how long it is where items of like length are cheaper together."""

    cost: int = 1
    length: int = 0


@dataclass(frozen=True)
class BatchLimits:
    """Of the queue, and of one batch."""

    max_items: int
    max_waiting: int
    max_cost: float = math.inf
    max_padding: int = 0  # what making all items as long as the longest may add, in sum


@dataclass
class _Waiting(Generic[In, Out]):
    """A queued item, its caller and when it came (monotonic seconds)."""

    item: In
    size: Size
    future: asyncio.Future[Out]
    clock: StageClock | None
    since: float = field(default_factory=time.monotonic)


class _Queue(Generic[In, Out]):
    """What waits, oldest first, those whose callers left included. Whoever calls holds the batcher's lock."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: deque[_Waiting[In, Out]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, waiting: _Waiting[In, Out]) -> None:
        """Queues it behind the others."""
        self._waiting.append(waiting)

    def forget_callers_that_left(self) -> None:
        """Cancelled callers hold no place."""
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.future.done())

    def take(self, least_cost: float) -> list[_Waiting[In, Out]]:
        """The oldest item and what goes best with it; nothing if all that waits is less than this cost."""
        self.forget_callers_that_left()
        if not self._waiting or sum(waiting.size.cost for waiting in self._waiting) < least_cost:
            return []
        oldest, *others = self._waiting
        # Those of the same length stay in their order.
        others.sort(key=lambda waiting: abs(waiting.size.length - oldest.size.length))
        batch, cost, longest, total = [oldest], oldest.size.cost, oldest.size.length, oldest.size.length
        for waiting in others:
            cost += waiting.size.cost
            longest, total = max(longest, waiting.size.length), total + waiting.size.length
            padding, limits = longest * (len(batch) + 1) - total, self._limits
            if len(batch) == limits.max_items or cost > limits.max_cost or padding > limits.max_padding:
                break
            batch.append(waiting)
        taken = set(map(id, batch))
        self._waiting = deque(waiting for waiting in self._waiting if id(waiting) not in taken)
        return batch


class _Lane:
    """A thread, and the cost of the batch that runs in it (0: none does).

    Not an executor of one: its futures and locks take longer than all else that a batch of one question needs here.
    """

    def __init__(self, name: str) -> None:
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
    """Runs `run_batch` in threads of its own, on what is queued.

    At most `lanes` batches run at a time, each in one thread: with more than one, `run_batch` must be safe to call from
    several.

    A batch is the oldest item and the next ones, within the limits, and `run_batch` returns one result for each; a
    result that is an exception fails its own item only, an exception that is raised fails the whole batch. An item
    above `max_cost` runs alone. Where items have a length, those nearest to the oldest one's join first, up to
    `max_padding`; the others wait for the next lane or batch, where they cost less. With `max_waiting` items queued,
    more are refused.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[In]], Sequence[Out | Exception]],
        *,
        name: str,
        limits: BatchLimits,
        size: Callable[[In], Size] = lambda _: Size(),
        lanes: int = 1,
    ) -> None:
        self._run_batch = run_batch
        self._name = name
        self._limits = limits
        self._size = size
        self._lock = threading.Lock()  # of the queue, and of what a lane is doing
        self._queue: _Queue[In, Out] = _Queue(limits)
        self._lanes = [_Lane(f"{name}_{lane}") for lane in range(lanes)]
        self._dispatching = False
        self._closed = False
        self._unanswered = 0  # batches that run, or whose callers have not got their results yet
        self._finished = asyncio.Event()  # there is none
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
        future: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        with self._lock:
            if len(self._queue) >= self._limits.max_waiting:
                self._queue.forget_callers_that_left()
            if len(self._queue) >= self._limits.max_waiting:
                raise ResourceExhaustedError(
                    f"the queue of {self._name} is full: {self._limits.max_waiting} waiting",
                    retry_after_seconds=self._retry_after(),
                )
            self._queue.append(_Waiting(item, self._size(item), future, clock))
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
        loop = asyncio.get_running_loop()
        for lane in self._lanes:
            with self._lock:
                batch = [] if lane.cost else self._take(lane)
            if batch:
                self._finished.clear()
                lane.submit(partial(self._work, lane, batch, loop))

    def _take(self, lane: _Lane) -> list[_Waiting[In, Out]]:
        """The next batch of a lane that has none, if what is queued is enough for one lane more. Holding the lock."""
        lane.cost = 0
        batch = self._queue.take(SHARE * sum(other.cost for other in self._lanes))
        lane.cost = sum(waiting.size.cost for waiting in batch)
        self._unanswered += bool(batch)
        return batch

    def _work(self, lane: _Lane, batch: list[_Waiting[In, Out]], loop: asyncio.AbstractEventLoop) -> None:
        """In a lane's thread: the batch, then what waits. The loop, which needs a core first, is not asked for it."""
        while batch:
            batch = self._run(lane, batch, loop)

    def _run(
        self, lane: _Lane, batch: list[_Waiting[In, Out]], loop: asyncio.AbstractEventLoop
    ) -> list[_Waiting[In, Out]]:
        """Runs a batch and has its callers answered; the lane's next one."""
        started = time.monotonic()
        for waiting in batch:
            if waiting.clock is not None:
                waiting.clock.add("queue", started - waiting.since)
        results = self._results([waiting.item for waiting in batch])
        seconds = time.monotonic() - started
        with self._lock:
            following = self._take(lane)
        loop.call_soon_threadsafe(self._finish, batch, results, seconds)
        return following

    def _finish(self, batch: Sequence[_Waiting[In, Out]], results: Sequence[Out | Exception], seconds: float) -> None:
        """In the loop: the batch's callers get their results."""
        self._remember(seconds)
        self._dispatch()
        _answer(batch, results)
        with self._lock:
            self._unanswered -= 1
            if not self._unanswered:
                self._finished.set()

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

    def _remember(self, seconds: float) -> None:
        mean = self._batch_seconds
        self._batch_seconds = seconds if mean is None else mean + SMOOTHING * (seconds - mean)

    def _retry_after(self) -> float:
        """Seconds until what is queued now should be done."""
        if self._batch_seconds is None:
            return FIRST_RETRY_SECONDS
        return self._batch_seconds * (1 + len(self._queue) / (self._limits.max_items * len(self._lanes)))


def _answer(batch: Sequence[_Waiting[In, Out]], results: Sequence[Out | Exception]) -> None:
    """Give the callers that still wait their results."""
    for waiting, result in zip(batch, results, strict=True):
        if waiting.future.done():
            continue
        if isinstance(result, Exception):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)
