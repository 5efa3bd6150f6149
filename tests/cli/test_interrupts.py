"""Ctrl-C at any moment of a command: one line, exit status 130, and a build that goes on afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import RAGSERVE, Assets, Cli

PASSAGES = 3000
NOTES = ("going on with an earlier build", "read 3,000 rows as 6,000 passages")
STOPPED = ("stopped", "stopped; the same command goes on where it was")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.jsonl"
    text = "the tower and the bridge were built by the painter of the sea " * 3
    file.write_text("".join(f'{{"id": "{n}", "text": "{n} {text}"}}\n' for n in range(PASSAGES)))
    return file


def start_seconds() -> float:
    """How long Python takes to start and to reach the program; before that it handles Ctrl-C itself."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import ragserve_cli.main"], check=True)
    return 1.5 * (time.monotonic() - begun)


def interrupted_after(seconds: float, *arguments: object) -> tuple[int, str]:
    """Status and stderr of a command that gets SIGINT after a time; it may have ended before."""
    command = [str(RAGSERVE), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.long
def test_a_build_that_is_stopped_at_any_moment_goes_on(cli: Cli, assets: Assets, source: Path, tmp_path: Path) -> None:
    build = ("kb", "build", source, tmp_path / "kb", "--model", assets.model, "--shard-passages", 64)
    chance, first = random.Random(5), start_seconds()
    resumed = stopped = 0
    moments = (first, first + 0.2, *(chance.uniform(first, 4.0) for _ in range(5)))
    for seconds in (*moments, 8.0, 16.0):  # a busy machine needs longer until the build has begun
        if seconds not in moments and resumed:
            break
        status, said = interrupted_after(seconds, *build)
        if status == 0 or f"{tmp_path / 'kb'} exists" in said:  # it was finished, perhaps just before it was stopped
            break
        lines = [line for line in said.splitlines() if not line.startswith(NOTES)]
        assert (status, len(lines)) == (130, 1), (seconds, status, said)
        assert lines[0] in STOPPED
        stopped += 1
        resumed += lines[0] == STOPPED[1]
    assert stopped >= 2
    assert resumed or stopped < len(moments)
    found = cli(*build)
    if found.returncode:
        assert f"{tmp_path / 'kb'} exists" in found.stderr
    assert cli("kb", "info", tmp_path / "kb").returncode == 0


def test_a_copy_of_standard_input_is_removed(assets: Assets, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [str(RAGSERVE), "kb", "build", "-", str(tmp_path / "kb"), "--format", "jsonl", "--model", assets.model]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    ) as process:
        assert process.stderr is not None
        assert "is read once" in process.stderr.readline()
        assert any(scratch.glob("ragserve-*"))
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "stopped\n"
        assert process.wait(timeout=60) == 130
    assert not any(scratch.glob("ragserve-*"))
