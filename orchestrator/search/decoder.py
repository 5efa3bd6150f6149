"""The role of the decoder: which tokens extend which hypotheses. Here its protocol, and greedy search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np

from orchestrator.search.rows import Hypothesis, Row
from ragserve.errors import FailedPreconditionError


@dataclass(frozen=True)
class Move:
    """A hypothesis of the next step, and the row of the present one that it extends."""

    parent: int
    hypothesis: Hypothesis


@dataclass(frozen=True)
class Uncertain:
    """The choice may depend on tokens that these rows do not show; `reason` is a label of the widening metric."""

    rows: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Finished:
    """A finished hypothesis and what the search ranks it by."""

    hypothesis: Hypothesis
    score: float


@dataclass(frozen=True)
class Limits:
    """When a hypothesis ends. Lengths count the decoder start token, as Hugging Face does."""

    eos_ids: tuple[int, ...]
    max_length: int

    def ends(self, hypothesis: Hypothesis) -> bool:
        """Whether its last token is an end token, or it is as long as may be."""
        return hypothesis.tokens[-1] in self.eos_ids or len(hypothesis.tokens) + 1 >= self.max_length


class Decoder(Protocol):
    """A search over the hypotheses of one group: all of a request (token mode), or one document's (sequence mode).

    It starts with one empty hypothesis. Every step it is shown one row for each of `live`, in order.
    """

    @property
    def live(self) -> Sequence[Hypothesis]:
        """The hypotheses of the present step; none when the search is over."""

    @property
    def candidates(self) -> int:
        """How many candidates (M) of each row are enough, bar ties, for a certain choice."""

    def decide(self, rows: Sequence[Row]) -> Uncertain | Sequence[Move]:
        """Choose. When uncertain, nothing changes and the same step is shown again with more candidates."""

    def settled(self) -> tuple[int, ...]:
        """The tokens that every possible answer begins with."""

    def results(self) -> list[Finished]:
        """What was found, best first; to be asked when the search is over."""


class Greedy:
    """Takes the most probable token (Hugging Face: one beam). Ties go to the smaller id."""

    candidates = 2

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._hypothesis = Hypothesis()
        self.live: tuple[Hypothesis, ...] = (self._hypothesis,)

    def decide(self, rows: Sequence[Row]) -> Uncertain | Sequence[Move]:
        """The first token of the row, if no missing one can be as good."""
        (row,) = rows
        if row.ids.size == 0 and not row.unknown:
            nothing_allowed()
        if row.ids.size == 0 or not row.certain(row.scores[0]):
            return Uncertain((0,), "greedy")
        self._hypothesis = self._hypothesis.extended(row, 0)
        self.live = () if self._limits.ends(self._hypothesis) else (self._hypothesis,)
        return [Move(0, self._hypothesis)] if self.live else []

    def settled(self) -> tuple[int, ...]:
        """All tokens so far."""
        return self._hypothesis.tokens

    def results(self) -> list[Finished]:
        """The one hypothesis."""
        return [Finished(self._hypothesis, float(self._hypothesis.score))]


def nothing_allowed() -> NoReturn:
    """Raises: the filters exclude the whole vocabulary."""
    raise FailedPreconditionError(
        "no token may come next: bad_words, no_repeat_ngram_size, min_length and the checkpoint's suppress_tokens "
        "together exclude the whole vocabulary",
        field="options",
    )


def by_falling_score(scores: np.ndarray, *ties: np.ndarray) -> np.ndarray:
    """Order by falling score; ties by rising values of the first, then the next of `ties`."""
    order: np.ndarray = np.lexsort((*reversed(ties), -scores))
    return order
