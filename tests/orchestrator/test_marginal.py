"""The formulas, against their definitions in probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator import marginal
from orchestrator.search.ranker import counted_from, rank
from tests.orchestrator.toy import log_softmax

RNG = np.random.default_rng(0)
PRIOR = marginal.log_normalize(RNG.normal(size=4))
LOG_PROBS = np.stack([log_softmax(RNG.normal(size=9) * 3) for _ in range(4)])[:, :6]  # 4 documents, 6 tokens


def test_priors_sum_to_one() -> None:
    assert np.exp(PRIOR).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e6, 1e14, 1e17, 1e30, -1e30, 3e38])
def test_priors_of_any_size_sum_to_one(size: float) -> None:
    found = np.exp(marginal.log_normalize([size, size, size - 1e-3 * abs(size)]))
    assert found.sum() == pytest.approx(1.0, rel=1e-12)
    assert found[0] == found[1] > found[2] or size == 0.0
    np.testing.assert_array_equal(marginal.log_normalize([size] * 4), [np.log(0.25)] * 4)


def test_token_marginal() -> None:
    expected = (np.exp(PRIOR)[:, None] * np.exp(LOG_PROBS)).sum(0)
    np.testing.assert_allclose(np.exp(marginal.token_marginal(PRIOR, LOG_PROBS)), expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(marginal.token_log_probs(PRIOR, LOG_PROBS)), expected, rtol=1e-6)


def test_the_marginal_of_one_document_is_its_own() -> None:
    np.testing.assert_array_equal(marginal.token_marginal(np.zeros(1), LOG_PROBS[:1]), LOG_PROBS[0])


def test_sequence_marginal() -> None:
    expected = (np.exp(PRIOR) * np.exp(LOG_PROBS.sum(1))).sum()
    assert np.exp(marginal.sequence_log_prob(PRIOR, LOG_PROBS)) == pytest.approx(expected)
    added = marginal.sequence_log_probs(PRIOR, LOG_PROBS)
    assert np.exp(added.sum()) == pytest.approx(expected)
    assert added.shape == (6,)


def test_posteriors_of_tokens_that_each_have_their_document() -> None:
    found = marginal.token_posteriors(PRIOR, LOG_PROBS)
    joint = np.exp(PRIOR)[:, None] * np.exp(LOG_PROBS.astype(np.float64))
    np.testing.assert_allclose(found, (joint / joint.sum(0)).T, rtol=1e-9)


def test_posteriors_of_a_sequence_that_has_one_document() -> None:
    found = marginal.sequence_posteriors(PRIOR, LOG_PROBS)
    joint = np.exp(PRIOR)[:, None] * np.cumprod(np.exp(LOG_PROBS.astype(np.float64)), axis=1)
    np.testing.assert_allclose(found, (joint / joint.sum(0)).T, rtol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1.0)


def test_a_document_that_does_not_count_has_no_posterior() -> None:
    log_probs = LOG_PROBS.copy()
    log_probs[2] = -np.inf
    for posteriors in (marginal.token_posteriors, marginal.sequence_posteriors):
        assert (posteriors(PRIOR, log_probs)[:, 2] == 0).all()
    assert np.isfinite(marginal.sequence_log_prob(PRIOR, log_probs))


def test_logsumexp_of_nothing_is_minus_infinity() -> None:
    assert marginal.logsumexp(np.full((2, 3), -np.inf), axis=0).tolist() == [-np.inf] * 3


def test_ranking_leaves_out_a_common_first_bos() -> None:
    candidates, scores = [(0, 5, 2), (0, 6, 2)], [LOG_PROBS[:, :3], LOG_PROBS[:, 3:]]
    best = rank(candidates, scores, PRIOR, bos_id=0)
    expected = sorted((marginal.sequence_log_prob(PRIOR, one[:, 1:]) for one in scores), reverse=True)
    assert [one.log_prob for one in best] == pytest.approx(expected)
    counted = rank([(0, 5, 2), (6, 6, 2)], scores, PRIOR, bos_id=0)
    expected = sorted((marginal.sequence_log_prob(PRIOR, one) for one in scores), reverse=True)
    assert [one.log_prob for one in counted] == pytest.approx(expected)


def test_an_excluded_token_stays_impossible_for_documents_that_do_not_count() -> None:
    log_probs = np.array([[-1.0, -2.0], [-np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(counted_from(log_probs, True), [[0.0, -2.0], [-np.inf, -np.inf]])
