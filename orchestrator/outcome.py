"""From what a search found to probabilities of answers and documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator import marginal
from orchestrator.requests import Mode
from orchestrator.search.decoder import Finished
from orchestrator.search.inference import Doubles, Floats, TargetScore
from orchestrator.search.ranker import Ranked, begins_with, counted_from


@dataclass(frozen=True)
class Outcome:
    """One answer: `log_prob` is log p(y|x), `score` what ranked it; `log_probs` is `[n_docs, n_tokens]`."""

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    log_probs: Floats

    def token_posteriors(self, log_prior: Doubles) -> Doubles:
        """p(z|x,y_1..i) after each token, `[n_tokens, n_docs]`."""
        return marginal.posteriors(log_prior, self.log_probs)

    def posterior(self, log_prior: Doubles) -> Doubles:
        """p(z|x,y) after the whole answer, `[n_docs]`; the prior for an answer without tokens."""
        return self.token_posteriors(log_prior)[-1] if self.tokens else np.exp(log_prior)


def token_outcome(found: Finished, log_prior: Doubles) -> Outcome:
    """RAG-Token: log p(y|x) is the sum of the marginal log-probabilities of its tokens, before any filter."""
    log_probs = found.hypothesis.log_probs(log_prior.size)
    log_prob = float(marginal.token_log_probs(log_prior, log_probs).sum())
    return Outcome(found.hypothesis.tokens, log_prob, found.score, log_probs)


def sequence_outcome(ranked: Ranked) -> Outcome:
    """RAG-Sequence: the score is log p(y|x) itself."""
    return Outcome(ranked.tokens, ranked.log_prob, ranked.log_prob, ranked.log_probs)


def score_outcome(
    scored: TargetScore, log_prior: Doubles, mode: Mode, bos_id: int | None
) -> tuple[Outcome, tuple[float, ...]]:
    """What a given answer has: log p(y|x), and what each token adds to it.

    In sequence mode a leading `<s>` does not count, as in the ranking of generated answers (`exclude_bos_score`).
    """
    if mode is Mode.TOKEN:
        log_probs = scored.log_probs
        added = marginal.token_log_probs(log_prior, log_probs)
    else:
        log_probs = counted_from(scored.log_probs, begins_with(scored.token_ids, bos_id))
        added = marginal.sequence_log_probs(log_prior, log_probs)
    total = float(added.sum())
    return Outcome(scored.token_ids, total, total, log_probs), tuple(added.tolist())
