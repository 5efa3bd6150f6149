"""The command line as users run it: real subprocesses, and one `ragserve up` with tiny models for a module's tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.processes import ServiceProcess, start
from ragserve_cli.plan import DEFAULT_PORTS
from tests.tiny import tiny_kb, tiny_model_dir

RAGSERVE = Path(sys.executable).with_name("ragserve")
START_SECONDS = 90.0
N_PASSAGES = 12

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli() -> Cli:
    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [str(RAGSERVE), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **options)

    return run


@dataclass(frozen=True)
class Assets:
    """What a pair of options of `up` names, and a file that gives free ports."""

    model: Path
    knowledge: Path
    config: Path

    @property
    def options(self) -> list[str]:
        return ["--model", str(self.model), "--knowledge", str(self.knowledge)]


def free_ports() -> str:
    return "".join(f"[{name}.server]\nport = 0\nmetrics_port = 0\n" for name in DEFAULT_PORTS)


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    directory = tmp_path_factory.mktemp("assets")
    model = tiny_model_dir(directory, "bart", "rag-token", seed=1, max_length=12)
    config = directory / "free.toml"
    config.write_text(free_ports())
    return Assets(model, tiny_kb(directory, model, N_PASSAGES), config)


@pytest.fixture(scope="module")
def retriever(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, Path]]:
    """A retriever with a knowledge base of its own, and where that is."""
    directory = tmp_path_factory.mktemp("running")
    knowledge = Path(shutil.copytree(assets.knowledge, directory / "kb"))
    flags = {"model": assets.model, "knowledge": knowledge, "threads": 1, "device": "cpu"}
    process = start("retriever_svc", flags, directory / "logs").wait_healthy()
    yield process, knowledge
    assert process.stop() == 0


@dataclass
class Up:
    """A running `ragserve up`, its log in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.text):
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} did not come:\n{self.text}")

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


def start_up(log: Path, *arguments: str) -> Up:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(RAGSERVE), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "120"},
        )
    return Up(process, log)


@pytest.fixture(scope="module")
def up(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = start_up(tmp_path_factory.mktemp("up") / "log", "up", "--config", str(assets.config), *assets.options)
    try:
        running.wait_for(r"ready at \S+:\d+")
        yield running
    finally:
        if running.process.poll() is None:
            running.interrupt()


@pytest.fixture(scope="module")
def target(up: Up) -> str:
    return up.wait_for(r"ready at (\S+:\d+)").group(1)


@pytest.fixture(scope="module")
def services(up: Up, target: str) -> dict[str, str]:
    """Where the services are, by their names in capitals; TARGET is the orchestrator."""
    found = {name.upper(): up.wait_for(rf"{name}\s+│ (\S+:\d+)").group(1) for name in ("retriever", "generator")}
    return {**found, "TARGET": target}
