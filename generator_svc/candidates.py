"""Selects the candidates of a step: exact log-probabilities of the tokens with the largest marginal.

Token mode, RAG-token: p(y_i) = sum over z of p(z|x) p(y_i | x, z, y_<i) (Lewis et al., section 2.1), at every
position. Sequence mode: the hypothesis' own document only; the prior plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from generator_svc.commands import Floats, Ids, StepControl, StepOutput
from generator_svc.kernels import native
from ragserve.errors import InternalError

MOST_BEST = 128  # candidates that the kernel looks for: it keeps them sorted as it goes, so of more topk is faster


@dataclass(frozen=True)
class StepScores:
    """One step of one session, kept until the next so that it can be widened without running the model.

    `logits` [n_docs, n_hypotheses, vocab]; `marginal` [n_hypotheses, vocab] with banned tokens at -inf. On the host:
    `log_norms` [n_docs, n_hypotheses] and `log_masses` [n_hypotheses], of the allowed tokens. `kernel` where the
    kernels can select.
    """

    logits: torch.Tensor
    marginal: torch.Tensor
    log_norms: Floats
    log_masses: Floats
    controls: tuple[StepControl, ...]
    kernel: native.TokenScores | None = None


def score_step(logits: torch.Tensor, controls: Sequence[StepControl], log_priors: torch.Tensor | None) -> StepScores:
    """Normalize the logits [n_docs, n_hypotheses, vocab] of a step and combine the documents.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    controls = tuple(controls)
    if native.sums_usable(logits):
        kernel = native.TokenScores(logits, log_priors, [control.banned for control in controls])
        scores = StepScores(logits, kernel.marginal, kernel.log_norms, kernel.log_masses, controls, kernel)
    else:
        scores = _score_step(logits, controls, log_priors)
    if not np.isfinite(scores.log_norms).all():
        raise InternalError("the model's logits hold NaN or infinity")
    return scores


def _score_step(logits: torch.Tensor, controls: tuple[StepControl, ...], log_priors: torch.Tensor | None) -> StepScores:
    log_norms = torch.logsumexp(logits, dim=-1)
    shift = -log_norms if log_priors is None else log_priors[:, None] - log_norms
    marginal = torch.logsumexp(logits + shift[..., None], dim=0)
    for row, control in zip(marginal, controls, strict=True):
        if control.banned:
            row[torch.tensor(control.banned, device=row.device)] = -torch.inf
    return StepScores(logits, marginal, _host(log_norms), _host(torch.logsumexp(marginal, dim=-1)), controls)


def normalizers(logits: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exp over the vocabulary: logits [..., vocab] -> [...]."""
    return native.log_norms(logits) if native.sums_usable(logits) else torch.logsumexp(logits, dim=-1)


def select(scores: StepScores, hypotheses: Sequence[int], n_candidates: int) -> StepOutput:
    """The `n_candidates` best allowed tokens of some hypotheses; at most the vocabulary."""
    count, chosen = min(n_candidates, scores.logits.shape[-1]), list(hypotheses)
    if scores.kernel is not None and count <= MOST_BEST:
        ids, log_probs = scores.kernel.best(chosen, count)
    else:
        ids, log_probs = _best(scores, chosen, count)
    return StepOutput(
        token_ids=ids,
        log_probs=log_probs,
        requested=tuple(_requested(scores, hypothesis) for hypothesis in chosen),
        allowed_log_mass=scores.log_masses[chosen],
        log_normalizers=scores.log_norms.T[chosen],
    )


def _best(scores: StepScores, hypotheses: list[int], count: int) -> tuple[Ids, Floats]:
    """Ids [n_hypotheses, count], -1 where fewer are allowed, and log-probabilities [n_hypotheses, n_docs, count]."""
    index = torch.tensor(hypotheses, device=scores.logits.device)
    ids = top_tokens(scores.marginal[index], count, [scores.controls[i].banned for i in hypotheses])
    chosen = scores.logits[:, index].gather(2, ids.clamp(min=0)[None].expand(len(scores.logits), -1, -1))
    host_ids: Ids = ids.to(torch.int32).cpu().numpy()
    log_probs = (_host(chosen) - scores.log_norms[:, hypotheses, None]).transpose(1, 0, 2)
    return host_ids, np.where(host_ids[:, None] < 0, np.float32(-np.inf), log_probs)


def _requested(scores: StepScores, hypothesis: int) -> Floats:
    """Log-probabilities [n_docs, n_requested]."""
    tokens = scores.controls[hypothesis].requested
    if not tokens:
        return np.empty((len(scores.logits), 0), np.float32)
    index = torch.tensor(tokens, device=scores.logits.device)
    shown: Floats = _host(scores.logits[:, hypothesis, index]) - scores.log_norms[:, hypothesis, None]
    return shown


def _host(values: torch.Tensor) -> Floats:
    result: Floats = values.cpu().numpy()
    return result


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
