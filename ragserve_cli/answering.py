"""Asks one question and writes the answer the way it is wanted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragserve.client import Client
from ragserve.errors import InternalError
from ragserve.results import Answer, PassagesEvent, TokensEvent
from ragserve_cli import answers, console
from ragserve_cli.explain import write_page
from ragserve_cli.reach import reached

_NAMES = {PassagesEvent: "passages", TokensEvent: "tokens", Answer: "answer"}  # of events, in JSON


@dataclass(frozen=True)
class Output:
    """How the answer is wanted: token by token, as JSON, as a page, with all figures."""

    stream: bool = False
    as_json: bool = False
    explain: Path | None = None
    verbose: bool = False


def answer(question: str, target: str, timeout: float, keywords: dict[str, Any], output: Output) -> Answer:
    """Ask and print; returns the answer."""
    wants_posteriors = output.as_json or output.explain is not None
    with reached(target, timeout=timeout), Client(target, timeout_seconds=timeout) as client:
        if output.stream:
            found = _streamed(client, question, {**keywords, "token_posteriors": wants_posteriors}, output)
        else:
            found = client.generate(question, token_posteriors=wants_posteriors, **keywords)
    if not output.as_json:
        answers.show_answer(found, with_text=not output.stream, verbose=output.verbose)
    elif not output.stream:
        console.print_json(found.to_dict())
    if output.explain is not None:
        write_page(output.explain, question, found)
        console.note(f"{output.explain} shows which passage the model relied on for each token")
    return found


def _streamed(client: Client, question: str, keywords: dict[str, Any], output: Output) -> Answer:
    """The answer. Its text is printed as it becomes final; for JSON, each event is a line when it comes."""
    for event in client.generate_stream(question, **keywords):
        if output.as_json:
            console.print_json({"event": _NAMES[type(event)], **event.to_dict()})
            sys.stdout.flush()
        elif isinstance(event, TokensEvent):
            console.print_text(event.text)
        if isinstance(event, Answer):
            if not output.as_json:
                console.print_text("\n")
            return event
    raise InternalError("the stream ended without a result")
