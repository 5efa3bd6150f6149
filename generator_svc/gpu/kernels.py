"""What a step on static buffers is made of besides the model's linear maps, and each part's twin in plain torch.

The twins are the reference of the Triton kernels, and run where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from generator_svc.candidates import top_tokens
from generator_svc.models.base import DocumentState, Shape


@dataclass(frozen=True)
class Paths:
    """Self-attention: `table` [n_rows, longest] holds the slots of each row's path, its own last.

    `lengths` [n_rows] says how many they are; a row of length 0 is none, and nothing is written for it.
    """

    table: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Tiles:
    """Cross-attention: rows `firsts` to `firsts + counts` of each tile read the document of `tokens` tokens.

    `addresses` are of [n_layers, 2, n_heads, tokens, head_dim], contiguous. A tile of no rows is none.
    """

    addresses: torch.Tensor
    tokens: torch.Tensor
    firsts: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class Selection:
    """Hypothesis h has the rows h + i * strides[h] for i < counts[h]: one for each document. No rows: no hypothesis.

    `log_priors` [n_rows]; the tokens `banned` from banned_starts[h], banned_counts[h] of them, may not be chosen.
    """

    strides: torch.Tensor
    counts: torch.Tensor
    log_priors: torch.Tensor
    banned_starts: torch.Tensor
    banned_counts: torch.Tensor
    banned: torch.Tensor


@dataclass(frozen=True)
class Selected:
    """Where a selection goes: `log_norms` [n_rows], `mass` [n_rows] and `ids` [n_rows, M] by hypothesis.

    `log_probs` [n_rows, M] are those of each row on the ids of its hypothesis; ids are -1 where fewer are allowed.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    log_norms: torch.Tensor
    mass: torch.Tensor


class Kernels(Protocol):
    """The parts of a step. In Triton nothing waits for the device, and no launch depends on what the buffers hold."""

    def expect(self, documents: Mapping[int, DocumentState]) -> None:
        """Told which documents the next pass may read, by address."""

    def own(
        self, qkv: torch.Tensor, slots: torch.Tensor, paths: Paths, bias: torch.Tensor | None, shape: Shape
    ) -> torch.Tensor:
        """Keep each row's keys and values in its own slot, then attend to its path.

        A path may go through slots that other rows fill in the same pass, as those of guessed tokens do.

        qkv [n_rows, 3 * inner], slots [n_slots, 2 * inner], bias [longest, n_heads] by distance -> [n_rows, inner].
        """

    def documents(self, query: torch.Tensor, layer: int, tiles: Tiles, shape: Shape) -> torch.Tensor:
        """Attention of query [n_rows, inner] over the documents; rows of no tile hold anything."""

    def select(self, logits: torch.Tensor, selection: Selection, selected: Selected) -> None:
        """Log-softmax, marginal, and the M best allowed tokens of each hypothesis; see `candidates`.

        logits float32 [n_rows, vocab].
        """


class TorchKernels:
    """The twins."""

    def __init__(self) -> None:
        self._documents: Mapping[int, DocumentState] = {}

    def expect(self, documents: Mapping[int, DocumentState]) -> None:
        """See `Kernels`."""
        self._documents = documents

    def own(
        self, qkv: torch.Tensor, slots: torch.Tensor, paths: Paths, bias: torch.Tensor | None, shape: Shape
    ) -> torch.Tensor:
        """See `Kernels`."""
        inner, result = shape.inner, qkv.new_zeros(qkv.shape[0], shape.inner)
        lengths = paths.lengths.tolist()
        for row, length in enumerate(lengths):
            if length:
                slots[paths.table[row, length - 1]] = qkv[row, inner:]
        for row, length in enumerate(lengths):
            if length:
                path = paths.table[row, :length]
                keys, values = slots[path].view(length, 2, shape.n_heads, shape.head_dim).permute(1, 2, 0, 3)
                query = qkv[row, :inner].view(shape.n_heads, 1, shape.head_dim)
                mask = None if bias is None else bias[:length].flip(0).T[:, None].to(query.dtype)
                attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=shape.scale)
                result[row] = attended.reshape(inner)
        return result

    def documents(self, query: torch.Tensor, layer: int, tiles: Tiles, shape: Shape) -> torch.Tensor:
        """See `Kernels`."""
        result = torch.zeros_like(query)
        columns = (tiles.addresses, tiles.tokens, tiles.firsts, tiles.counts)
        for address, n_tokens, first, count in zip(*(column.tolist() for column in columns), strict=True):
            if count:
                keys, values = self._documents[address].layers[layer][:, :, :n_tokens].to(query.dtype)
                own = query[first : first + count].view(count, shape.n_heads, shape.head_dim).transpose(0, 1)
                attended = F.scaled_dot_product_attention(own, keys, values, scale=shape.scale)
                result[first : first + count] = attended.transpose(0, 1).reshape(count, shape.inner)
        return result

    def select(self, logits: torch.Tensor, selection: Selection, selected: Selected) -> None:
        """See `Kernels`."""
        selected.log_norms.copy_(torch.logsumexp(logits, dim=-1))
        weighted = logits + (selection.log_priors - selected.log_norms)[:, None]
        n_candidates = min(selected.ids.shape[1], logits.shape[1])
        selected.ids.fill_(-1)
        for hypothesis, count in enumerate(selection.counts.tolist()):
            if not count:
                continue
            rows = hypothesis + torch.arange(count, device=logits.device) * selection.strides[hypothesis]
            marginal = weighted[rows[0]].clone() if count == 1 else torch.logsumexp(weighted[rows], dim=0)
            start, n_banned = int(selection.banned_starts[hypothesis]), int(selection.banned_counts[hypothesis])
            banned = selection.banned[start : start + n_banned]
            marginal[banned] = -torch.inf
            ids = top_tokens(marginal[None], n_candidates, [tuple(banned.tolist())])[0]
            log_probs = logits[rows][:, ids.clamp(min=0)] - selected.log_norms[rows, None]
            selected.ids[hypothesis, :n_candidates] = ids.to(selected.ids.dtype)
            selected.log_probs[rows, :n_candidates] = log_probs.masked_fill(ids < 0, -torch.inf)
            selected.mass[hypothesis] = torch.logsumexp(marginal, dim=-1)
