"""One set of tiny models and one stack of processes for all system tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.processes import running
from tests.system.cases import FAMILIES
from tests.system.harness import Assets, Launcher, Stack, stub_of
from tests.system.oracle import Oracle


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Tiny checkpoints, imported, and a knowledge base."""
    return Assets.build(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def launcher(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Starts further services."""
    return Launcher(assets, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def stack(launcher: Launcher) -> Iterator[Stack]:
    """Five healthy processes: one retriever, and a generator and an orchestrator for each family."""
    retriever = launcher.retriever()
    generators = {family: launcher.generator(family, draft_tokens=5) for family in FAMILIES}
    orchestrators = {
        family: launcher.orchestrator(retriever.target, [generators[family].target]) for family in FAMILIES
    }
    with running(retriever, *generators.values(), *orchestrators.values()):
        stubs = {family: stub_of(process.target) for family, process in orchestrators.items()}
        yield Stack(retriever, generators, orchestrators, stubs)


@pytest.fixture(scope="session")
def oracles(assets: Assets) -> dict[str, Oracle]:
    """transformers on the same checkpoints."""
    torch.set_num_threads(1)
    return {family: Oracle.load(path) for family, path in assets.composites.items()}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory to break things in."""
    return tmp_path
