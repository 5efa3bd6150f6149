"""The random model and its documents: exact lengths, and a head as peaked as is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BartForConditionalGeneration

from bench import workload as module
from bench.heads import NATS, entropy_nats, greedy_logits, scale_for
from bench.workload import Shape, Workload, entropy_of, measured_on, model_directory, tokenizer
from ragserve.checkpoint import load_manifest, verify_files

TINY = Shape("tiny", 500, 64, 1, 2, 96)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def directories(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(module, "CACHE", cache)
    return {head: model_directory(TINY, head) for head in ("flat", "peaked")}


def load(directory: Path) -> BartForConditionalGeneration:
    return BartForConditionalGeneration.from_pretrained(directory / "generator").eval()


def test_peaking_multiplies_the_logits_and_nothing_else(directories: dict[str, Path]) -> None:
    flat, peaked = load(directories["flat"]), load(directories["peaked"])
    ids = torch.tensor(measured_on(tokenizer(TINY.vocab)).token_ids)
    fed = torch.tensor([[2, 40, 50]] * len(ids))
    with torch.inference_mode():
        before, after = (model(ids, decoder_input_ids=fed).logits for model in (flat, peaked))
    factor = float(after.abs().sum() / before.abs().sum())
    assert abs(factor - 1) > 0.01
    assert torch.allclose(after, factor * before, rtol=1e-4, atol=1e-4)


def test_the_entropy_is_that_of_the_model_and_is_kept(directories: dict[str, Path]) -> None:
    contexts = measured_on(tokenizer(TINY.vocab))
    for head, directory in directories.items():
        measured = entropy_nats(greedy_logits(load(directory), contexts), torch.tensor(contexts.log_priors))
        assert entropy_of(directory) == pytest.approx(measured, abs=1e-4), head
    assert NATS[0] <= entropy_of(directories["peaked"]) <= NATS[1]
    verify_files(directories["peaked"], load_manifest(directories["peaked"]), "generator")


def test_the_entropy_is_that_of_the_mixture() -> None:
    logits = torch.tensor([[[30.0, 0.0, 0.0], [0.0, 30.0, 0.0]]])  # two documents, sure of different tokens
    assert entropy_nats(logits, torch.tensor([0.5, 0.5]).log()) == pytest.approx(0.6931, abs=1e-3)
    assert entropy_nats(logits, torch.tensor([1.0, 1e-30]).log()) == pytest.approx(0.0, abs=1e-3)
    assert entropy_nats(logits * 0, torch.tensor([0.5, 0.5]).log()) == pytest.approx(1.0986, abs=1e-3)


def test_the_scale_reaches_the_entropy_asked_for() -> None:
    logits = torch.randn(4, 3, 200, generator=torch.Generator().manual_seed(0))
    priors = torch.log_softmax(torch.tensor([0.0, -0.5, -1.0]), 0)
    assert entropy_nats(logits, priors, scale_for(logits, priors, 2.0)) == pytest.approx(2.0, abs=1e-2)


@pytest.mark.parametrize("document_tokens", [40, 50, 99, 100, 160, 1000])
def test_contexts_have_the_length_that_is_said(document_tokens: int) -> None:
    workload = Workload(n_docs=3, document_tokens=document_tokens)
    lengths = [len(ids) for ids in tokenizer(400)(workload.contexts())["input_ids"]]
    assert lengths == [document_tokens] * 3
    assert len({*workload.texts(), *Workload(3, document_tokens, seed=1).texts()}) == 6
