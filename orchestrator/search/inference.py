"""The role of inference: what search needs from a decode session of the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Control:
    """What the step after a prefix may not take, and what it must show in any case.

    `forced`, when there, is all that the step may take, at no cost; its tokens are among `requested`.
    """

    banned: tuple[int, ...] = ()
    requested: tuple[int, ...] = ()
    forced: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Extension:
    """A hypothesis of the next step: the parent's row in the present step, and the token that extends it."""

    parent: int
    token: int
    control: Control


@dataclass(frozen=True)
class Step:
    """One step of the generator.

    `n_docs` is the number of documents in token mode and 1 in sequence mode.
    """

    token_ids: Ids  # [n_hypotheses, M], by falling marginal, ties by rising id; -1 where fewer are allowed
    log_probs: Floats  # [n_hypotheses, n_docs, M]
    requested_log_probs: tuple[Floats, ...]  # for each hypothesis [n_docs, number of its requested tokens]
    allowed_log_mass: Floats  # [n_hypotheses]
    log_normalizers: Floats  # [n_hypotheses, n_docs]: logit less log-probability


@dataclass(frozen=True)
class TargetScore:
    """Teacher-forced log-probabilities of one target."""

    token_ids: tuple[int, ...]
    log_probs: Floats  # [n_docs, n_tokens]


@dataclass(frozen=True)
class Rendered:
    """The text of a sequence, and what each token adds to it."""

    text: str
    pieces: tuple[str, ...]


class Inference(Protocol):
    """A decode session. Calls are made one after the other."""

    async def open(self, control: Control, candidates: int) -> Step:
        """Encode the documents and run the first step: one hypothesis, or one per document (sequence mode)."""

    async def advance(self, extensions: Sequence[Extension], candidates: int) -> Step:
        """Extend hypotheses of the present step and run the next."""

    async def widen(self, rows: Sequence[int], candidates: int) -> Step:
        """More candidates for some rows of the present step; the answer has just these rows."""

    async def score(self, targets: Sequence[Sequence[int] | str]) -> list[TargetScore]:
        """Score targets (tokens after the decoder start token, or text) under every document."""

    async def render(self, sequences: Sequence[Sequence[int]]) -> list[Rendered]:
        """Text of token sequences."""
