"""A step as the decoders see it: for each hypothesis the tokens whose scores are known, and a bound on the others.

This is the certificate of the sparse path: the generator sends the M allowed tokens of the largest marginal, so no
token that is not there has a larger one than the smallest of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orchestrator.marginal import token_marginal
from orchestrator.search.filters import FilterChain
from orchestrator.search.inference import Control, Doubles, Floats, Ids, Step
from ragserve.errors import InternalError

# The generator selects by marginals summed in float32, we compare sums made in float64: closer than this is a tie.
ROUNDING = 1e-6

ZERO, LEAST = np.float32(0.0), np.float32(-np.inf)


@dataclass(frozen=True)
class Hypothesis:
    """Tokens generated so far, the decoder start token not included.

    `score` is the sum of their log-probabilities after the filters; `doc_log_probs` has, for each token, what every
    document gives it before them, `[n_docs]`.
    """

    tokens: tuple[int, ...] = ()
    score: np.float32 = ZERO
    doc_log_probs: tuple[Floats, ...] = ()

    def extended(self, row: Row, at: int) -> Hypothesis:
        """With the token at position `at` of a row."""
        return Hypothesis(
            tokens=(*self.tokens, int(row.ids[at])),
            score=self.score + row.scores[at],
            doc_log_probs=(*self.doc_log_probs, row.doc_log_probs[:, at].copy()),
        )

    def log_probs(self, n_docs: int) -> Floats:
        """Log-probabilities of the tokens under each document, `[n_docs, n_tokens]`."""
        return np.stack(self.doc_log_probs, axis=1) if self.doc_log_probs else np.zeros((n_docs, 0), np.float32)


@dataclass(frozen=True)
class Row:
    """What is known of one hypothesis' next token, by falling score, ties by rising id.

    No token that is missing scores above `bound`; `unknown` is how many allowed tokens may be missing, 0 when all
    are here.
    """

    ids: Ids  # [n]
    scores: Floats  # [n]
    marginals: Floats  # [n]: before the filters
    doc_log_probs: Floats = field(repr=False)  # [n_docs, n]
    allowed_log_mass: float  # of the marginal on all allowed tokens
    bound: np.float32
    unknown: int

    def certain(self, score: np.float32) -> bool:
        """Whether every missing token surely scores below `score`."""
        return self.unknown == 0 or bool(score > self.bound)

    def mass(self, peak: float) -> float:
        """Sum of exp(score - peak) over all allowed tokens; `peak` is the best score, so that nothing overflows."""
        before = np.exp(self.marginals.astype(np.float64) - peak)
        after = np.exp(self.scores.astype(np.float64) - peak)
        changed = self.marginals != self.scores
        return float(np.exp(self.allowed_log_mass - peak)) + float((after[changed] - before[changed]).sum())

    def rest(self, peak: float) -> float:
        """The same over the missing tokens, which no filter changes."""
        known = float(np.exp(self.marginals.astype(np.float64) - peak).sum())
        return max(float(np.exp(self.allowed_log_mass - peak)) - known, 0.0) if self.unknown else 0.0


@dataclass(frozen=True)
class Ranked:
    """All rows of a step with their marginals, by falling marginal, ties by rising id: at once, not row by row."""

    ids: Ids  # [n_hypotheses, M]
    marginals: Floats  # [n_hypotheses, M]
    log_probs: Floats  # [n_hypotheses, n_docs, M]
    whole: bool  # every candidate is a token, and its marginal is not 0

    @classmethod
    def of(cls, ids: Ids, marginals: Floats, log_probs: Floats) -> Ranked:
        """Of a step's candidates, which the generator has put into the order of its own sums."""
        if not (marginals[:, 1:] < marginals[:, :-1]).all():
            order = np.lexsort((ids, -marginals))
            ids, marginals = np.take_along_axis(ids, order, 1), np.take_along_axis(marginals, order, 1)
            log_probs = np.take_along_axis(log_probs, order[:, np.newaxis], 2)
        whole = bool(ids.min() >= 0) and bool(marginals.min() > -np.inf)
        return cls(ids, marginals, log_probs, whole)


@dataclass(frozen=True)
class RowBuilder:
    """Makes rows of steps: the marginal over documents, then the filters.

    With `on_logits` the filters see one document's logits instead, as Hugging Face's greedy search has it in sequence
    mode: there a repetition penalty lowers what is above 0 by dividing.
    """

    log_prior: Doubles  # [n_docs]; [1], being 0, in sequence mode
    filters: FilterChain
    vocab_size: int
    on_logits: bool = False

    def ranked(self, step: Step) -> Ranked:
        """All rows of a step, as `build` wants them."""
        return Ranked.of(step.token_ids, token_marginal(self.log_prior, step.log_probs), step.log_probs)

    def build(self, step: Step, ranked: Ranked, row: int, tokens: tuple[int, ...], control: Control) -> Row:
        """The row of the hypothesis with these tokens; `ranked` is the step's own.

        Raises InternalError for log-probabilities that are NaN.
        """
        if control.forced is not None:
            return _forced_row(control.forced, step.requested_log_probs[row])
        if ranked.whole and not control.requested and not self.filters.rescores:
            return self._plain(step, ranked, row, control)
        return self._changed(step, ranked, row, tokens, control)

    def _plain(self, step: Step, ranked: Ranked, row: int, control: Control) -> Row:
        """A row whose scores are its marginals."""
        ids, marginals = ranked.ids[row], ranked.marginals[row]
        unknown = max(self.vocab_size - len(control.banned) - ids.size, 0)
        bound = _bound(float(marginals[-1])) if unknown else LEAST
        log_mass = float(step.allowed_log_mass[row])
        return Row(ids, marginals, marginals, ranked.log_probs[row], log_mass, bound, unknown)

    def _changed(self, step: Step, ranked: Ranked, row: int, tokens: tuple[int, ...], control: Control) -> Row:
        """A row with tokens left out, tokens added, or scores that filters change."""
        candidates, marginals, log_probs = ranked.ids[row], ranked.marginals[row], ranked.log_probs[row]
        if candidates.min() < 0:
            allowed = candidates >= 0
            candidates, marginals, log_probs = candidates[allowed], marginals[allowed], log_probs[:, allowed]
        n_allowed = self.vocab_size - len(control.banned)
        complete = candidates.size < step.token_ids.shape[1] or candidates.size >= n_allowed
        floor = -np.inf if complete else float(marginals.min())
        ids, log_probs = _with_requested(candidates, log_probs, step, row, control)
        if ids.size > candidates.size:
            marginals = token_marginal(self.log_prior, log_probs)
        shift = step.log_normalizers[row, 0] if self.on_logits else ZERO
        scores = self._rescored(tokens, ids, marginals, shift)
        order = np.lexsort((ids, -scores))
        if scores.size and not scores.min() > -np.inf:
            if np.isnan(marginals).any():
                raise InternalError("the generator's log-probabilities are not numbers")
            order = order[scores[order] > -np.inf]
        unknown = 0 if complete else max(n_allowed - ids.size, 0)
        bound = _bound(floor) if unknown else LEAST
        log_mass = float(step.allowed_log_mass[row])
        return Row(ids[order], scores[order], marginals[order], log_probs[:, order], log_mass, bound, unknown)

    def _rescored(self, tokens: tuple[int, ...], ids: Ids, marginals: Floats, shift: np.float32) -> Floats:
        """Log-probabilities after the filters, which see them with `shift` added."""
        before = marginals + shift
        after = self.filters.rescore(tokens, ids, before)
        if after is before:
            return marginals
        return np.where(after == before, marginals, after - shift)


def _bound(floor: float) -> np.float32:
    """What no missing token's marginal is above, where `floor` is the smallest that is there."""
    return np.float32(floor + ROUNDING * (1.0 + abs(floor)))


def _forced_row(forced: tuple[int, ...], log_probs: Floats) -> Row:
    """Hugging Face's forced tokens cost nothing."""
    zeros = np.zeros(len(forced), np.float32)
    log_mass = float(np.log(len(forced))) if forced else -np.inf
    return Row(np.array(forced, np.int64), zeros, zeros, log_probs, log_mass, LEAST, 0)


def _with_requested(candidates: Ids, log_probs: Floats, step: Step, row: int, control: Control) -> tuple[Ids, Floats]:
    """Candidates, then the requested tokens that are not among them: ids `[n]`, log-probabilities `[n_docs, n]`."""
    if not control.requested:
        return candidates, log_probs
    requested = np.array(control.requested, np.int64)
    missing = ~np.isin(requested, candidates)
    if not missing.any():
        return candidates, log_probs
    shown = step.requested_log_probs[row][:, missing]
    return np.concatenate((candidates, requested[missing])), np.concatenate((log_probs, shown), axis=1)
