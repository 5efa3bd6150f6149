"""Where the command line writes: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ragserve.errors import InvalidInputError, RagserveError

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)

STYLES = {"retriever": "cyan", "generator": "magenta", "orchestrator": "green"}
BAD_INPUT, FAILED = 2, 1  # exit status


def print_json(body: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")


def note(message: str) -> None:
    """A line for the person at the terminal; plain text, never markup."""
    err.print(escape(message), soft_wrap=True)


def warn(message: str) -> None:
    """A warning on stderr."""
    err.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)


def log_line(service: str, line: str) -> None:
    """A line of a service's log, marked with its name."""
    err.print(f"[{STYLES.get(service, 'white')}]{service:<12}[/] | {escape(line)}", soft_wrap=True)


def report(error: RagserveError) -> int:
    """Print an error as `error: field: message`; returns the exit status."""
    named = error.field and error.field not in error.message
    text = f"{error.field}: {error.message}" if named else error.message
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    return BAD_INPUT if isinstance(error, InvalidInputError) else FAILED


@contextmanager
def progress_bar(description: str, *, unit: str = "") -> Iterator[ProgressBar]:
    """A progress bar on stderr; nothing is drawn where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as drawn:
        yield ProgressBar(drawn, drawn.add_task(escape(description), total=None))


class ProgressBar:
    """One bar that code which knows nothing of rich can move."""

    def __init__(self, drawn: Progress, task: TaskID) -> None:
        self._drawn, self._task = drawn, task

    def update(self, done: int, total: int, description: str | None = None) -> None:
        """Show that `done` of `total` are done."""
        if description is not None:
            self._drawn.update(self._task, description=escape(description))
        self._drawn.update(self._task, completed=done, total=total)
