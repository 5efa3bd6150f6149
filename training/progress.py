"""Progress bars on stderr; where that is no terminal, a line each minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.trainer import Step

SECONDS_BETWEEN_LINES = 60.0
console = Console(stderr=True, highlight=False)


class Bar:
    """One stage's progress."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._task = progress.add_task(name, total=None)
        self._said = time.monotonic()

    def update(self, done: int, total: int, note: str = "") -> None:
        """How far the stage is, and a few words on it."""
        self._progress.update(self._task, completed=done, total=total, description=f"{self._name} {note}".strip())
        now = time.monotonic()
        if not console.is_terminal and (done == total or now - self._said > SECONDS_BETWEEN_LINES):
            self._said = now
            console.print(f"{self._name}: {done} of {total} {note}", soft_wrap=True)

    def step(self, step: Step) -> None:
        """A step of training."""
        self.update(step.step, step.steps, f"loss {step.loss:.2f}")


@contextmanager
def stage(name: str) -> Iterator[Bar]:
    """A bar for one stage, then a line with the time that it took."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    begun = time.monotonic()
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, name)
    console.print(f"{name}: {time.monotonic() - begun:.0f} s", soft_wrap=True)
