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
LANCE_NAMES = "lance"  # how the names of Lance's threads begin


def be_nice() -> None:
    """Let the calling thread, and those that it starts from now on, wait for others."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)


def make_lance_nice() -> None:
    """The same for Lance's threads. Not where searches read passages through them, from disk."""
    for thread in Path("/proc/self/task").glob("*/comm"):
        number = int(thread.parent.name)
        try:
            if thread.read_text().startswith(LANCE_NAMES) and _niceness(number) < BACKGROUND_NICENESS:
                os.setpriority(os.PRIO_PROCESS, number, BACKGROUND_NICENESS)
        except OSError:
            continue  # it ended meanwhile


def _niceness(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)
