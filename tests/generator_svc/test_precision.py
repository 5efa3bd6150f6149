from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from generator_svc.kernels import native
from generator_svc.models.numerics import NUMERICS
from generator_svc.models.precision import Precision
from generator_svc.runner import Runner
from generator_svc.sessions import Start
from tests.generator_svc.support import CPU, Chain, build, load, random_tokens

CONTEXTS = [random_tokens(length, random.Random(length)) for length in (23, 7, 1, 60)]
TOKENS = random_tokens(12, random.Random(1))


def chain_of(directory: Path, precision: Precision, start: int, contexts: list[list[int]] = CONTEXTS) -> Chain:
    return Chain(Runner(load(directory, precision), CPU), contexts, shared=True, starts=[Start((start,))])


def log_probs(chain: Chain) -> np.ndarray:
    """Of TOKENS' steps, [n_steps, n_docs, vocab]."""
    steps = [chain.step(), *(chain.advance([(0, token)]) for token in TOKENS)]
    return np.stack([torch.from_numpy(logits[:, 0]).log_softmax(-1).numpy() for logits in steps])


@pytest.mark.parametrize("precision", [name for name in NUMERICS if name != "float32"])
@pytest.mark.parametrize("variant", ["bart", "t5", "t5-gated"])
def test_every_precision_is_near_float32(variant: str, precision: Precision, tmp_path: Path) -> None:
    reference = build(variant)
    reference.save_pretrained(tmp_path)
    start = reference.config.decoder_start_token_id
    exact, other = (log_probs(chain_of(tmp_path, name, start)) for name in ("float32", precision))
    spread = float(np.std(exact))
    assert 0 < np.abs(other - exact).mean() < 0.05 * max(spread, 0.4)


@pytest.mark.parametrize("variant", ["bart", "bart-silu", "t5-gated"])
def test_int8_is_the_same_without_the_kernels(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = build(variant)
    reference.save_pretrained(tmp_path)
    start = reference.config.decoder_start_token_id
    exact, ours = (log_probs(chain_of(tmp_path, name, start)) for name in ("float32", "int8"))
    monkeypatch.setattr(native, "library", lambda: None)
    theirs = log_probs(chain_of(tmp_path, "int8", start))
    # A level more or less where a value lies between two: that is all that float32's rounding may change.
    assert np.abs(theirs - ours).mean() < 0.3 * np.abs(ours - exact).mean()


def test_an_int8_session_alone_equals_itself_among_others(tmp_path: Path) -> None:
    reference = build("bart")
    reference.save_pretrained(tmp_path)
    start = reference.config.decoder_start_token_id
    runner = Runner(load(tmp_path, "int8"), CPU)
    alone = Chain(runner, CONTEXTS, shared=True, starts=[Start((start,))])
    documents = runner.encode([random_tokens(40, random.Random(3)), *CONTEXTS]).documents[1:]
    expected = runner.step([alone.rows()])[0]
    alone.documents = documents
    other = Chain(Runner(load(tmp_path, "int8"), CPU), CONTEXTS[:2], shared=True, starts=[Start((start, 5, 9))])
    runner.cache.grow(1024)
    together = runner.step([alone.rows(), other.rows()])[0]
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_key_beyond_float16_is_not_answered_with(
    sign: int, kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One input of every key is, and with that of the queries so small that scores are as ever."""
    reference = build("bart")
    attention = reference.model.decoder.layers[1].encoder_attn
    with torch.no_grad():
        attention.q_proj.weight[5], attention.q_proj.bias[5] = 0, 1e-6
        attention.k_proj.weight[5], attention.k_proj.bias[5] = 0, sign * 1e5
    reference.save_pretrained(tmp_path)
    start = reference.config.decoder_start_token_id
    if not kernels:
        monkeypatch.setattr(native, "library", lambda: None)
    assert np.isfinite(chain_of(tmp_path, "float32", start).step()).all()
    assert np.isnan(chain_of(tmp_path, "int8", start).step()).all()


def test_keys_and_values_of_documents_take_half_in_int8(tmp_path: Path) -> None:
    build("bart").save_pretrained(tmp_path)
    exact, quantized = load(tmp_path), load(tmp_path, "int8")
    assert quantized.shape.bytes_per_document_token * 2 == exact.shape.bytes_per_document_token
    for model in (exact, quantized):
        (state,) = model.encode([CONTEXTS[0]]).documents
        assert sum(layer.nbytes for layer in state.layers) == model.shape.bytes_per_document_token * len(CONTEXTS[0])
