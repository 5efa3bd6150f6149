"""Lays out the steps of all sessions in buffers of a few sizes, so that a step is one function of what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generator_svc.models.base import DocumentState
from generator_svc.steps import StepTask

Numbers = npt.NDArray[np.int64]

TILE_ROWS = 16  # rows of one document that are stacked for its cross-attention
FEWEST_CANDIDATES, MOST_CANDIDATES = 16, 128
SHORTEST_PATH = 32
FINE_ROWS = 64  # beyond, row counts are rounded up to multiples of this
BANNED_PER_ROW, REQUESTED_PER_ROW = 8, 32  # room for tokens that may not be chosen, and for those to be shown
LEAST_ROOM = 512
TILE = ("tile_addresses", "tile_tokens", "tile_firsts", "tile_counts")


def power_of_two(count: int, least: int = 1) -> int:
    """The smallest power of two that holds `count` and `least`."""
    return 1 << (max(count, least) - 1).bit_length()


@dataclass(frozen=True)
class Bucket:
    """Sizes of the buffers: rows, tokens of the longest path, and M."""

    rows: int
    longest: int
    candidates: int

    @property
    def banned(self) -> int:
        """Tokens that may be banned, over all hypotheses."""
        return max(LEAST_ROOM, self.rows * BANNED_PER_ROW)

    @property
    def requested(self) -> int:
        """Log-probabilities that may be asked for, over all rows."""
        return max(LEAST_ROOM, self.rows * REQUESTED_PER_ROW)

    def inputs(self) -> dict[str, int]:
        """Elements of 8 bytes of each part of a step's input."""
        hypotheses = ("strides", "counts", "banned_starts", "banned_counts")
        return {
            **dict.fromkeys(("tokens", "lengths", *TILE, *hypotheses), self.rows),
            "log_priors": -(-self.rows // 2),
            "banned": self.banned,
            "requested_rows": self.requested,
            "requested_tokens": self.requested,
            "table": self.rows * self.longest,
        }

    def outputs(self) -> dict[str, int]:
        """Elements of 4 bytes of each part of what a step gives."""
        chosen = self.rows * self.candidates
        return {
            "ids": chosen,
            "log_probs": chosen,
            "log_norms": self.rows,
            "mass": self.rows,
            "requested": self.requested,
        }


def bucket_of(tasks: Sequence[StepTask]) -> Bucket | None:
    """The smallest bucket that holds a pass; None where no bucket has room for what its sessions ban or request."""
    n_rows = sum(len(hypothesis.slots) for task in tasks for hypothesis in task.rows.hypotheses)
    longest = max(hypothesis.length for task in tasks for hypothesis in task.rows.hypotheses)
    candidates = min(max(task.candidates for task in tasks), MOST_CANDIDATES)
    rows = power_of_two(n_rows) if n_rows <= FINE_ROWS else -(-n_rows // FINE_ROWS) * FINE_ROWS
    bucket = Bucket(rows, power_of_two(longest, SHORTEST_PATH), power_of_two(candidates, FEWEST_CANDIDATES))
    banned = sum(len(control.banned) for task in tasks for control in task.controls)
    requested = sum(
        len(control.requested) * len(hypothesis.slots)
        for task in tasks
        for control, hypothesis in zip(task.controls, task.rows.hypotheses, strict=True)
    )
    return bucket if banned <= bucket.banned and requested <= bucket.requested else None


@dataclass(frozen=True)
class Place:
    """Where one session is in a pass: rows [n_hypotheses, n_docs], and the requested values of each hypothesis.

    What belongs to a hypothesis stands at the place of its first row.
    """

    rows: Numbers
    requested: tuple[slice, ...]


class Writer:
    """Writes a pass into the parts of an input, one session after the other; places that are left hold zeros."""

    def __init__(self, parts: Mapping[str, Numbers], longest: int) -> None:
        self._parts = parts
        self._table = parts["table"].reshape(-1, longest)
        self._log_priors = parts["log_priors"].view(np.float32)
        for name, part in parts.items():
            if name != "table":
                part.fill(0)
        self._n_rows = self._n_tiles = self._n_banned = self._n_requested = 0
        self.documents: dict[int, DocumentState] = {}  # by address

    def add(self, task: StepTask) -> Place:
        """Lay out one session."""
        rows, stride = self._rows(task)
        hypotheses = task.rows.hypotheses
        self._parts["tokens"][rows] = np.array([hypothesis.token for hypothesis in hypotheses])[:, None]
        self._parts["lengths"][rows] = np.array([hypothesis.length for hypothesis in hypotheses])[:, None]
        for own, hypothesis in zip(rows, hypotheses, strict=True):
            self._table[own, : hypothesis.length] = hypothesis.slots
        if task.log_priors is not None:
            self._log_priors[rows] = task.log_priors
        self._parts["strides"][rows[:, 0]], self._parts["counts"][rows[:, 0]] = stride, rows.shape[1]
        self._ban(task, rows)
        requested = self._request(task, rows)
        self._n_rows += rows.size
        return Place(rows, requested)

    def _rows(self, task: StepTask) -> tuple[Numbers, int]:
        """The rows of each hypothesis, [n_hypotheses, n_docs], and how far apart; those of one document adjoin."""
        hypotheses, first = task.rows.hypotheses, self._n_rows
        groups = task.rows.in_document_order()
        for document, indices in groups:
            self._tile(task.rows.documents[document], first, len(indices))
            first += len(indices)
        if task.rows.shared:
            n_docs, stride = len(task.rows.documents), len(hypotheses)
            return self._n_rows + np.arange(stride)[:, None] + stride * np.arange(n_docs)[None, :], stride
        order = np.array([index for _, indices in groups for index in indices])
        rows = np.empty((len(hypotheses), 1), dtype=np.int64)
        rows[order, 0] = self._n_rows + np.arange(len(order))
        return rows, 1

    def _tile(self, document: DocumentState, first: int, count: int) -> None:
        """Tiles of the rows of one document."""
        address, tokens = document.place
        self.documents[address] = document
        for start in range(0, count, TILE_ROWS):
            tile = (address, tokens, first + start, min(TILE_ROWS, count - start))
            for name, value in zip(TILE, tile, strict=True):
                self._parts[name][self._n_tiles] = value
            self._n_tiles += 1

    def _ban(self, task: StepTask, rows: Numbers) -> None:
        for first, control in zip(rows[:, 0], task.controls, strict=True):
            if control.banned:
                end = self._n_banned + len(control.banned)
                self._parts["banned"][self._n_banned : end] = control.banned
                self._parts["banned_starts"][first] = self._n_banned
                self._parts["banned_counts"][first] = len(control.banned)
                self._n_banned = end

    def _request(self, task: StepTask, rows: Numbers) -> tuple[slice, ...]:
        """Where the requested values of each hypothesis will be, as [n_docs, number of its requested tokens]."""
        slices = []
        for own, control in zip(rows, task.controls, strict=True):
            wanted = slice(self._n_requested, self._n_requested + len(own) * len(control.requested))
            if control.requested:
                self._parts["requested_rows"][wanted] = np.repeat(own, len(control.requested))
                self._parts["requested_tokens"][wanted] = np.tile(control.requested, len(own))
                self._n_requested = wanted.stop
            slices.append(wanted)
        return tuple(slices)
