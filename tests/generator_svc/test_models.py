from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from generator_svc.runner import Runner
from generator_svc.sessions import Start
from tests.generator_svc.support import CPU, VARIANTS, Chain, build, load, random_tokens, reference_logits

LENGTHS = (23, 7, 1, 60)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    reference = build(variant)
    reference.save_pretrained(tmp_path)
    runner = Runner(load(tmp_path), CPU)
    rng = random.Random(1)
    contexts = [random_tokens(length, rng) for length in LENGTHS]
    start, tokens = reference.config.decoder_start_token_id, random_tokens(30, rng)
    chain = Chain(runner, contexts, shared=True, starts=[Start((start,))])
    expected = [reference_logits(reference, context, [start, *tokens]) for context in contexts]
    logits = chain.step()
    for position, token in enumerate([*tokens, 0]):
        for document in range(len(contexts)):
            np.testing.assert_allclose(logits[document, 0], expected[document][position], atol=1e-4, rtol=0)
        logits = chain.advance([(0, token)])


def test_scaled_outputs_differ_from_plain_ones() -> None:
    assert build("t5").config.scale_decoder_outputs
    assert not build("t5-not-scaled").config.scale_decoder_outputs


@pytest.mark.parametrize("variant", ["bart", "t5-gated"])
def test_prefixes_fed_in_one_pass_equal_stepping(variant: str, tmp_path: Path) -> None:
    reference = build(variant)
    reference.save_pretrained(tmp_path)
    rng = random.Random(2)
    contexts = [random_tokens(length, rng) for length in (9, 30, 14)]
    start = reference.config.decoder_start_token_id
    common = random_tokens(4, rng)
    prefixes = [(start, *common, 5, 6), (start, *common, 5, 7), (start, 9), (start,), (start, *common, 5, 6)]
    for shared in (True, False):
        starts = [Start(prefix, 0 if shared else i % len(contexts)) for i, prefix in enumerate(prefixes)]
        chain = Chain(Runner(load(tmp_path), CPU), contexts, shared=shared, starts=starts)
        for logits, extra in ((chain.step(), []), (chain.advance([(i, 11) for i in range(len(starts))]), [11])):
            for i, begin in enumerate(starts):
                documents = range(len(contexts)) if shared else [begin.document]
                for row, document in enumerate(documents):
                    expected = reference_logits(reference, contexts[document], [*begin.tokens, *extra])[-1]
                    np.testing.assert_allclose(logits[row, i], expected, atol=1e-4, rtol=0)
