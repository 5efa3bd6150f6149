"""The sparse path must make the choices of the dense one, on distributions made to break it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.marginal import log_normalize
from orchestrator.options import Resolved
from orchestrator.requests import Mode
from orchestrator.search.beam import EarlyStopping
from orchestrator.search.room import ENVELOPE_BYTES
from orchestrator.search.sampling import SamplingRules
from ragserve.serving.channel import MAX_MESSAGE_BYTES
from tests.orchestrator.driving import EOS, Run, generator_info, resolved, search
from tests.orchestrator.toy import PrunedSession, Toy

SHAPES = ("flat", "even", "peaked", "zipf", "ties", "disagree")

filters = st.fixed_dictionaries(
    {
        "min_length": st.sampled_from([0, 4]),
        "min_new_tokens": st.sampled_from([0, 3]),
        "no_repeat_ngram_size": st.sampled_from([0, 1, 2]),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.7]),
        "bad_words": st.sampled_from([(), ((2,), (3, 4)), tuple((t,) for t in range(2, 20))]),
    }
)
searches = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "num_beams": st.integers(2, 4),
            "early_stopping": st.sampled_from(list(EarlyStopping)),
            "length_penalty": st.sampled_from([-0.7, 0.0, 0.6, 1.0, 2.0]),
        }
    ).filter(lambda how: how["length_penalty"] >= 0 or how["early_stopping"] is not EarlyStopping.NEVER),
    st.builds(
        lambda **rules: {"sampling": SamplingRules(**rules)},
        seed=st.integers(0, 2**32),
        samples=st.integers(1, 3),
        temperature=st.sampled_from([1.0, 0.3, 0.9, 1.5, 4.0]),
        top_k=st.sampled_from([0, 1, 3, 12]),
        top_p=st.sampled_from([1.0, 0.2, 0.7, 0.95]),
    ),
)
toys = st.builds(Toy, shape=st.sampled_from(SHAPES), vocab=st.sampled_from([23, 60, 200]), seed=st.integers(0, 10**6))


def run_once(
    toy: Toy,
    options: Resolved,
    n_docs: int,
    candidates: int,
    forced: dict[str, int],
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> tuple[Run, int]:
    prior = log_normalize(np.random.default_rng(toy.seed).normal(size=n_docs) * 2)
    session = PrunedSession(toy, prior, sequence_mode=options.mode is Mode.SEQUENCE)
    info = generator_info(toy.vocab, **forced)
    run = asyncio.run(search(session, options, info, prior, candidates, max_bytes=max_bytes))
    assert session.largest <= max_bytes - ENVELOPE_BYTES
    return run, len(session.widened)


RULES = (
    *({}, {"forced_bos_token_id": 5}, {"forced_eos_token_id": (EOS, 7)}),
    *({"suppress_tokens": (4, 9)}, {"begin_suppress_tokens": (EOS, 3)}),
    *({"exponential_decay_length_penalty": (2, 1.4)}, {"eos_token_id": (EOS, 6, 8)}),
)


@settings(max_examples=200, deadline=None)
@given(
    toy=toys,
    how=searches,
    what=filters,
    n_docs=st.integers(1, 4),
    candidates=st.integers(2, 8),
    forced=st.sampled_from(RULES),
)
def test_same_choices_and_log_probs(toy, how, what, n_docs, candidates, forced) -> None:
    options = resolved(max_length=7, **how, **what)
    sparse, _ = run_once(toy, options, n_docs, candidates, forced)
    dense, widened = run_once(toy, options, n_docs, toy.vocab, forced)
    assert widened == 0
    assert [one.hypothesis.tokens for one in sparse.found] == [one.hypothesis.tokens for one in dense.found]
    for ours, theirs in zip(sparse.found, dense.found, strict=True):
        assert ours.score == theirs.score
        np.testing.assert_allclose(ours.hypothesis.log_probs(n_docs), theirs.hypothesis.log_probs(n_docs), atol=1e-5)
    assert sparse.settled == dense.settled


@settings(max_examples=100, deadline=None)
@given(
    toy=toys,
    how=searches,
    what=filters,
    n_docs=st.integers(1, 4),
    mode=st.sampled_from(list(Mode)),
    max_bytes=st.sampled_from([9_000, 13_000, 18_000]),  # one to a few dense rows
)
def test_small_messages_change_nothing(toy, how, what, n_docs, mode, max_bytes) -> None:
    assume(mode is Mode.TOKEN or "sampling" not in how)
    options = resolved(max_length=7, mode=mode, **how, **what)
    parted, _ = run_once(toy, options, n_docs, 4, {}, max_bytes)
    whole, _ = run_once(toy, options, n_docs, 4, {})
    for ours, theirs in zip(parted.groups, whole.groups, strict=True):
        assert [one.hypothesis.tokens for one in ours.results()] == [one.hypothesis.tokens for one in theirs.results()]
        assert [one.score for one in ours.results()] == [one.score for one in theirs.results()]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), how=searches, what=filters, n_docs=st.integers(1, 4), candidates=st.integers(2, 4))
def test_ties_beyond_the_candidates_always_widen(seed, how, what, n_docs, candidates) -> None:
    assume(what["repetition_penalty"] >= 1)  # a reward breaks the tie: the token said before is the best for sure
    toy, options = Toy("even", vocab=200, seed=seed), resolved(max_length=5, **how, **what)
    sparse, widened = run_once(toy, options, n_docs, candidates, {})
    dense, _ = run_once(toy, options, n_docs, toy.vocab, {})
    assert widened > 0
    assert [one.hypothesis.tokens for one in sparse.found] == [one.hypothesis.tokens for one in dense.found]


@settings(max_examples=60, deadline=None)
@given(toy=toys, beams=st.integers(1, 3), what=filters, n_docs=st.integers(1, 4), candidates=st.integers(2, 8))
def test_the_same_beams_for_every_document(toy, beams, what, n_docs, candidates) -> None:
    """Sequence mode: some documents widen while others are certain, and finished ones drop out."""
    options = resolved(mode=Mode.SEQUENCE, num_beams=beams, max_length=7, **what)
    sparse, _ = run_once(toy, options, n_docs, candidates, {})
    dense, _ = run_once(toy, options, n_docs, toy.vocab, {})
    for ours, theirs in zip(sparse.groups, dense.groups, strict=True):
        assert [one.hypothesis.tokens for one in ours.results()] == [one.hypothesis.tokens for one in theirs.results()]
        assert [one.score for one in ours.results()] == [one.score for one in theirs.results()]


@pytest.mark.parametrize(
    ("shape", "how", "reason"),
    [
        ("even", {}, "greedy"),
        ("even", {"num_beams": 3}, "beam"),
        ("ties", {"num_beams": 4}, "beam"),
        ("flat", {"sampling": SamplingRules(seed=3, samples=1)}, "sample"),
        ("flat", {"sampling": SamplingRules(seed=3, samples=1, temperature=2.0)}, "sample"),
        ("even", {"sampling": SamplingRules(seed=3, samples=1, top_k=5)}, "top_k"),
        ("zipf", {"sampling": SamplingRules(seed=3, samples=2, top_p=0.9)}, "top_p"),
        ("zipf", {"sampling": SamplingRules(seed=3, samples=1, top_p=0.9, temperature=0.7)}, "top_p"),
    ],
)
def test_widening_happens_where_the_candidates_do_not_decide(shape, how, reason) -> None:
    toy, options = Toy(shape, vocab=200, seed=5), resolved(**how)
    sparse, widened = run_once(toy, options, 3, 4, {})
    dense, _ = run_once(toy, options, 3, toy.vocab, {})
    assert widened > 0
    assert {found for found, _ in sparse.widenings} == {reason}
    assert [one.hypothesis.tokens for one in sparse.found] == [one.hypothesis.tokens for one in dense.found]


def test_a_peaked_distribution_never_widens() -> None:
    toy = Toy("peaked", vocab=5000, seed=1)
    for how in ({}, {"sampling": SamplingRules(1, 4, temperature=0.9)}, {"sampling": SamplingRules(1, 2, top_p=0.9)}):
        run, widened = run_once(toy, resolved(**how), 3, 16, {})
        assert widened == 0
        assert run.found
