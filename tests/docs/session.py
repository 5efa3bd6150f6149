"""Runs the blocks of a page one after the other, as a reader does who stands in a fresh clone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.docs.blocks import Block, Command, commands
from tests.docs.compare import difference
from tests.docs.network import OwnNetwork

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 100
COMMAND_SECONDS = 100.0


@dataclass
class Running:
    """A process whose output is collected while it runs."""

    process: subprocess.Popen[str]
    output: str = ""
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def type(self, lines: tuple[str, ...]) -> None:
        """Writes lines to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.writelines(f"{line}\n" for line in lines)
        self.process.stdin.flush()

    def shows(self, expected: str) -> str:
        """What the page shows and the process does not print in time; empty once it does."""
        deadline = time.monotonic() + COMMAND_SECONDS
        while (wrong := difference(expected, self.output)) and time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.reader.join()
                return difference(expected, self.output)
            time.sleep(0.1)
        return wrong

    def stop(self) -> None:
        """Ctrl-C, and SIGKILL after a minute."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.finish()

    def finish(self) -> int:
        """Waits for the end of the process and of its output; returns the exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(timeout=COMMAND_SECONDS)
        self.reader.join()
        self.process.stdout.close()
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line


class Session:
    """A folder that looks like a clone, a home of its own, and the processes that were left running."""

    def __init__(self, folder: Path, network: OwnNetwork) -> None:
        self._network = network
        self.folder = folder / "ragserve"
        self.folder.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in (".git", ".cache", "build", "dist"):
                (self.folder / entry.name).symlink_to(entry)
        home = folder / "home"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAGSERVE", "XDG_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "HOME": str(home), "COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        self.environment = {**kept, **own}
        self.running: list[Running] = []

    def run(self, block: Block) -> str:
        """Runs a block; returns what differs from the page, empty where nothing does."""
        if block.not_run or not block.language:
            return ""
        if block.language == "console":
            return self._console(block)
        if block.language == "python":
            return self._python(block)
        return _parsed(block)

    def close(self) -> None:
        """Stops what is left running."""
        for process in reversed(self.running):
            process.stop()

    def _console(self, block: Block) -> str:
        listed = commands(block)
        for number, command in enumerate(listed, start=1):
            if block.keep_running and number == len(listed):
                wrong = self._left_running(command)
            else:
                wrong = self._finished(command)
            if wrong:
                return f"$ {command.line}\n{wrong}"
        return ""

    def _left_running(self, command: Command) -> str:
        started = self._start(command)
        self.running.append(started)
        started.type(command.inputs)
        wrong = started.shows(command.expected)
        return f"{wrong}\nwhole output:\n{started.output}" if wrong else ""

    def _finished(self, command: Command) -> str:
        started = self._start(command)
        started.type(command.inputs)
        status = started.finish()
        wrong = difference(command.expected, started.output)
        if status != 0 and "error:" not in command.expected:
            wrong = wrong or f"exit status {status}"
        return f"{wrong}\nwhole output:\n{started.output}" if wrong else ""

    def _start(self, command: Command) -> Running:
        line = [
            *self._network.prefix,
            "bash",
            "-c",
            f"exec {command.line}" if not set(command.line) & set("|&;<>") else command.line,
        ]
        return Running(
            subprocess.Popen(
                line,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    def _python(self, block: Block) -> str:
        found = subprocess.run(
            [*self._network.prefix, sys.executable, "-W", "error", "-c", block.text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if found.returncode:
            return f"the script fails:\n{found.stderr}"
        wrong = "" if block.expected is None else difference(block.expected, found.stdout)
        return f"{wrong}\nwhole output:\n{found.stdout}" if wrong else ""


def _parsed(block: Block) -> str:
    """What keeps a block of data from being read."""
    try:
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        else:
            texts = block.text.splitlines() if block.language == "jsonl" else [block.text]
            for text in texts:
                json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        return f"not {block.language}: {error}"
    return ""
