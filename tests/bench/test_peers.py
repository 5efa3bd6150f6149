"""The peer with its candidates scored in parts: the same losses as in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import workload as module
from bench.peers import HuggingFace
from bench.workload import Shape, Workload, model_directory

TINY = Shape("tiny", 500, 64, 1, 2, 96)
WORKLOAD = Workload(n_docs=3, document_tokens=50, new_tokens=5)


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HuggingFace:
    monkeypatch.setattr(module, "CACHE", tmp_path)
    return HuggingFace(model_directory(TINY), WORKLOAD, threads=1)


@pytest.mark.parametrize("rows", [3, 6, 8])
def test_parts_give_the_losses_of_one_pass(peer: HuggingFace, rows: int) -> None:
    sequence, candidates = peer._models["sequence"], 5
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 400, (3, 50), generator=rng).repeat(candidates, 1)
    asked = {
        "context_input_ids": ids,
        "context_attention_mask": torch.ones_like(ids),
        "doc_scores": torch.tensor(WORKLOAD.log_priors()).repeat(candidates, 1),
        "labels": torch.randint(4, 400, (candidates, 6), generator=rng),
        "exclude_bos_score": True,
    }
    with torch.inference_mode():
        whole = sequence(**asked)["loss"]
        sequence.rows = rows
        parts = sequence(**asked)["loss"]
    assert whole.shape == (candidates,)
    assert len(set(whole.tolist())) == candidates
    assert torch.allclose(parts, whole, atol=1e-4)


def test_the_answer_is_the_same(peer: HuggingFace) -> None:
    whole = peer.generate("sequence", 2, padded=False)
    peer._models["sequence"].rows = 3
    assert peer.generate("sequence", 2, padded=False) == whole
    assert len(whole) == WORKLOAD.new_tokens
