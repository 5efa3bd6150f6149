"""How peaked a random BART's next-token distribution is: measured on given contexts, and set by scaling the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import BartForConditionalGeneration

Head = str
HEADS: tuple[Head, ...] = ("flat", "peaked")  # as the weights come; entropy of the marginal near TARGET_NATS
TARGET_NATS = 1.5
NATS = (1.0, 2.0)  # what is accepted, after a search on its own path
SCALES = (0.1, 10.0)
HALVINGS = 20


@dataclass(frozen=True)
class Contexts:
    """What the entropy is measured on: contexts of one length, log p(z|x), and the steps of a greedy search."""

    token_ids: Sequence[Sequence[int]]  # [n_docs, n_tokens]
    log_priors: Sequence[float]  # [n_docs]
    steps: int


@torch.inference_mode()
def greedy_logits(model: BartForConditionalGeneration, contexts: Contexts) -> torch.Tensor:
    """Logits [n_steps, n_docs, vocab] along RAG-token's greedy search, the end token banned as in the workload."""
    ids, priors = torch.tensor(contexts.token_ids), torch.tensor(contexts.log_priors)
    encoded, past = model.get_encoder()(ids), None
    token, steps = model.config.decoder_start_token_id, []
    for _ in range(contexts.steps):
        fed = torch.full((len(ids), 1), token)
        output = model(encoder_outputs=encoded, decoder_input_ids=fed, past_key_values=past, use_cache=True)
        past, logits = output.past_key_values, output.logits[:, -1].clone()
        logits[:, model.config.eos_token_id] = -torch.inf
        token = int(log_marginal(logits, priors).argmax())
        steps.append(logits)
    return torch.stack(steps)


def log_marginal(logits: torch.Tensor, log_priors: torch.Tensor) -> torch.Tensor:
    """RAG-token: logits [..., n_docs, vocab] and log-priors [n_docs] to log p(y_i|x) [..., vocab]."""
    return torch.logsumexp(torch.log_softmax(logits, dim=-1) + log_priors[:, None], dim=-2)


def entropy_nats(logits: torch.Tensor, log_priors: torch.Tensor, scale: float = 1.0) -> float:
    """Entropy of the marginal, mean over steps, when every logit [n_steps, n_docs, vocab] is multiplied by `scale`."""
    marginal = log_marginal(logits * scale, log_priors)
    return float(torch.special.entr(marginal.exp()).sum(-1).mean())


def scale_for(logits: torch.Tensor, log_priors: torch.Tensor, nats: float = TARGET_NATS) -> float:
    """What to multiply the logits by, within SCALES, so that the marginal's entropy is nearest to `nats`."""
    low, high = map(math.log, SCALES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_flat = entropy_nats(logits, log_priors, math.exp(middle)) > nats
        low, high = (middle, high) if too_flat else (low, middle)
    return math.exp((low + high) / 2)


def sharpen(model: BartForConditionalGeneration, contexts: Contexts) -> float:
    """Scale all logits so that the marginal's entropy is near TARGET_NATS; the entropy then, on its own path.

    The embedding is the head and the input of both stacks, so it stays as it is. What is scaled is the LayerNorm that
    ends the last decoder layer, which nothing but the head reads: that multiplies every logit, and nothing else.

    Raises:
        ValueError: the entropy is not within NATS afterwards.
    """
    scale = scale_for(greedy_logits(model, contexts), torch.tensor(contexts.log_priors))
    norm = model.model.decoder.layers[-1].final_layer_norm
    with torch.no_grad():
        norm.weight *= scale
        norm.bias *= scale
    nats = marginal_entropy(model, contexts)
    if not NATS[0] <= nats <= NATS[1]:
        raise ValueError(f"logits times {scale:.2f} leave an entropy of {nats:.2f} nats")
    return nats


def marginal_entropy(model: BartForConditionalGeneration, contexts: Contexts) -> float:
    """Nats, mean over the steps of RAG-token's greedy search."""
    return entropy_nats(greedy_logits(model, contexts), torch.tensor(contexts.log_priors))
