"""Where the command line writes: results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from ragserve.boundary import ending_of
from ragserve.errors import RagserveError
from ragserve.printable import masked, printable, to_json

STYLES = {"retriever": "cyan", "generator": "magenta", "orchestrator": "green"}


class SafeConsole(Console):
    """A console that shows control characters in texts as escapes: a passage cannot steer the terminal.

    rich makes every text that it prints, measures or puts into a table with `render_str`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as rich prints it, control characters escaped."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of whatever is printed, or stands in a table; a `Text` that was made elsewhere is masked."""
        if isinstance(renderable, Text) and (clean := masked(renderable.plain)) != renderable.plain:
            renderable = renderable.copy()
            renderable.plain = clean
        return super().render(renderable, options)

    def on_broken_pipe(self) -> None:
        """Leaves the error to the boundary of the program; rich would end it here."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


out = SafeConsole(highlight=False, soft_wrap=False, emoji=False)
err = SafeConsole(stderr=True, highlight=False, emoji=False)


def print_json(body: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(to_json(body) + "\n")


def print_text(text: str) -> None:
    """A piece of a streamed answer on stdout, without a line break."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def note(message: str) -> None:
    """A line for the person at the terminal; plain text, never markup."""
    err.print(escape(message), soft_wrap=True)


def warn(message: str) -> None:
    """A warning on stderr."""
    err.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)


class LogWarnings(logging.Handler):
    """Shows warnings that the engines log, with their fields, where they run in the process of the command line."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line on stderr."""
        fields = getattr(record, "fields", {})
        details = "; ".join(f"{name} {value}" for name, value in fields.items())
        warn(f"{record.getMessage()}{f' ({details})' if details else ''}")


def log_line(service: str, line: str) -> None:
    """A line of a service's log, marked with its name."""
    err.print(f"[{STYLES.get(service, 'white')}]{service:<12}[/] | {escape(line)}", soft_wrap=True)


def fail(text: str) -> None:
    """One line about an error on stderr."""
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def report(error: RagserveError) -> None:
    """An error as `error: field: message`, where the program goes on after it."""
    fail(ending_of(error).text)


@contextmanager
def progress_bar(description: str, *, unit: str = "") -> Iterator[ProgressBar]:
    """A progress bar on stderr; nothing is drawn where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as drawn:
        yield ProgressBar(drawn, drawn.add_task(escape(description), total=None))


class ProgressBar:
    """A progress bar for code that does not know rich."""

    def __init__(self, drawn: Progress, task: TaskID) -> None:
        self._drawn, self._task = drawn, task

    def update(self, done: int, total: int, description: str | None = None) -> None:
        """Show that `done` of `total` are done."""
        if description is not None:
            self._drawn.update(self._task, description=escape(description))
        self._drawn.update(self._task, completed=done, total=total)
