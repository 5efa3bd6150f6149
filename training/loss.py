"""The losses of the two phases: of a reader, and of RAG-Token (arXiv 2005.11401, sections 2.1 and 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """The log p(y_i | x, z, y_<i) of each target token: [n_rows, n_tokens] from logits [n_rows, n_tokens, vocab]."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def reader_loss(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Sum of -log p(y | x, z) over rows; log_probs and mask [n_rows, n_tokens]."""
    return -(log_probs * mask).sum()


def rag_token_loss(log_probs: Tensor, log_priors: Tensor, mask: Tensor) -> Tensor:
    """Sum of -log p(y|x) over questions, p(y|x) = prod_i sum_z p(z|x) p(y_i | x, z, y_<i) (RAG-Token, section 2.1).

    log_probs [n_questions, n_docs, n_tokens], log_priors [n_questions, n_docs], mask [n_questions, n_tokens].
    """
    marginal = torch.logsumexp(log_probs + log_priors.unsqueeze(-1), dim=1)
    return -(marginal * mask).sum()


def document_loss(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Sum over questions of the mean over documents of -log p(y | x, z): what each document says by itself.

    log_probs [n_questions, n_docs, n_tokens], mask [n_questions, n_tokens]. The marginal is nearly blind to a document
    that is sure of a wrong answer; this is not, and teaches passages without the answer to be unsure.
    """
    return -(log_probs.mean(dim=1) * mask).sum()
