"""What an operator sees of prefill: tokens, padding, and documents of a pass."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch

from generator_svc.commands import Document, OpenCommand
from generator_svc.engine import GeneratorEngine
from generator_svc.metrics import GeneratorMetrics
from generator_svc.models.linear import PackedLinear
from generator_svc.options import EngineOptions
from ragserve.serving.metrics import Metrics
from tests.generator_svc.support import build, load, random_tokens
from tests.tiny import tiny_passages


def figure(metrics: Metrics, name: str, **labels: str) -> float:
    value = metrics.registry.get_sample_value(f"ragserve_{name}", labels)
    assert value is not None
    return value


def test_what_is_computed_beyond_the_tokens_is_padding() -> None:
    metrics = Metrics()
    ours = GeneratorMetrics(metrics)
    ours.encoded([30, 20, 50], 150)
    ours.encoded([40], 40)
    assert figure(metrics, "prefill_tokens_total") == 140
    assert figure(metrics, "prefill_padded_tokens_total") == 50
    assert (figure(metrics, "prefill_documents_count"), figure(metrics, "prefill_documents_sum")) == (2, 4)
    assert figure(metrics, "prefill_documents_bucket", le="1.0") == 1


@pytest.mark.parametrize("variant", ["bart", "t5"])
def test_positions_are_the_rows_that_the_linear_maps_see(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(variant).save_pretrained(tmp_path)
    model = load(tmp_path)
    plain, seen = PackedLinear.__call__, set()

    def count(self: PackedLinear, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        seen.add(x.shape[0])
        return plain(self, x, residual)

    monkeypatch.setattr(PackedLinear, "__call__", count)
    encoded = model.encode([random_tokens(length, random.Random(length)) for length in (23, 7, 60)])
    assert seen == {encoded.positions} == {90}


async def test_an_engine_shows_what_it_encoded_and_pads_nothing(bart_dir: Path) -> None:
    metrics, passages = Metrics(), [Document(p.title, p.text) for p in tiny_passages(3, 5)]
    engine = GeneratorEngine(bart_dir, EngineOptions(device="cpu"), metrics)
    await engine.start()

    async def tokens(number: int) -> int:
        async with engine.connect() as session:
            opened = await session.open(OpenCommand(f"who is {number}?", tuple(passages), "token", 4))
        return sum(opened.output.context_tokens)

    lengths = await asyncio.gather(*(tokens(number) for number in range(12)))
    await engine.stop()
    assert figure(metrics, "prefill_tokens_total") == sum(lengths)
    assert figure(metrics, "prefill_padded_tokens_total") == 0
    assert figure(metrics, "prefill_documents_sum") == 36
    assert figure(metrics, "prefill_documents_count") <= 12
