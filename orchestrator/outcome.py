"""From what a search found to probabilities of answers and documents."""

from __future__ import annotations

from collections.abc import Sequence
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

    mode: Mode
    tokens: tuple[int, ...]
    log_prob: float
    score: float
    log_probs: Floats

    def token_posteriors(self, log_prior: Doubles) -> Doubles:
        """Which document the model relied on for each token, `[n_tokens, n_docs]`; `marginal` defines it per mode."""
        of_mode = marginal.token_posteriors if self.mode is Mode.TOKEN else marginal.sequence_posteriors
        return of_mode(log_prior, self.log_probs)

    def posterior(self, log_prior: Doubles) -> Doubles:
        """The part of each document in the answer, `[n_docs]`; the prior for an answer without tokens.

        RAG-Sequence: p(z|x,y). RAG-Token, where each token has its own document: the expected share of the tokens.
        """
        if not self.tokens:
            return np.exp(log_prior)
        by_token = self.token_posteriors(log_prior)
        share: Doubles = by_token.mean(axis=0) if self.mode is Mode.TOKEN else by_token[-1]
        return share


def empty_warnings(tokens: Sequence[int], text: str, bos_id: int | None, *, readable: bool = True) -> tuple[str, ...]:
    """What the caller should know of the best answer, where it has no text.

    `readable`: the generator knows all characters of the question. Else another warning names that cause.
    """
    if text.strip():
        return ()
    counted = [token for token in tokens if token != bos_id]
    reason = (
        "the generator ends it at the first token"
        if len(counted) <= 1
        else f"its {len(counted)} tokens stand for no text"
    )
    if not readable:
        return (f"The answer is empty: {reason}.",)
    return (
        f"The answer is empty: {reason}. Check that the generator is trained for such questions and was imported with "
        "its own tokenizer, and that the passages are about the question; min_new_tokens asks for a longer answer.",
    )


def token_outcome(found: Finished, log_prior: Doubles) -> Outcome:
    """RAG-Token: log p(y|x) is the sum of the marginal log-probabilities of its tokens, before any filter."""
    log_probs = found.hypothesis.log_probs(log_prior.size)
    log_prob = float(marginal.token_log_probs(log_prior, log_probs).sum())
    return Outcome(Mode.TOKEN, found.hypothesis.tokens, log_prob, found.score, log_probs)


def sequence_outcome(ranked: Ranked) -> Outcome:
    """RAG-Sequence: the score is log p(y|x) itself."""
    return Outcome(Mode.SEQUENCE, ranked.tokens, ranked.log_prob, ranked.log_prob, ranked.log_probs)


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
    return Outcome(mode, scored.token_ids, total, total, log_probs), tuple(added.tolist())
