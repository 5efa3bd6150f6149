"""What another replica needs to go on with a session: the hypotheses of the present step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.search.inference import Control, Extension


@dataclass(frozen=True)
class Prefix:
    """A hypothesis: its tokens, the document it belongs to (0 in token mode), the control of its next step."""

    tokens: tuple[int, ...]
    document: int
    control: Control


@dataclass(frozen=True)
class Prefixes:
    """The hypotheses of one step, in order, and the M it was asked with."""

    hypotheses: tuple[Prefix, ...]
    candidates: int

    @classmethod
    def start(cls, documents: Sequence[int], control: Control, candidates: int) -> Prefixes:
        """One empty hypothesis for each of `documents`."""
        return cls(tuple(Prefix((), document, control) for document in documents), candidates)

    def extended(self, extensions: Sequence[Extension], candidates: int) -> Prefixes:
        """The hypotheses of the next step."""
        parents = self.hypotheses
        return Prefixes(
            tuple(
                Prefix((*parents[one.parent].tokens, one.token), parents[one.parent].document, one.control)
                for one in extensions
            ),
            candidates,
        )

    def requested(self, rows: Sequence[int] | None = None) -> list[int]:
        """How many tokens each row (of some, or all) shows in any case."""
        chosen = range(len(self.hypotheses)) if rows is None else rows
        return [len(self.hypotheses[row].control.requested) for row in chosen]
