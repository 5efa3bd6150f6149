"""Our search against transformers' own `generate`, on tiny random BART and T5 models in this process."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from orchestrator.options import Resolved, resolve
from orchestrator.outcome import token_outcome
from orchestrator.requests import GenerateAsk, GenerationOptions, Mode, Sources
from orchestrator.search.beam import EarlyStopping
from orchestrator.search.ranker import rank_thorough
from orchestrator.settings import OrchestratorSettings
from tests import tiny
from tests.orchestrator.driving import resolved, search
from tests.orchestrator.hf import Case


def drawn(seed: int, mode: Mode) -> tuple[Case, Resolved]:
    """A random case; in sequence mode without two things that rescoring gets wrong in transformers 5.23.

    It counts generated padding tokens as certain, and leaves out the prior of candidates of one token.
    """
    rng = random.Random(f"{seed} {mode}")
    family, sequence = rng.choice(tiny.FAMILIES), mode is Mode.SEQUENCE
    case = Case(family, rng.randint(1, 5), seed)
    beams = rng.choice([1, 2, 3, 4])
    early_stopping = rng.choice(list(EarlyStopping))
    positive = early_stopping is EarlyStopping.NEVER
    options = resolved(
        mode=mode,
        num_beams=beams,
        max_length=rng.randint(6, 12),
        min_length=rng.choice([3, 5] if sequence else [0, 0, 5]),
        length_penalty=rng.choice([0.0, 0.5, 1.0, 2.0] if positive else [0.0, 0.5, 1.0, 2.0, -1.0]),
        early_stopping=early_stopping,
        no_repeat_ngram_size=rng.choice([0, 0, 2, 3]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        bad_words=((case.config.pad_token_id,), *rng.choice([(), ((5,), (7, 8))])),
    )
    return case, options


def seeds(short: int, long: int) -> list[object]:
    """The first few in every run, the others only in the long one."""
    return [seed if seed < short else pytest.param(seed, marks=pytest.mark.long) for seed in range(long)]


@pytest.mark.parametrize("seed", seeds(14, 250))
def test_rag_token(seed: int) -> None:
    case, options = drawn(seed, Mode.TOKEN)
    expected = case.generate_token(options)
    run = asyncio.run(search(case.session(Mode.TOKEN), options, case.info, case.log_prior))
    assert [one.hypothesis.tokens for one in run.found] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose([one.score for one in run.found], [score for _, score in expected], rtol=1e-5, atol=1e-4)
    best = token_outcome(run.found[0], case.log_prior)
    assert best.log_prob == pytest.approx(case.log_prob(Mode.TOKEN, best.tokens), abs=1e-4)


@pytest.mark.parametrize("seed", seeds(5, 150))
def test_rag_sequence_thorough(seed: int) -> None:
    case, options = drawn(seed, Mode.SEQUENCE)
    session = case.session(Mode.SEQUENCE)
    run = asyncio.run(search(session, options, case.info, case.log_prior))
    best = asyncio.run(rank_thorough(session, run.groups, case.log_prior, case.info.bos_token_id))[0]
    assert best.tokens == case.generate_sequence(options)
    assert best.log_prob == pytest.approx(case.log_prob(Mode.SEQUENCE, best.tokens), abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_min_new_tokens_with_min_length(beams: int) -> None:
    """RAG-Sequence lets min_new_tokens win, RAG-Token applies both; answers differ in length."""
    case = Case("bart", 3, 5)
    lengths = {"min_length": 12, "min_new_tokens": 2}
    found: dict[Mode, tuple[int, ...]] = {}
    for mode in Mode:
        asked = GenerationOptions(
            mode=mode, num_beams=beams, max_length=16, bad_words=((case.config.pad_token_id,),), **lengths
        )
        options = resolve(GenerateAsk(Sources("who?"), asked), case.info, OrchestratorSettings(), 3)
        session = case.session(mode)
        run = asyncio.run(search(session, options, case.info, case.log_prior))
        if mode is Mode.TOKEN:
            found[mode] = run.found[0].hypothesis.tokens
            ((expected, _), *_) = case.generate_token(options, **lengths)
        else:
            best = asyncio.run(rank_thorough(session, run.groups, case.log_prior, case.info.bos_token_id))
            found[mode], expected = best[0].tokens, case.generate_sequence(options, **lengths)
        assert found[mode] == expected
    assert len(found[Mode.SEQUENCE]) < 11 <= len(found[Mode.TOKEN])
