"""Every filter against the logits processor of transformers that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from orchestrator.search import filters

VOCAB, START, EOS = 12, 2, (1, 7)
MAX_LENGTH = 6

words = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3)
prefixes = st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=8).map(tuple)


def processed(prefix: tuple[int, ...], processor: hf.LogitsProcessor, scores: np.ndarray) -> np.ndarray:
    out = processor(torch.tensor([[START, *prefix]]), torch.tensor(scores)[None].clone())
    return np.asarray(out[0].numpy())


def filtered(prefix: tuple[int, ...], chain: list[filters.Filter], scores: np.ndarray) -> np.ndarray:
    both = filters.FilterChain(START, tuple(chain))
    control = both.control(prefix)
    if control.forced is not None:
        assert control.requested == control.forced
        out = np.full(VOCAB, -np.inf, np.float32)
        out[list(control.forced)] = 0
        return out
    out = both.rescore(prefix, np.arange(VOCAB), scores)
    changed = set(np.flatnonzero(out != scores).tolist())
    assert changed <= set(control.requested) | set(control.banned)
    out = out.copy()
    out[list(control.banned)] = -np.inf
    return out


PAIRS = [
    (filters.RepetitionPenalty(1.3), hf.RepetitionPenaltyLogitsProcessor(1.3)),
    (filters.RepetitionPenalty(0.6), hf.RepetitionPenaltyLogitsProcessor(0.6)),
    (filters.NoRepeatNgram(1), hf.NoRepeatNGramLogitsProcessor(1)),
    (filters.NoRepeatNgram(2), hf.NoRepeatNGramLogitsProcessor(2)),
    (filters.NoRepeatNgram(3), hf.NoRepeatNGramLogitsProcessor(3)),
    (filters.MinLength(4, EOS), hf.MinLengthLogitsProcessor(4, list(EOS))),
    (filters.MinNewTokens(3, EOS), hf.MinNewTokensLengthLogitsProcessor(1, 3, list(EOS))),
    (filters.ForcedBos(5), hf.ForcedBOSTokenLogitsProcessor(5)),
    (filters.ForcedEos((1,), MAX_LENGTH), hf.ForcedEOSTokenLogitsProcessor(MAX_LENGTH, 1)),
    (filters.ForcedEos((1, 4), MAX_LENGTH), hf.ForcedEOSTokenLogitsProcessor(MAX_LENGTH, [1, 4])),
    (filters.ExponentialDecay(2, 1.3, (1, 4)), hf.ExponentialDecayLengthPenalty((2, 1.3), [1, 4], 1)),
    (filters.ExponentialDecay(0, 0.5, (1,)), hf.ExponentialDecayLengthPenalty((0, 0.5), 1, 1)),
    (filters.Suppress((3, 5)), hf.SuppressTokensLogitsProcessor([3, 5])),
    (filters.SuppressAtBegin((3, 5), 1), hf.SuppressTokensAtBeginLogitsProcessor([3, 5], 1)),
    (filters.SuppressAtBegin((3, 5), 2), hf.SuppressTokensAtBeginLogitsProcessor([3, 5], 2)),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda one: type(one).__name__)
@settings(max_examples=40, deadline=None)
@given(prefix=prefixes, seed=st.integers(0, 1000))
def test_one_filter(ours, theirs, prefix, seed) -> None:
    scores = np.random.default_rng(seed).normal(-2, 2, VOCAB).astype(np.float32)
    np.testing.assert_array_equal(filtered(prefix, [ours], scores), processed(prefix, theirs, scores))


@settings(max_examples=60, deadline=None)
@given(prefix=prefixes, sequences=st.lists(words, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_bad_words(prefix, sequences, seed) -> None:
    scores = np.random.default_rng(seed).normal(-2, 2, VOCAB).astype(np.float32)
    if all(len(one) == 1 and one[0] in EOS for one in sequences):
        return  # transformers cannot be given an empty list
    ours = filters.BadWords(tuple(tuple(one) for one in sequences), EOS)
    theirs = hf.NoBadWordsLogitsProcessor(sequences, list(EOS))
    np.testing.assert_array_equal(filtered(prefix, [ours], scores), processed(prefix, theirs, scores))


@settings(max_examples=60, deadline=None)
@given(prefix=prefixes.filter(lambda p: len(p) < MAX_LENGTH), seed=st.integers(0, 1000))
def test_all_together(prefix, seed) -> None:
    """In the order of generate; a forced token wins over bans and penalties."""
    scores = np.random.default_rng(seed).normal(-2, 2, VOCAB).astype(np.float32)
    theirs = hf.LogitsProcessorList([processor for _, processor in PAIRS])
    ours = [one for one, _ in PAIRS]
    np.testing.assert_allclose(filtered(prefix, ours, scores), processed(prefix, theirs, scores), rtol=1e-6)
