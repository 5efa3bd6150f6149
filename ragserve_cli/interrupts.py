"""Ctrl-C: one line on stderr and exit status 130, at any moment of a command.

The process ends in the signal handler. An exception would not do: Python loses it inside imports and finalizers, and
the threads of ONNX Runtime and Lance abort a process whose interpreter shuts down under them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STATUS = 128 + signal.SIGINT  # as shells give it
STDERR = 2
CLEAR_LINE, SHOW_CURSOR = b"\r\x1b[K", b"\x1b[?25h"  # a progress bar may be half drawn, and hides the cursor
RESUMABLE = "stopped; the same command goes on where it was"

_texts: list[Callable[[], str]] = []
_last_acts: list[Callable[[], None]] = []


def end_at_ctrl_c() -> None:
    """From now on, SIGINT ends this process at once. A process that was started with SIGINT ignored keeps ignoring it.

    Programs that run services replace this handler, see `ragserve_cli.local.stop_on_signals`.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def saying(text: Callable[[], str]) -> Iterator[None]:
    """During the block, Ctrl-C prints what `text` returns, in place of "stopped"."""
    _texts.append(text)
    try:
        yield
    finally:
        _texts.remove(text)


def before_the_end(act: Callable[[], None]) -> None:
    """Ctrl-C runs `act` before the process ends."""
    _last_acts.append(act)


def _end(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        text = _texts[-1]() if _texts else "stopped"
        for act in _last_acts:
            act()
        start = CLEAR_LINE + SHOW_CURSOR if os.isatty(STDERR) else b""
        os.write(STDERR, start + text.encode(errors="backslashreplace") + b"\n")
    finally:
        os._exit(STATUS)
