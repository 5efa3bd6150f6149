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


class Prefixes:
    """The hypotheses of the present step, in order, and the M it was asked with.

    The steps are only noted as they come: tokens are put together when another replica needs them.
    """

    def __init__(self, documents: Sequence[int], control: Control, candidates: int) -> None:
        """One empty hypothesis for each of `documents`."""
        self._known = tuple(Prefix((), document, control) for document in documents)
        self._since: list[Sequence[Extension]] = []
        self.candidates = candidates

    def extend(self, extensions: Sequence[Extension], candidates: int) -> None:
        """Go on to the next step."""
        self._since.append(extensions)
        self.candidates = candidates

    @property
    def hypotheses(self) -> tuple[Prefix, ...]:
        """Those of the present step."""
        for extensions in self._since:
            parents = self._known
            self._known = tuple(
                Prefix((*parents[one.parent].tokens, one.token), parents[one.parent].document, one.control)
                for one in extensions
            )
        self._since = []
        return self._known

    def requested(self, rows: Sequence[int] | None = None) -> list[int]:
        """How many tokens each row (of some, or all) shows in any case."""
        present: Sequence[Prefix | Extension] = self._since[-1] if self._since else self._known
        return [len(one.control.requested) for one in (present if rows is None else [present[row] for row in rows])]
