"""Lets searches go first: what writes, follows and rebuilds runs in threads of lower priority.

Linux keeps a priority for each thread, and threads that it starts inherit it. Lance has threads of its own, which read
and write for whoever asks. At the priority of searches they took the 99th percentile of 100 searches a second from 23
to over 100 ms on two cores while passages were written; at this one it stays below twice the quiet one.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

BACKGROUND_NICENESS = 15
TASKS = Path("/proc/self/task")
LANCE_NAMES = "lance"  # how the names of Lance's threads begin


def be_nice() -> None:
    """Let the calling thread, and those that it starts from now on, wait for others."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)


class LancePriority:
    """Lowers the priority of Lance's threads as they come. Not where searches read passages through them, from disk."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def lower(self) -> None:
        """Look for threads that were not there the last time."""
        threads = set(os.listdir(TASKS))
        for thread in threads - self._known:
            try:
                if (TASKS / thread / "comm").read_text().startswith(LANCE_NAMES):
                    os.setpriority(os.PRIO_PROCESS, int(thread), BACKGROUND_NICENESS)
            except OSError:
                continue  # it ended meanwhile, or has a lower one already
        self._known = threads
