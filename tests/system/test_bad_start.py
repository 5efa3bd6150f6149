"""A service that cannot start says in one line what is wrong with which file or setting, and ends."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.processes import ServiceProcess
from tests.system.harness import Assets, Launcher


def log_of_failure(process: ServiceProcess) -> str:
    """The log of a service that must not come up; without a traceback."""
    try:
        status = process.wait(60)
    finally:
        process.kill()
    text = process.log_text()
    assert status != 0, text
    assert "Traceback" not in text
    return text


def with_broken_model(launcher: Launcher, directory: Path, break_it: Callable[[Path], None]) -> Launcher:
    model = directory / "model"
    shutil.copytree(launcher.assets.models["bart"], model)
    break_it(model)
    assets = Assets({"bart": model}, {}, launcher.assets.knowledge)
    return replace(launcher, assets=assets)


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("generator", "generator/model.safetensors"),
        pytest.param("generator", "generator/tokenizer.json", marks=pytest.mark.long),
        ("retriever", "query_encoder/model.onnx"),
        ("retriever", "query_encoder/tokenizer.json"),
    ],
)
@pytest.mark.parametrize(
    "damage", [truncate, pytest.param(Path.unlink, marks=pytest.mark.long)], ids=["truncated", "missing"]
)
def test_a_damaged_model(
    service: str, name: str, damage: Callable[[Path], None], launcher: Launcher, tmp_path: Path
) -> None:
    broken = with_broken_model(launcher, tmp_path, lambda model: damage(model / name))
    assert name in log_of_failure(getattr(broken, service)())


@pytest.mark.long
def test_no_model(launcher: Launcher, tmp_path: Path) -> None:
    nothing = replace(launcher, assets=Assets({"bart": tmp_path}, {}, tmp_path))
    assert "ragserve.json" in log_of_failure(nothing.generator())


def test_no_knowledge_base(launcher: Launcher, tmp_path: Path) -> None:
    nothing = replace(launcher, assets=replace(launcher.assets, knowledge=tmp_path / "gone"))
    assert "gone" in log_of_failure(nothing.retriever())


@pytest.mark.parametrize("service", ["retriever", pytest.param("generator", marks=pytest.mark.long), "orchestrator"])
def test_a_port_in_use(service: str, launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start = {
            "retriever": launcher.retriever,
            "generator": launcher.generator,
            "orchestrator": lambda **flags: launcher.orchestrator("127.0.0.1:1", ["127.0.0.1:1"], **flags),
        }[service]
        text = log_of_failure(start(server__port=port))
    assert f"127.0.0.1:{port}" in text
    assert "server.port" in text


@pytest.mark.parametrize("service", ["retriever", "generator"])
def test_an_unknown_flag(service: str, launcher: Launcher) -> None:
    assert "--no-such-thing" in log_of_failure(getattr(launcher, service)(no_such_thing=1))
