"""Selects the candidates of a step: exact log-probabilities of the tokens with the largest marginal.

Token mode, RAG-token: p(y_i) = sum over z of p(z|x) p(y_i | x, z, y_<i) (Lewis et al., section 2.1), at every
position. Sequence mode: the hypothesis' own document only; the prior plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from generator_svc.commands import StepControl, StepOutput
from generator_svc.kernels import native
from ragserve.errors import InternalError


@dataclass(frozen=True)
class StepScores:
    """One step of one session, kept until the next so that it can be widened without running the model.

    `logits` [n_docs, n_hypotheses, vocab]; `log_norms` [n_docs, n_hypotheses]; `marginal` [n_hypotheses, vocab] with
    banned tokens at -inf.
    """

    logits: torch.Tensor
    log_norms: torch.Tensor
    marginal: torch.Tensor
    controls: tuple[StepControl, ...]


def score_step(logits: torch.Tensor, controls: Sequence[StepControl], log_priors: torch.Tensor | None) -> StepScores:
    """Normalize the logits [n_docs, n_hypotheses, vocab] of a step and combine the documents.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    log_norms = normalizers(logits)
    if not bool(torch.isfinite(log_norms).all()):
        raise InternalError("the model's logits hold NaN or infinity")
    shift = -log_norms if log_priors is None else log_priors[:, None] - log_norms
    marginal = _marginals(logits, shift)
    for row, control in zip(marginal, controls, strict=True):
        if control.banned:
            row[torch.tensor(control.banned, device=row.device)] = -torch.inf
    return StepScores(logits, log_norms, marginal, tuple(controls))


def normalizers(logits: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exp over the vocabulary: logits [..., vocab] -> [...]."""
    return native.log_norms(logits) if native.sums_usable(logits) else torch.logsumexp(logits, dim=-1)


def _marginals(logits: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Log of the sum over documents of exp(logits + shift) [n_hypotheses, vocab]; see `native.marginals`."""
    if len(logits) == 1:
        return logits[0] + shift[0][..., None]
    if native.sums_usable(logits):
        return native.marginals(logits, shift)
    return torch.logsumexp(logits + shift[..., None], dim=0)


def select(scores: StepScores, hypotheses: Sequence[int], n_candidates: int) -> StepOutput:
    """The `n_candidates` best allowed tokens of some hypotheses; at most the vocabulary."""
    _, n_hypotheses, vocab = scores.logits.shape
    whole = list(hypotheses) == list(range(n_hypotheses))
    index = torch.tensor(hypotheses, device=scores.logits.device)
    logits = scores.logits if whole else scores.logits[:, index]
    log_norms = scores.log_norms if whole else scores.log_norms[:, index]
    marginal = scores.marginal if whole else scores.marginal[index]
    controls = [scores.controls[i] for i in hypotheses]
    ids = top_tokens(marginal, min(n_candidates, vocab), [control.banned for control in controls])
    log_probs = _log_probs(logits, log_norms, ids.clamp(min=0))
    log_probs = log_probs.masked_fill(ids[:, None] < 0, -torch.inf)
    return StepOutput(
        token_ids=ids.to(torch.int32).cpu().numpy(),
        log_probs=log_probs.cpu().numpy(),
        requested=tuple(
            _requested(logits[:, i], log_norms[:, i], control.requested) for i, control in enumerate(controls)
        ),
        allowed_log_mass=normalizers(marginal).cpu().numpy(),
        log_normalizers=log_norms.T.cpu().numpy(),
    )


def top_tokens(marginal: torch.Tensor, count: int, banned: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Ids [n_hypotheses, count] by falling marginal, ties by rising id; -1 where fewer are allowed.

    `topk` chooses freely among equals at its end, so a row whose last value ties with one left out is completed by
    hand; so is one that ends at -inf, where impossible tokens meet banned ones.
    """
    values, ids = torch.topk(marginal, count, dim=-1)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    last = values[:, -1:]
    n_above = (values > last).sum(-1)
    n_tied = (marginal == last).sum(-1)
    doubtful = (n_above + n_tied > count) | last[:, 0].isneginf()
    for row in doubtful.nonzero()[:, 0].tolist():
        above = int(n_above[row])
        tied = (marginal[row] == last[row]).nonzero()[:, 0]
        if banned[row]:
            tied = tied[~torch.isin(tied, torch.tensor(banned[row], device=tied.device))]
        tied = tied[: count - above]
        ids[row, above:] = -1
        ids[row, above : above + len(tied)] = tied
    return ids


def _log_probs(logits: torch.Tensor, log_norms: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [n_hypotheses, n_docs, n_candidates] of ids [n_hypotheses, n_candidates]."""
    chosen = logits.gather(2, ids[None].expand(logits.shape[0], -1, -1))
    return (chosen - log_norms[..., None]).transpose(0, 1).contiguous()


def _requested(
    logits: torch.Tensor, log_norms: torch.Tensor, tokens: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Log-probabilities [n_docs, n_requested]; logits [n_docs, vocab], log_norms [n_docs]."""
    chosen = logits[:, torch.tensor(tokens, dtype=torch.long, device=logits.device)] - log_norms[:, None]
    result: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = chosen.cpu().numpy()
    return result
