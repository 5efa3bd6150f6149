"""The prompt of `ragserve demo` and `ragserve quickstart`: questions and commands, until the end of input."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from rich.markup import escape
from rich.table import Table

from ragserve.client import Client
from ragserve.errors import InvalidInputError, RagserveError
from ragserve.results import Answer
from ragserve_cli import answers, console
from ragserve_cli.explain import write_page
from ragserve_cli.explain_terminal import show_token_posteriors
from ragserve_cli.local import LogLine
from ragserve_cli.plan import Launch
from ragserve_cli.prompt_settings import Settings
from ragserve_cli.text import is_utf8
from ragserve_cli.up import Running, note_other_ports, running

POLL_SECONDS = 0.2
CHUNK_BYTES = 65536
PROMPT = "question> "
QUIT_WORDS = ("quit", "exit", ":q")  # what people type who do not know /quit yet
HELP_WORDS = ("help", "?")
HISTORY_FILE = "history"


class LineReader(Protocol):
    """Where questions come from."""

    def read(self) -> str | None:
        """The next line; None at the end of the input, or when the services are told to stop."""
        ...


@dataclass(frozen=True)
class Command:
    """A command of the prompt, such as /help."""

    usage: str
    meaning: str
    run: Callable[[str], bool]  # takes what follows the name; False ends the prompt


@dataclass
class Prompt:
    """Answers questions line by line; commands begin with a slash and look at the last answer."""

    client: Client
    started: Running
    verbose: bool = False
    settings: Settings = field(default_factory=Settings)
    _last: tuple[str, Answer] | None = None
    _warned: set[str] = field(default_factory=set)
    _commands: dict[str, Command] = field(init=False)

    def __post_init__(self) -> None:
        self._commands = {
            "/help": Command("/help", "show these commands", self._help),
            "/passages": Command("/passages [N]", "show the answer's passages, or passage N whole", self._passages),
            "/explain": Command(
                "/explain [FILE.html]",
                "show which passage the model relied on for each token, or write a page",
                self._explain,
            ),
            "/set": Command(
                "/set [NAME VALUE]", "set docs, beams, mode, filter, … for the next questions, or list all", self._set
            ),
            "/unset": Command("/unset [NAME]", "give a setting, or all of them, the default again", self._unset),
            "/verbose": Command("/verbose", "show all figures with each answer, or no longer", self._verbose),
            "/quit": Command("/quit", "end (also Ctrl-D)", lambda _: False),
        }

    def run(self) -> None:
        """Answer until the end of input, /quit or SIGTERM. Errors of a question are shown, and the next one is read.

        At a terminal, Ctrl-C during an answer cancels the question.

        Raises:
            UnavailableError: a service has ended.
        """
        at_terminal = sys.stdin.isatty()
        if at_terminal:
            console.note("Type a question, or /help. Ctrl-D ends.")
        lines = terminal_lines(self.started, self.completions) if at_terminal else PipedLines(self.started)
        going_on = True
        while going_on and (line := lines.read()) is not None:
            try:
                with self.started.cancellable():
                    going_on = self.answer_line(line.strip())
            except RagserveError as error:
                console.report(error)

    def answer_line(self, line: str) -> bool:
        """Answer a question or run a command; False for one that ends the prompt."""
        if not line:
            return True
        if line.lower() in QUIT_WORDS:
            return False
        if line.lower() in HELP_WORDS:
            return self._help("")
        if line.startswith("/"):
            name, _, argument = line.partition(" ")
            if name not in self._commands:
                raise InvalidInputError(name, f"unknown command {name}: type /help for the commands")
            return self._commands[name].run(argument.strip())
        if not is_utf8(line):
            raise InvalidInputError("question", "the question is not UTF-8 text: type it again")
        self.ask(line)
        return True

    def ask(self, question: str) -> None:
        """Show the answer to a question; a warning that was shown before is not repeated."""
        try:
            answer = self.client.generate(question, token_posteriors=True, **self.settings.keywords())
        except RagserveError as error:
            raise self.settings.in_names(error) from error
        self._last = (question, answer)
        new = tuple(warning for warning in answer.warnings if warning not in self._warned)
        self._warned.update(new)
        answers.show_answer(replace(answer, warnings=new), verbose=self.verbose)
        console.out.print()

    def _help(self, _argument: str) -> bool:
        for command in self._commands.values():
            console.out.print(f"  {command.usage:<22}{command.meaning}", markup=False, soft_wrap=True)
        return True

    def _passages(self, argument: str) -> bool:
        _, answer = self._answered()
        if not argument:
            answers.show_passages(answer.passages, posterior=True, verbose=True, around=answer.answer.strip())
            return True
        if not argument.isdecimal() or not 1 <= int(argument) <= len(answer.passages):
            raise InvalidInputError(
                "/passages", f"{argument!r} is not a passage: give a number from 1 to {len(answer.passages)}"
            )
        answers.show_whole_passage(answer.passages[int(argument) - 1])
        return True

    def _explain(self, argument: str) -> bool:
        question, answer = self._answered()
        if argument:
            write_page(Path(argument).expanduser(), question, answer)
            console.note(f"{argument} shows which passage the model relied on for each token")
        else:
            show_token_posteriors(answer)
        return True

    def completions(self, text: str) -> Sequence[str]:
        """The commands, names and values that may stand in place of the last word of a text."""
        match text.split(" "):
            case [_]:
                return tuple(self._commands)
            case ["/set" | "/unset", _]:
                return self.settings.names
            case ["/set", name, _]:
                return self.settings.choices(name)
        return ()

    def _set(self, argument: str) -> bool:
        name, _, value = argument.partition(" ")
        if value:
            name = self.settings.set(name, value.strip())
            console.note(f"{name} is {self.settings.value(name)}")
            return True
        names = [name] if name else self.settings.names
        table = Table("setting", "value", "what it is", box=None, pad_edge=False, header_style="dim")
        for one in names:
            table.add_row(
                one, escape(self.settings.value(one)) or "[dim]default[/]", escape(self.settings.meaning(one))
            )
        console.out.print(table)
        return True

    def _unset(self, argument: str) -> bool:
        self.settings.unset(argument)
        console.note(f"{argument or 'every setting'} has its default again")
        return True

    def _verbose(self, _argument: str) -> bool:
        self.verbose = not self.verbose
        console.note("answers come with all figures" if self.verbose else "answers come in short form")
        return True

    def _answered(self) -> tuple[str, Answer]:
        if self._last is None:
            raise InvalidInputError("", "there is no answer yet: ask a question first")
        return self._last


@contextmanager
def prompting(launches: tuple[Launch, ...], *, verbose: bool, logs: bool, timeout: float) -> Iterator[Prompt]:
    """Starts the services, gives a prompt that asks them, and drains them at the end.

    Raises KeyboardInterrupt when a signal came while they were starting.
    """
    log: LogLine = console.log_line if logs else lambda _service, _line: None
    note_other_ports(launches)
    with running(launches, log, timeout) as started:
        if started is None:
            console.note("stopped while starting")
            raise KeyboardInterrupt
        with Client(started.target) as client:
            yield Prompt(client, started, verbose=verbose)
        console.note("stopping the services")


@dataclass
class PipedLines:
    """Questions from a pipe or a file; each is repeated in the output, before its answer."""

    started: Running
    _unread: bytes = b""
    _ended: bool = False

    def read(self) -> str | None:
        """The next line; None at the end.

        Raises:
            UnavailableError: a service has ended.
        """
        while not self.started.stop.is_set():
            line, end, rest = self._unread.partition(b"\n")
            if end or (line and self._ended):
                self._unread = rest
                text = line.decode(sys.stdin.encoding, "surrogateescape").strip()
                console.out.print(f"{PROMPT}{escape(text)}", style="dim", soft_wrap=True)
                return text
            if self._ended:
                return None
            self.started.services.check_alive()
            if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
                chunk = os.read(sys.stdin.fileno(), CHUNK_BYTES)
                self._unread, self._ended = self._unread + chunk, not chunk
        return None


def terminal_lines(started: Running, completions: Callable[[str], Sequence[str]]) -> LineReader:
    """A reader with line editing, history and completion.

    `completions` gives what may stand in place of the last word of a text.
    """
    from ragserve_cli.terminal import TerminalLines  # noqa: PLC0415  (only where there is a terminal)

    return TerminalLines(started, completions, history_file())


def history_file() -> Path | None:
    """Where questions are kept for the next time (XDG_STATE_HOME); None where nothing can be written."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "ragserve"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        (state / HISTORY_FILE).touch(mode=0o600)
    except (OSError, RuntimeError):  # read-only, or no home directory
        return None
    return state / HISTORY_FILE
