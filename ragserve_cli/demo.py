"""`ragserve demo`: the three services with the embedded models, sample questions, and a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from ragserve.errors import InvalidInputError
from ragserve.files import file_errors, require_file
from ragserve_cli import console
from ragserve_cli.plan import Assets, demo_directory, plan
from ragserve_cli.prompt import Prompt, prompting
from ragserve_cli.up import ask_command


def demo(assets: Assets, questions: Path | None, *, verbose: bool, logs: bool, timeout: float) -> None:
    """Answer the samples, then what is asked at the prompt or piped in."""
    samples = read_questions(questions or demo_directory() / "questions.txt")
    launches = plan(assets, free_ports=True)
    with prompting(launches, verbose=verbose, logs=logs, timeout=timeout) as prompt:
        console.note(f"The API is at {prompt.started.target} (try {ask_command(prompt.started)})")
        with prompt.started.cancellable():  # all of the samples that are left
            _answer(samples, prompt)
        prompt.run()


def _answer(samples: Sequence[str], prompt: Prompt) -> None:
    for question in samples:
        if prompt.started.stop.is_set():
            return
        prompt.started.services.check_alive()
        console.out.rule(escape(question), align="left", style="dim")
        prompt.ask(question)


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
