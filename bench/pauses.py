"""How long the machine itself stopped: a service on a shared or virtual machine cannot answer while it does.

A process for each core sleeps a millisecond again and again, with real-time priority where that is allowed, and notes
how late it wakes (as jHiccup does). Nothing that the measured service does can delay it then; the host can.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from types import TracebackType
from typing import Self

SLEEP_SECONDS = 1e-3
PRIORITY = 50
Pause = tuple[float, float]  # when it ended (seconds of the monotonic clock), and how long it was


class Pauses:
    """Watches every core while the block runs; asked within it."""

    def __init__(self, at_least: float = 5e-3) -> None:
        context = multiprocessing.get_context("spawn")
        self._found = context.SimpleQueue()
        self._watchers = [
            context.Process(target=watch, args=(core, at_least, self._found), daemon=True)
            for core in sorted(os.sched_getaffinity(0))
        ]
        self._noted: list[Pause] = []

    def __enter__(self) -> Self:
        for watcher in self._watchers:
            watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            watcher.kill()
            watcher.join()

    def longest(self, since: float, until: float) -> float:
        """The longest pause, in seconds, that ended in this stretch of the monotonic clock; 0 if none was noted."""
        while not self._found.empty():
            self._noted.append(self._found.get())
        return max((seconds for ended, seconds in self._noted if since <= ended <= until), default=0.0)


def watch(core: int, at_least: float, found: multiprocessing.SimpleQueue[Pause]) -> None:
    """Note every pause of one core, until killed."""
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    before = time.monotonic()
    while True:
        time.sleep(SLEEP_SECONDS)
        now = time.monotonic()
        if now - before - SLEEP_SECONDS >= at_least:
            found.put((now, now - before - SLEEP_SECONDS))
        before = time.monotonic()
