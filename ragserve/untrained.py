"""Recognizes weights that nobody trained, by what only initialization leaves in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

NORM_WEIGHTS = ("norm.weight", "Norm.weight")  # of LayerNorm and RMSNorm, after any prefix such as `final_layer_`
# Biases that trained models may keep at zero.
ZERO_IN_TRAINED = ("final_logits_bias",)


def looks_untrained(names: Iterable[str], read: Callable[[str], Any]) -> bool:
    """Whether all weights of norms are exactly 1 and all biases exactly 0: training changes every one of them.

    `read` gives an array by its name. Reading stops at the first one that training has changed.
    """
    vectors = sorted(name for name in names if _changes_in_training(name))
    if not any(name.endswith(NORM_WEIGHTS) for name in vectors):
        return False
    return all(bool((read(name) == float(name.endswith("weight"))).all()) for name in vectors)


def _changes_in_training(name: str) -> bool:
    return name.endswith(NORM_WEIGHTS) or (name.endswith(".bias") and not name.endswith(ZERO_IN_TRAINED))


def untrained_warning(part: str) -> str:
    """What to tell the user about such a part of a model."""
    return (
        f"The weights of the {part} look untrained: every norm is 1 and every bias 0, as initialization leaves them. "
        "Import a trained checkpoint."
    )
