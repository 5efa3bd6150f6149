from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from generator_svc.models.base import Seq2SeqModel
from generator_svc.runner import Runner
from generator_svc.sessions import Start
from generator_svc.slots import INITIAL_SLOTS, PathNode, SlotPool
from tests.generator_svc.support import CPU, Chain, build, load, random_tokens, reference_logits

Pair = tuple[PreTrainedModel, Seq2SeqModel]


@pytest.fixture(scope="module", params=["bart", "t5-gated"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("model")
    reference = build(request.param)
    reference.save_pretrained(directory)
    return reference, load(directory)


@given(seed=st.integers(0, 10**6), shared=st.booleans(), n_docs=st.integers(1, 4))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_cached_decode_equals_recomputing_after_reorders(pair: Pair, seed: int, shared: bool, n_docs: int) -> None:
    reference, model = pair
    rng = random.Random(seed)
    contexts = [random_tokens(rng.randint(1, 20), rng) for _ in range(n_docs)]
    start = reference.config.decoder_start_token_id
    documents = [0] if shared else list(range(n_docs))
    chain = Chain(Runner(model, CPU), contexts, shared=shared, starts=[Start((start,), d) for d in documents])
    beams = [(document, [start]) for document in documents]
    logits = chain.step()
    for _ in range(rng.randint(1, 7)):
        choices = [(rng.randrange(len(beams)), rng.randrange(3, 100)) for _ in range(rng.randint(1, 5))]
        logits = chain.advance(choices)
        beams = [(beams[parent][0], [*beams[parent][1], token]) for parent, token in choices]
    for i, (own, tokens) in enumerate(beams):
        for row, document in enumerate(range(n_docs) if shared else [own]):
            expected = reference_logits(reference, contexts[document], tokens)[-1]
            np.testing.assert_allclose(logits[row, i], expected, atol=1e-4, rtol=0)


def test_beams_share_the_slots_of_their_common_past(pair: Pair) -> None:
    chain = Chain(Runner(pair[1], CPU), [[5, 6, 7], [8, 9]], shared=True, starts=[Start((2,))])
    chain.step()
    assert chain.scheduler.slots.used == 2
    chain.advance([(0, 10), (0, 11), (0, 12)])
    assert chain.scheduler.slots.used == 2 + 3 * 2
    chain.advance([(1, 13)])
    assert chain.scheduler.slots.used == 3 * 2


def test_the_cache_grows_and_keeps_what_it_holds(pair: Pair) -> None:
    reference, model = pair
    start = reference.config.decoder_start_token_id
    chain = Chain(Runner(model, CPU), [[5, 6, 7]], shared=True, starts=[Start((start,))])
    chain.step()
    chain.scheduler.slots.allocate(INITIAL_SLOTS)
    logits = chain.advance([(0, 10)])
    assert chain.runner.cache.layers[0].shape[0] == 2 * INITIAL_SLOTS
    np.testing.assert_allclose(logits[0, 0], reference_logits(reference, [5, 6, 7], [start, 10])[-1], atol=1e-4)


def test_slots_are_free_when_no_path_holds_them() -> None:
    pool = SlotPool()
    first = PathNode(pool.allocate(3), None)
    left, right = PathNode(pool.allocate(3), first), PathNode(pool.allocate(3), first)
    pool.release(first)
    assert pool.used == 9  # held by the longer paths
    pool.release(left)
    assert pool.used == 6
    assert set(pool.allocate(INITIAL_SLOTS - 6)).isdisjoint([*first.slots, *right.slots])
    assert pool.size == INITIAL_SLOTS
    pool.release(right)
    assert pool.used == INITIAL_SLOTS - 6
    pool.allocate(7)
    assert pool.size == 2 * INITIAL_SLOTS
