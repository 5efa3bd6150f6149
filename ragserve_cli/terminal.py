"""Reads questions at a terminal, with prompt_toolkit: line editing, history and completion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.output import create_output
from prompt_toolkit.patch_stdout import patch_stdout

from ragserve_cli import console
from ragserve_cli.prompt import POLL_SECONDS, PROMPT
from ragserve_cli.up import Running


class LastWordCompleter(Completer):
    """Completes the word before the cursor with what a function gives for the text up to there."""

    def __init__(self, completions: Callable[[str], Sequence[str]]) -> None:
        self._completions = completions

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The candidates that begin as the word does."""
        text = document.text_before_cursor
        word = text.rpartition(" ")[2]
        for candidate in self._completions(text):
            if candidate.startswith(word):
                yield Completion(candidate, start_position=-len(word))


class TerminalLines:
    """One prompt; the services are watched while it waits."""

    def __init__(self, started: Running, completions: Callable[[str], Sequence[str]], history: Path | None) -> None:
        self._started = started
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            completer=LastWordCompleter(completions),
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            output=create_output(always_prefer_tty=True),
        )

    def read(self) -> str | None:
        """The next line; None at the end. Ctrl-C clears a line that was begun; twice on an empty one, it ends.

        Raises:
            UnavailableError: a service has ended.
        """
        interrupted = False
        while not self._started.stop.is_set():
            try:
                with patch_stdout(raw=True):
                    return asyncio.run(self._read())
            except EOFError:
                return None
            except KeyboardInterrupt:
                empty = not self._session.default_buffer.text
                if empty and interrupted:
                    return None
                if empty:
                    console.note("Ctrl-C again, or Ctrl-D, ends.")
                interrupted = empty
        return None

    async def _read(self) -> str:
        prompt = asyncio.ensure_future(self._session.prompt_async(PROMPT, handle_sigint=False))
        try:
            while not (await asyncio.wait({prompt}, timeout=POLL_SECONDS))[0]:
                if self._started.stop.is_set():
                    raise EOFError
                self._started.services.check_alive()
            return prompt.result()
        finally:
            prompt.cancel()
            await asyncio.wait({prompt})
