"""Sampling from the marginal after the filters: temperature, top-k, top-p, in Hugging Face's order.

One uniform number decides each token by inverse transform: tokens stand by falling probability (ties by rising id),
and the one whose share of the unit interval holds the number is taken. So the draw depends only on the distribution
and the seed, not on how many candidates are there: most draws fall into the candidates' share, and the others widen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.search.beam import SPARE_CANDIDATES
from orchestrator.search.decoder import Finished, Limits, Move, Uncertain, nothing_allowed
from orchestrator.search.inference import Doubles
from orchestrator.search.rows import Hypothesis, Row

# Relative error that the float32 mass of the allowed tokens may have.
MASS_ROUNDING = 1e-6


@dataclass(frozen=True)
class SamplingRules:
    """Settings of sampling; `top_k` 0 and `top_p` 1 are no limit."""

    seed: int
    samples: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class _Total:
    """Bounds of the sum of the weights of all tokens, the missing ones included."""

    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> _Total:
        return cls(float(value), float(value))


@dataclass(frozen=True)
class _Sample:
    number: int
    row: int
    hypothesis: Hypothesis


class Sampling:
    """Independent samples; the n-th is the same however many are asked for."""

    def __init__(self, rules: SamplingRules, limits: Limits, candidates: int) -> None:
        self._rules = rules
        self._limits = limits
        self.candidates = max(candidates, rules.top_k + SPARE_CANDIDATES if rules.top_k else 0)
        seeds = [np.random.SeedSequence([rules.seed, number]) for number in range(rules.samples)]
        self._uniforms = [np.random.Generator(np.random.PCG64(seed)).random(limits.max_length) for seed in seeds]
        self._samples = [_Sample(number, 0, Hypothesis()) for number in range(rules.samples)]
        self._finished: list[Finished] = []
        self.live: tuple[Hypothesis, ...] = (Hypothesis(),)

    def decide(self, rows: Sequence[Row]) -> Uncertain | Sequence[Move]:
        """Draw one token for every sample, if all draws are sure."""
        draws = [(one, draw(rows[one.row], self._uniform(one), self._rules)) for one in self._samples]
        unsure = {one.row: found for one, found in draws if isinstance(found, str)}
        if unsure:
            return Uncertain(tuple(sorted(unsure)), next(iter(unsure.values())))
        moves: list[Move] = []
        samples: list[_Sample] = []
        for one, found in draws:
            grown = one.hypothesis.extended(rows[one.row], int(found))
            if self._limits.ends(grown):
                self._finished.append(Finished(grown, float(grown.score)))
            else:
                samples.append(_Sample(one.number, len(moves), grown))
                moves.append(Move(one.row, grown))
        self._samples = samples
        self.live = tuple(move.hypothesis for move in moves)
        return moves

    def _uniform(self, sample: _Sample) -> float:
        return float(self._uniforms[sample.number][len(sample.hypothesis.tokens)])

    def settled(self) -> tuple[int, ...]:
        """All tokens of a single sample; of several, it is not known which will be first."""
        if self._rules.samples > 1:
            return ()
        return self.live[0].tokens if self.live else self._finished[0].hypothesis.tokens

    def results(self) -> list[Finished]:
        """Samples by falling log-probability."""
        return sorted(self._finished, key=lambda one: -one.score)


def draw(row: Row, uniform: float, rules: SamplingRules) -> int | str:
    """Position of the token in the row, or, when missing tokens might change it, the reason for widening."""
    if row.ids.size == 0:
        return "sample" if row.unknown else nothing_allowed()
    scores = row.scores.astype(np.float64) / rules.temperature
    cumulative = np.cumsum(np.exp(scores - scores[0]))  # of the known tokens, by falling weight
    if rules.top_k:
        kept = _top_k(row, rules.top_k)
        if kept is None:
            return "top_k"
        cumulative, certain, complete, total = cumulative[:kept], kept, True, _Total.exactly(cumulative[kept - 1])
    else:
        certain = int(np.searchsorted(-row.scores, -row.bound)) if row.unknown else row.ids.size
        complete = row.unknown == 0
        total = _total(row, float(cumulative[-1]), rules.temperature)
    if rules.top_p < 1.0:
        kept = _nucleus(cumulative[:certain], total, rules.top_p, complete)
        if kept is None:
            return "top_p"
        cumulative, complete, total = cumulative[:kept], True, _Total.exactly(cumulative[kept - 1])
    low, high = (int(np.searchsorted(cumulative, uniform * bound, side="right")) for bound in (total.low, total.high))
    if not complete and (low != high or high >= certain):
        return "sample"
    return min(high, cumulative.size - 1)


def _total(row: Row, known: float, temperature: float) -> _Total:
    """Sum of the weights exp((score - best) / T) of all tokens; `known` is that of the tokens in the row.

    Of the missing tokens only the number n, the mass r and the largest probability b are known, all relative to the
    best score. With a = 1/T, the sum of p^a lies between n (r/n)^a (all alike) and r b^(a-1) (as few as can be), in
    that order for a >= 1, else reversed.
    """
    best = float(row.scores[0])
    if temperature == 1.0:
        return _Total.exactly(row.mass(best))
    if not row.unknown:
        return _Total.exactly(known)
    power, many, slack = 1.0 / temperature, math.log(row.unknown), MASS_ROUNDING * row.mass(best)
    missing = row.rest(best)
    sums: list[float] = []
    for rest in (max(missing - slack, 0.0), missing + slack):
        if rest == 0.0:
            sums.append(0.0)
            continue
        # In logarithms: at a low temperature the powers leave float64's range.
        alike = many + power * (math.log(rest) - many)
        few = math.log(rest) + (power - 1.0) * (float(row.bound) - best)
        with np.errstate(over="ignore"):
            sums += [float(np.exp(alike)), float(np.exp(few))]
    low, high = known + min(sums), known + max(sums)
    return _Total(low * (1.0 - MASS_ROUNDING), high * (1.0 + MASS_ROUNDING))


def _top_k(row: Row, top_k: int) -> int | None:
    """How many tokens score at least as much as the k-th (ties stay), or None when that is not known."""
    if row.ids.size < top_k:
        return None if row.unknown else int(row.ids.size)
    kth = row.scores[top_k - 1]
    if not row.certain(kth):
        return None
    return int(np.searchsorted(-row.scores, -kth, side="right"))


def _nucleus(cumulative: Doubles, total: _Total, top_p: float, complete: bool) -> int | None:
    """Size of the smallest leading set with at least `top_p` of the total, or None when that is not known."""
    smallest, largest = (
        int(np.searchsorted(cumulative, top_p * bound, side="left")) + 1 for bound in (total.low, total.high)
    )
    if complete:
        return min(largest, cumulative.size)
    return largest if smallest == largest <= cumulative.size else None
