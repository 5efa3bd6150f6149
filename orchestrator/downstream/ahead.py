"""Steps that the generator has already run, on tokens that it guessed (lossless speculative decoding)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.search.inference import Control, Extension, Step


@dataclass(frozen=True)
class Ahead:
    """A step of one hypothesis and the steps after it, should the choices be `drafted`.

    Row i + 1 of `step` extends row i by `drafted[i]`, all under the same control. The search stands at row `position`.
    """

    step: Step
    drafted: tuple[int, ...]
    control: Control
    position: int = 0

    def follow(self, extensions: Sequence[Extension]) -> Ahead | None:
        """The position after these extensions, or None when their step has not been run."""
        if len(extensions) != 1 or self.position == len(self.drafted):
            return None
        (one,) = extensions
        if one.token != self.drafted[self.position] or one.control != self.control:
            return None
        return replace(self, position=self.position + 1)

    def row(self) -> Step:
        """The step at the position."""
        rows = slice(self.position, self.position + 1)
        whole = self.step
        return Step(
            token_ids=whole.token_ids[rows],
            log_probs=whole.log_probs[rows],
            requested_log_probs=whole.requested_log_probs[rows],
            allowed_log_mass=whole.allowed_log_mass[rows],
            log_normalizers=whole.log_normalizers[rows],
        )


def may_draft(extensions: Sequence[Extension]) -> bool:
    """Whether guesses can be of use: one hypothesis, and no control that surely differs at the step after it."""
    if len(extensions) != 1:
        return False
    control = extensions[0].control
    return control.forced is None and not control.requested
