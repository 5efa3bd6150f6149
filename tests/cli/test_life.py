"""How the three services end: asked to, by accident, and when their parent is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from ragserve.errors import UnavailableError
from ragserve_cli.local import LocalServices
from ragserve_cli.plan import Launch
from tests.cli.conftest import Assets, Cli


def launch(module: str, *arguments: str) -> Launch:
    return Launch("retriever", module, arguments, "127.0.0.1", 1, "127.0.0.1", 2)


def test_a_service_that_cannot_start_stops_the_others(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    (tmp_path / "kb").mkdir()
    found = cli("up", "--config", assets.config, "--model", assets.model, "--knowledge", tmp_path / "kb")
    assert found.returncode == 1
    assert "error: the retriever cannot start: " in found.stderr
    assert "is not a knowledge base" in found.stderr


def test_a_setting_that_a_service_refuses(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(
        assets.config.read_text().replace("[orchestrator.server]", "[orchestrator]\nbeams = 3\n[orchestrator.server]")
    )
    found = cli("up", "--config", config, *assets.options)
    assert found.returncode == 2
    assert "error: orchestrator: " in found.stderr
    assert "beams" in found.stderr.splitlines()[-1]


def test_a_service_that_ends_is_reported_with_its_last_lines() -> None:
    lines: list[tuple[str, str]] = []
    services = LocalServices([launch("this")], lambda name, line: lines.append((name, line)))
    with services, pytest.raises(UnavailableError, match=r"retriever ended with status 0[\s\S]*honking great idea"):
        services.watch(threading.Event())
    assert ("retriever", "Beautiful is better than ugly.") in lines


def test_a_service_that_is_never_healthy() -> None:
    sleeper = launch("http.server", "0", "--bind", "127.0.0.1")
    services = LocalServices([sleeper], lambda *_: None)
    with services, pytest.raises(UnavailableError, match="retriever not healthy after 0"):
        services.wait_ready(threading.Event(), lambda _: None, timeout=0.3)


def test_services_end_with_a_parent_that_is_killed() -> None:
    script = (
        "import time; from ragserve_cli.local import LocalServices; from ragserve_cli.plan import Launch\n"
        "launch = Launch('retriever', 'http.server', ('0',), '127.0.0.1', 1, '127.0.0.1', 2)\n"
        "with LocalServices([launch], lambda *_: None): print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        children = psutil.Process(parent.pid).children()
        parent.kill()
        assert psutil.wait_procs(children, timeout=10)[1] == []


def test_demo_without_a_terminal_answers_the_samples_and_ends(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("# samples\nwho built the tower?\n\nwhere is the sea?\n")
    found = cli("demo", "--config", assets.config, *assets.options, "--questions", questions, stdin=subprocess.DEVNULL)
    assert found.returncode == 0, found.stderr
    for question in ("who built the tower?", "where is the sea?"):
        assert question in found.stdout
    assert found.stdout.count("log p(y|x)") == 2
    assert found.stdout.count("posterior") == 2
