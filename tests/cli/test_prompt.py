"""The prompt of `ragserve demo` at a real terminal, and with piped questions."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ragserve_cli.plan import DEFAULT_PORTS
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
    for begun, completed in ((b"/se", b"/set"), (b" mo", b"mode"), (b" seq", b"sequence")):
        os.write(terminal.master, begun + b"\t")
        terminal.read_until(completed)
    assert "mode is sequence" in terminal.type(b"")
    assert "mode has its default again" in terminal.type(b"/unset mode")
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


@pytest.mark.long
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


SETTINGS = """\
/set docs 3
/set beams 2
/set returns 2
/set filter 'number<9'
/set filter number>=0 number<8
/set filter number>=0
who was the painter?
/set beams many
/set mode fast
/set nothing 1
/set filter number~9
/set docs 0
who was the writer?
/unset
/set beams
"""


def test_settings_hold_for_the_next_questions(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    questions = tmp_path / "none.txt"
    questions.write_text("")
    options = ("--config", assets.config, *assets.options, "--questions", questions)
    found = cli("demo", *options, input=SETTINGS)
    assert found.returncode == 0, found.stderr
    assert re.findall(r"^ *(\d)  ", found.stdout, re.MULTILINE) == ["1", "2", "1", "2", "3"]
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert errors.pop(0).startswith(
        "error: Cannot read the filter 'number>=0 number<8'. /set filter takes one condition. Write: "
        "/set filter 'number>=0' and /set filter 'number<8'. If "
    )
    assert "filter is number<9 and number>=0" in found.stderr
    assert [line.split(": ")[1] for line in errors] == [
        *("beams is 'many'; it must be a whole number", "mode is 'fast'; it must be one of 'token', 'sequence'"),
        "there is no setting 'nothing'. Type /set to see all.",
        "Cannot read the filter 'number~9'. Write KEY=VALUE, KEY=A,B or KEY>=VALUE.",
        "docs is 0; it must be between 1 and 100",
    ]
    assert re.search(r"beams +default +Beams of the search", found.stdout)


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


def test_ctrl_c_cancels_a_question_and_the_second_on_an_empty_prompt_ends(terminal: Terminal) -> None:
    terminal.read_until(b"question>")
    generator = next(
        child for child in psutil.Process(terminal.process.pid).children(recursive=True) if is_generator(child)
    )
    generator.suspend()  # so that the answer takes as long as the test needs
    try:
        os.write(terminal.master, b"who was the painter?\r")
        terminal.read_until(b"\n")
        time.sleep(1.0)
        terminal.process.send_signal(signal.SIGINT)  # as a controlling terminal does for Ctrl-C
        assert "p(y|x)" not in terminal.read_until(b"cancelled", seconds=10)
        terminal.read_until(b"question>", seconds=10)
    finally:
        generator.resume()
    assert "log p(y|x)" in terminal.type(b"who was the writer?")
    for _ in range(2):  # a line in between starts the count again
        os.write(terminal.master, b"\x03")
        terminal.read_until(b"Ctrl-C again, or Ctrl-D, ends.")
        terminal.read_until(b"question>")
        assert "usage" not in terminal.type(b"/verbose")
    os.write(terminal.master, b"\x03")
    terminal.read_until(b"Ctrl-C again, or Ctrl-D, ends.")
    terminal.read_until(b"question>")
    os.write(terminal.master, b"\x03")
    terminal.read_until(b"stopping the services")
    assert terminal.process.wait(timeout=60) == 0


def is_generator(process: psutil.Process) -> bool:
    return "generator_svc" in process.cmdline()


def test_usual_ports_that_are_taken_are_replaced_and_named(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("")
    with ExitStack() as stack:
        for port in (port for ports in DEFAULT_PORTS.values() for port in ports):
            taken = stack.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # another process has it
                taken.bind(("127.0.0.1", port))
                taken.listen()
        found = cli("demo", *assets.options, "--questions", tmp_path / "none.txt", stdin=subprocess.DEVNULL)
    assert found.returncode == 0, found.stderr
    moved = re.search(
        r"ports 50061, 50062, 50051 are taken \(another ragserve\?\): using .* (\d+) \(orch", found.stderr
    )
    assert moved is not None, found.stderr
    assert f"The API is at 127.0.0.1:{moved[1]} (try ragserve ask --target 127.0.0.1:{moved[1]}" in found.stderr
