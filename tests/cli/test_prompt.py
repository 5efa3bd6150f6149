"""The prompt of `ragserve demo` at a real terminal, and with piped questions."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import RAGSERVE, Assets, Cli

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-B0]|\r")
UP, LEFT = b"\x1b[A", b"\x1b[D"


@dataclass
class Terminal:
    """A process at the other end of a pseudo-terminal."""

    process: subprocess.Popen[bytes]
    master: int
    unread: bytes = b""

    def read_until(self, words: bytes, seconds: float = 60.0) -> str:
        """What is printed up to the end of `words`, without control sequences."""
        deadline = time.monotonic() + seconds
        while words not in CONTROL.sub(b"", self.unread):
            assert time.monotonic() < deadline, self.unread.decode(errors="replace")
            if select.select([self.master], [], [], 0.1)[0]:
                self.unread += os.read(self.master, 65536)
        seen, _, self.unread = CONTROL.sub(b"", self.unread).partition(words)
        return (seen + words).decode(errors="replace")

    def type(self, keys: bytes, until: bytes = b"question>") -> str:
        """Types a line, and returns the line and what it shows up to the next prompt."""
        os.write(self.master, keys + b"\r")
        return self.read_until(b"\n") + self.read_until(until)


@pytest.fixture
def terminal(assets: Assets, tmp_path: Path) -> Iterator[Terminal]:
    questions = tmp_path / "questions.txt"
    questions.write_text("who built the tower?\n")
    command = [str(RAGSERVE), "demo", "--config", str(assets.config), *assets.options, "--questions", str(questions)]
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 200))
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment
    ) as process:
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            process.kill()
    os.close(master)


def test_editing_history_and_commands(terminal: Terminal, tmp_path: Path) -> None:
    assert "who built the tower?" in terminal.read_until(b"question>")
    help_text = terminal.type(b"/help")
    assert all(name in help_text for name in ("/help", "/passages", "/explain", "/quit"))
    assert "log p(y|x)" in terminal.type(b"who s the painter?" + LEFT * len("s the painter?") + b"wa")
    assert "score" in terminal.type(b"/passages")
    assert "token" in terminal.type(b"/explain")
    page = tmp_path / "page.html"
    terminal.type(f"/explain {page}".encode())
    assert "who was the painter?" in page.read_text()
    assert "unknown command /foo" in terminal.type(b"/foo")
    assert "not UTF-8 text" in terminal.type(b"wh\xff?")
    assert "\n+who was the painter?\n" in (tmp_path / "state/ragserve/history").read_text(errors="replace")
    os.write(terminal.master, b"quit\r")
    terminal.read_until(b"stopping")
    assert terminal.process.wait(timeout=60) == 0


def test_up_recalls_the_question_of_an_earlier_session(terminal: Terminal, tmp_path: Path) -> None:
    state = tmp_path / "state/ragserve"
    state.mkdir(parents=True)
    (state / "history").write_text("\n# 2026-01-01 00:00:00\n+who was the builder of the bridge?\n")
    terminal.read_until(b"question>")
    assert "who was the builder of the bridge?" in terminal.type(UP)
    children = psutil.Process(terminal.process.pid).children(recursive=True)
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until(b"stopping")
    assert terminal.process.wait(timeout=60) == 0
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_piped_questions_are_answered(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    questions = tmp_path / "none.txt"
    questions.write_text("")
    found = cli(
        *("demo", "--config", assets.config, *assets.options, "--questions", questions),
        input="who was the painter?\n/passages 1\n/quit\nwho was the writer?\n",
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("log p(y|x)") == 1
    assert "who was the writer?" not in found.stdout
