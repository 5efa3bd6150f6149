"""Beam search with the rules of Hugging Face's `GenerationMixin._beam_search`.

Running scores are float32 sums of log-probabilities after the filters. Of the best max(2, 1 + number of end tokens)
x beams continuations, those that end may finish if they are among the first `num_beams`; the best others go on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np

from orchestrator.search.decoder import Finished, Limits, Move, Uncertain, by_falling_score, nothing_allowed
from orchestrator.search.inference import Floats, Ids
from orchestrator.search.rows import Hypothesis, Row

# Room for ties with the smallest candidate, which would ask for a widening.
SPARE_CANDIDATES = 4


class EarlyStopping(StrEnum):
    """When to stop once there are `num_beams` finished hypotheses."""

    HEURISTIC = "heuristic"  # when the best running one, scored at the present length, is not better (False)
    FIRST = "first"  # at once (True)
    NEVER = "never"  # when the best running one cannot become better


@dataclass(frozen=True)
class BeamRules:
    """Settings of a beam search."""

    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping
    limits: Limits

    @property
    def n_continuations(self) -> int:
        """How many continuations of all hypotheses together are looked at."""
        return max(2, 1 + len(self.limits.eos_ids)) * self.num_beams

    def normalized(self, score: np.float32, length: int) -> np.float32:
        """Its score / length^penalty, the length in generated tokens, end token counted."""
        return np.float32(score / np.float32(float(length) ** self.length_penalty))


@dataclass(frozen=True)
class _Continuations:
    """All known continuations, best first."""

    scores: Floats
    parents: Ids  # index of the row
    positions: Ids  # index within the row

    @classmethod
    def of(cls, live: Sequence[Hypothesis], rows: Sequence[Row], keep: int) -> _Continuations:
        scores = np.concatenate([row.scores + one.score for one, row in zip(live, rows, strict=True)])
        parents, positions = _places(tuple(row.ids.size for row in rows))
        best = by_falling_score(scores, parents, np.concatenate([row.ids for row in rows]))[:keep]
        return cls(scores[best], parents[best], positions[best])


@lru_cache(8)
def _places(sizes: tuple[int, ...]) -> tuple[Ids, Ids]:
    """Of everything in rows of these sizes, one after the other: which row it is in, and where there."""
    parents = np.repeat(np.arange(len(sizes)), sizes)
    return parents, np.concatenate([np.arange(size) for size in sizes])


class Beam:
    """Beam search. Ties go to the earlier hypothesis, then to the smaller token id."""

    def __init__(self, rules: BeamRules) -> None:
        self._rules = rules
        self.live: tuple[Hypothesis, ...] = (Hypothesis(),)
        self._finished: list[Finished] = []
        self.candidates = rules.n_continuations + SPARE_CANDIDATES

    def decide(self, rows: Sequence[Row]) -> Uncertain | Sequence[Move]:
        """The best continuations, if no missing token can be among them."""
        wanted = self._rules.n_continuations
        best = _Continuations.of(self.live, rows, wanted)
        last = best.scores[-1] if best.scores.size == wanted else np.float32(-np.inf)
        open_rows = tuple(
            i
            for i, (row, one) in enumerate(zip(rows, self.live, strict=True))
            if row.unknown and not last > row.bound + one.score
        )
        if open_rows:
            return Uncertain(open_rows, "beam")
        if best.scores.size == 0:
            nothing_allowed()
        return self._take(best, rows)

    def _take(self, best: _Continuations, rows: Sequence[Row]) -> Sequence[Move]:
        moves: list[Move] = []
        for rank, (parent, position) in enumerate(zip(best.parents.tolist(), best.positions.tolist(), strict=True)):
            if rank >= self._rules.num_beams == len(moves):
                break  # what is left can neither finish nor go on
            grown = self.live[parent].extended(rows[parent], position)
            if not self._rules.limits.ends(grown):
                moves.append(Move(parent, grown))
            elif rank < self._rules.num_beams:
                self._finish(grown)
        if self._is_over(moves):
            moves = []
        self.live = tuple(move.hypothesis for move in moves)
        return moves

    def _finish(self, hypothesis: Hypothesis) -> None:
        """Keep it if it is among the `num_beams` best; earlier ones win ties."""
        score = self._rules.normalized(hypothesis.score, len(hypothesis.tokens))
        self._finished.append(Finished(hypothesis, float(score)))
        self._finished.sort(key=lambda one: -one.score)
        del self._finished[self._rules.num_beams :]

    def _is_over(self, running: Sequence[Move]) -> bool:
        """Hugging Face's `_check_early_stop_heuristic` and `_beam_search_has_unfinished_sequences`."""
        if not running:
            return True
        if len(self._finished) < self._rules.num_beams:
            return False
        if self._rules.early_stopping is EarlyStopping.FIRST:
            return True
        best = running[0].hypothesis
        length = len(best.tokens)
        if self._rules.early_stopping is EarlyStopping.NEVER and self._rules.length_penalty > 0:
            length = self._rules.limits.max_length - 1
        return not self._rules.normalized(best.score, length) > self._finished[-1].score

    def settled(self) -> tuple[int, ...]:
        """What all running and finished hypotheses begin with."""
        sequences = [one.tokens for one in self.live] + [one.hypothesis.tokens for one in self._finished]
        return tuple(tokens[0] for tokens in itertools.takewhile(lambda t: len(set(t)) == 1, zip(*sequences)))  # noqa: B905

    def results(self) -> list[Finished]:
        """Finished hypotheses by falling score."""
        return list(self._finished)
