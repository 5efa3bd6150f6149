"""A beam search without ends, for benchmarks that drive the generator themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from generator_svc.commands import Floats
from orchestrator.settings import OrchestratorSettings

CANDIDATES: int = OrchestratorSettings.model_fields["candidates"].default  # M of a step, unless told otherwise
Doubles = npt.NDArray[np.float64]


def best_continuations(
    totals: Doubles, token_ids: npt.NDArray[np.integer], log_probs: Floats, log_priors: Sequence[float], beams: int
) -> tuple[list[tuple[int, int]], Doubles]:
    """The `beams` best as (parent, token), and their totals.

    totals [n_hypotheses]: log-probabilities so far; token_ids [n_hypotheses, n_candidates] and log_probs [n_hypotheses,
    n_docs, n_candidates] are a step's.
    """
    marginal = np.logaddexp.reduce(log_probs + np.array(log_priors)[None, :, None], axis=1)
    grown: Doubles = (totals[:, None] + marginal).reshape(-1)
    best = np.argsort(-grown, kind="stable")[:beams]
    parents, columns = np.unravel_index(best, marginal.shape)
    return [(int(i), int(token_ids[i, j])) for i, j in zip(parents, columns, strict=True)], grown[best]
