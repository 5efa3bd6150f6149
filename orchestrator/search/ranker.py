"""The role of the ranker: RAG-Sequence answers out of the beams of each document (section 2.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.marginal import sequence_log_prob
from orchestrator.search.decoder import Decoder
from orchestrator.search.inference import Doubles, Floats, Inference
from orchestrator.search.rows import Hypothesis


@dataclass(frozen=True)
class Ranked:
    """A candidate, log p(y|x), and the log-probabilities `[n_docs, n_tokens]` it is made of.

    Documents that do not count for it (fast decoding) have -inf.
    """

    tokens: tuple[int, ...]
    log_prob: float
    log_probs: Floats


def candidates_of(groups: Sequence[Decoder]) -> dict[tuple[int, ...], dict[int, Hypothesis]]:
    """Distinct sequences in document order, then beam order, with the documents whose beams produced them."""
    found: dict[tuple[int, ...], dict[int, Hypothesis]] = {}
    for document, group in enumerate(groups):
        for one in group.results():
            found.setdefault(one.hypothesis.tokens, {})[document] = one.hypothesis
    return found


async def rank_thorough(
    inference: Inference, groups: Sequence[Decoder], log_prior: Doubles, bos_id: int | None
) -> list[Ranked]:
    """Every candidate under every document: p(y|x) = sum_z p(z|x) p(y|x,z)."""
    candidates = list(candidates_of(groups))
    scores = await inference.score(candidates)
    return rank(candidates, [one.log_probs for one in scores], log_prior, bos_id)


def rank_fast(groups: Sequence[Decoder], log_prior: Doubles, bos_id: int | None) -> list[Ranked]:
    """Every candidate under the documents whose beams produced it: the others are taken to give it 0."""
    candidates = candidates_of(groups)
    scores: list[Floats] = []
    for tokens, producers in candidates.items():
        log_probs = np.full((len(groups), len(tokens)), -np.inf, np.float32)
        for document, hypothesis in producers.items():
            log_probs[document] = hypothesis.log_probs(1)[0]
        scores.append(log_probs)
    return rank(list(candidates), scores, log_prior, bos_id)


def rank(
    candidates: Sequence[tuple[int, ...]], scores: Sequence[Floats], log_prior: Doubles, bos_id: int | None
) -> list[Ranked]:
    """Best first; earlier candidates win ties.

    As in Hugging Face's `RagSequenceForGeneration.generate`, the first token does not count where it is `<s>`
    (`exclude_bos_score`), which they all begin with when it is forced.
    """
    exclude = all(begins_with(tokens, bos_id) for tokens in candidates)
    ranked = []
    for tokens, log_probs in zip(candidates, scores, strict=True):
        counted = counted_from(log_probs, exclude)
        ranked.append(Ranked(tokens, sequence_log_prob(log_prior, counted), counted))
    return sorted(ranked, key=lambda one: -one.log_prob)


def begins_with(tokens: Sequence[int], bos_id: int | None) -> bool:
    """Whether the first token is the beginning-of-sequence token."""
    return bos_id is not None and len(tokens) > 0 and tokens[0] == bos_id


def counted_from(log_probs: Floats, exclude: bool) -> Floats:
    """Log-probabilities `[n_docs, n_tokens]` in which an excluded first token is certain."""
    if not exclude:
        return log_probs
    counted = log_probs.copy()
    counted[:, 0] = np.where(np.isneginf(counted[:, 0]), counted[:, 0], 0.0)
    return counted
