"""From token states to one vector: the poolings of sentence-transformers, projections and normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)  # in the order in which several are joined


@dataclass(frozen=True)
class Head:
    """What turns token states into the final vector.

    Several poolings are joined. Without `include_prompt` the tokens of a prompt are attended to but not pooled.
    """

    pooling: tuple[PoolingMode, ...] = ("cls",)
    include_prompt: bool = True
    normalize: bool = False
    projections: tuple[nn.Module, ...] = ()


class VectorModel(nn.Module):
    """input_ids, attention_mask [batch, seq] to the final vector [batch, dim].

    The mask is 1 for a token and 0 for padding. Where prompts are not pooled it is 2 for the tokens of a prompt.
    """

    def __init__(self, transformer: nn.Module, head: Head) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = head
        self.projections = nn.Sequential(*head.projections)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The final vector of each row."""
        attended, pooled = attention_mask, attention_mask
        if not self.head.include_prompt:
            attended, pooled = (attention_mask > 0).long(), (attention_mask == 1).long()
        states = self.transformer(input_ids=input_ids, attention_mask=attended, return_dict=True)[0]
        vectors = [self._pool(mode, states, pooled, attended) for mode in self.head.pooling]
        vector: Tensor = self.projections(vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1))
        return nn.functional.normalize(vector, dim=-1) if self.head.normalize else vector

    def _pool(self, mode: PoolingMode, states: Tensor, pooled: Tensor, attended: Tensor) -> Tensor:
        """[batch, seq, width] -> [batch, width] over the tokens whose `pooled` is 1."""
        weight = pooled.unsqueeze(-1).to(states.dtype)
        if mode == "cls":
            return states[:, 0] if self.head.include_prompt else _at(states, pooled.to(torch.int32).argmax(1))
        if mode == "lasttoken":
            return _at(states, attended.sum(1) - 1)
        if mode == "max":
            return states.masked_fill(pooled.unsqueeze(-1) == 0, torch.finfo(states.dtype).min).amax(1)
        if mode == "weightedmean":  # by position, from 1 on
            weight = weight * torch.arange(1, states.shape[1] + 1, dtype=states.dtype).view(1, -1, 1)
        total = weight.sum(1).clamp(min=1e-9)
        return (states * weight).sum(1) / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """The state at one position of each row: [batch, seq, width], [batch] -> [batch, width]."""
    index = positions.view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)
