"""The generator decodes the same on a GPU as on the CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from generator_svc.engine import GeneratorEngine
from generator_svc.options import EngineOptions
from ragserve.serving.metrics import Metrics
from tests.generator_svc.test_engine import greedy, opening
from tests.tiny import tiny_model_dir

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
KINDS = {"bart": "rag-token", "t5-gated": "rag-sequence"}
CANDIDATES, STEPS = 12, 12


@pytest.fixture(scope="session", params=sorted(KINDS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp(request.param), request.param, KINDS[request.param])


async def decode(model: Path, device: str, mode: str) -> tuple[list[list[int]], np.ndarray]:
    """Greedy tokens of each hypothesis, and every document's log-probability of them."""
    engine = GeneratorEngine(model, EngineOptions(device=device, max_documents=8, max_hypotheses=16), Metrics())
    await engine.start()
    try:
        async with engine.connect() as session:
            tokens, seen = await greedy(session, opening(4, mode, candidates=CANDIDATES), STEPS)
    finally:
        await engine.stop()
    return tokens, seen[..., ::CANDIDATES]


@pytest.mark.parametrize("mode", ["token", "sequence"])
def test_same_tokens_and_log_probabilities(model: Path, mode: str) -> None:  # not async: pytest-asyncio may be missing
    tokens, log_probs = asyncio.run(decode(model, "cuda", mode))
    expected, expected_log_probs = asyncio.run(decode(model, "cpu", mode))
    assert tokens == expected
    np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-3)
