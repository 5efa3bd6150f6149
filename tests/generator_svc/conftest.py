from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from generator_svc.engine import GeneratorEngine
from generator_svc.options import EngineOptions
from ragserve.serving.metrics import Metrics
from tests.tiny import tiny_model_dir


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def bart_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("bart"), "bart", "rag-token")


@pytest.fixture(scope="session")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("t5"), "t5-gated", "rag-sequence")


@pytest.fixture
async def engine(bart_dir: Path) -> AsyncIterator[GeneratorEngine]:
    engine = GeneratorEngine(bart_dir, EngineOptions(device="cpu", max_documents=8, max_hypotheses=16), Metrics())
    await engine.start()
    yield engine
    await engine.stop()
