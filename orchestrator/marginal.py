"""The marginalizations of Lewis et al. (arXiv 2005.11401, section 2.1), on log-probabilities.

Sums run in float64; what takes part in a search is rounded to float32, as Hugging Face's scores are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def logsumexp(values: npt.ArrayLike, axis: int) -> Doubles:
    """Logarithm of the sum of exponentials along `axis`; -inf where all values are."""
    array = np.asarray(values, dtype=np.float64)
    peak = array.max(axis=axis, keepdims=True)
    if np.isfinite(peak).all():
        return _log_sums(array, peak, axis)
    with np.errstate(divide="ignore"):
        return _log_sums(array, np.where(np.isfinite(peak), peak, 0.0), axis)


def _log_sums(array: Doubles, peak: Doubles, axis: int) -> Doubles:
    sums: Doubles = np.log(np.exp(array - peak).sum(axis=axis)) + peak.squeeze(axis)
    return sums


def log_softmax(values: npt.ArrayLike, axis: int) -> Doubles:
    """Logarithms of exponentials that sum to 1 along `axis`, however large the values; -inf stays -inf.

    The peak is subtracted from the values, not added to the sum: log(n) is lost beside a peak of 1e17.
    """
    array = np.asarray(values, dtype=np.float64)
    peak = array.max(axis=axis, keepdims=True)
    shifted = array - peak
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)), dtype=np.float64)


def log_normalize(scores: npt.ArrayLike) -> Doubles:
    """Priors log p(z|x) of scores `[n_docs]`: p_eta(z|x) is proportional to exp(score) (section 2.2)."""
    return log_softmax(scores, axis=0)


def token_marginal(log_prior: Doubles, log_probs: Floats) -> Floats:
    """RAG-Token, one step: p(y_i|x,y_<i) = sum_z p(z|x) p(y_i|x,z,y_<i) (section 2.1).

    `log_prior` is `[n_docs]`, `log_probs` `[..., n_docs, n_tokens]`; the result is `[..., n_tokens]`. With one
    document, whose prior is then 1, it is that document's log-probabilities (RAG-Sequence's beams).
    """
    if log_prior.shape[0] == 1:
        return np.ascontiguousarray(log_probs[..., 0, :], dtype=np.float32)
    return logsumexp(log_prior[:, np.newaxis] + log_probs, axis=-2).astype(np.float32)


def token_log_probs(log_prior: Doubles, log_probs: Floats) -> Doubles:
    """RAG-Token, a whole sequence: log p(y_i|x,y_<i) `[n_tokens]` from `log_probs` `[n_docs, n_tokens]`."""
    return logsumexp(log_prior[:, np.newaxis] + log_probs, axis=0)


def sequence_log_prob(log_prior: Doubles, log_probs: Floats) -> float:
    """RAG-Sequence: log p(y|x) = log sum_z p(z|x) prod_i p(y_i|x,z,y_<i) from `log_probs` `[n_docs, n_tokens]`."""
    return float(logsumexp(log_prior + log_probs.sum(axis=1, dtype=np.float64), axis=0))


def sequence_log_probs(log_prior: Doubles, log_probs: Floats) -> Doubles:
    """RAG-Sequence: what each token adds to log p(y|x), where p(y|x) = sum_z p(z|x) prod_i p(y_i|x,z,y_<i).

    `log_probs` is `[n_docs, n_tokens]`; the result `[n_tokens]` sums up to log p(y|x) (section 2.1).
    """
    joint = log_prior[:, np.newaxis] + np.cumsum(log_probs.astype(np.float64), axis=1)
    return np.diff(logsumexp(joint, axis=0), prepend=logsumexp(log_prior, axis=0))


def token_posteriors(log_prior: Doubles, log_probs: Floats | Doubles) -> Doubles:
    """RAG-Token, where each token has its document: p(z_i|x,y_<=i), proportional to p(z|x) p(y_i|x,z,y_<i) (Figure 2).

    `[n_tokens, n_docs]` from `log_probs` `[n_docs, n_tokens]`. Documents of prior or likelihood 0 have posterior 0.
    """
    joint = log_prior[:, np.newaxis] + log_probs.astype(np.float64)
    return np.exp(log_softmax(joint, axis=0)).T


def sequence_posteriors(log_prior: Doubles, log_probs: Floats) -> Doubles:
    """RAG-Sequence, where one document stands behind all: p(z|x,y_<=i), by p(z|x) prod_{j<=i} p(y_j|x,z,y_<j).

    Shapes as in `token_posteriors`; the last row is p(z|x,y).
    """
    return token_posteriors(log_prior, np.cumsum(log_probs, axis=1, dtype=np.float64))
