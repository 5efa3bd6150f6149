"""`ragserve demo`: the three services with the embedded models, sample questions, and a prompt."""

from __future__ import annotations

import select
import sys
from pathlib import Path

from ragserve.client import Client
from ragserve.errors import InvalidInputError, RagserveError
from ragserve.files import file_errors, require_file
from ragserve_cli import answers, console
from ragserve_cli.local import LogLine
from ragserve_cli.plan import Assets, demo_directory, plan
from ragserve_cli.up import Running, running

POLL_SECONDS = 0.2
PROMPT = "\n[bold]question>[/] "


def demo(assets: Assets, questions: Path | None, *, verbose: bool, timeout: float) -> None:
    """Answer the samples, then what is asked at the prompt; without a terminal, end after the samples."""
    samples = read_questions(questions or demo_directory() / "questions.txt")
    log: LogLine = console.log_line if verbose else lambda _service, _line: None
    with running(plan(assets), log, timeout) as started:
        if started is None:
            return
        with Client(started.target) as client:
            for question in samples:
                if started.stop.is_set():
                    break
                started.services.check_alive()
                console.out.print()
                console.out.rule(question, align="left", style="dim")
                answers.show_answer(client.generate(question))
            if sys.stdin.isatty():
                _prompt(client, started)
        console.note("stopping the services")


def read_questions(path: Path) -> list[str]:
    """One question a line; empty lines and lines that begin with # are left out.

    Raises:
        NotFoundError: the file is missing.
        InvalidInputError: it is not UTF-8 text.
        RagserveError: it cannot be read.
    """
    require_file(path, "name another file with --questions")
    try:
        with file_errors("read", path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            str(path), f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _prompt(client: Client, started: Running) -> None:
    """Questions until the end of input, Ctrl-C or SIGTERM."""
    console.note("ask a question; Ctrl-C or Ctrl-D ends")
    while not started.stop.is_set():
        console.out.print(PROMPT, end="")
        question = _read_line(started)
        if question is None:
            return
        if question.strip():
            try:
                answers.show_answer(client.generate(_decoded(question)))
            except RagserveError as error:
                console.report(error)


def _decoded(line: bytes) -> str:
    try:
        return line.decode(sys.stdin.encoding).strip()
    except UnicodeDecodeError as error:
        raise InvalidInputError("question", f"the question is not {sys.stdin.encoding} text: type it again") from error


def _read_line(started: Running) -> bytes | None:
    """The next line of stdin; None at its end or when told to stop. A service that ends raises UnavailableError."""
    sys.stdout.flush()
    while not started.stop.is_set():
        started.services.check_alive()
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            line = sys.stdin.buffer.readline()
            return line if line else None
    return None
