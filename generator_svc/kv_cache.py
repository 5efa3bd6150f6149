"""The decoder's self-attention: over cached slots (one token a row), or over a tree of tokens in the same pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from generator_svc.kernels import native
from generator_svc.kernels.program import PathPlaces
from generator_svc.models.base import PositionBias, Shape
from generator_svc.slots import INITIAL_SLOTS, SlotArray
from generator_svc.trie import Trie


class KVCache:
    """Keys and values of all slots: for each layer [n_slots, 2 * inner]. Grows by doubling, layer by layer.

    `moves` counts the times that a layer went to other memory.
    """

    def __init__(self, shape: Shape, device: torch.device, n_slots: int = INITIAL_SLOTS) -> None:
        self.device = device
        self.dtype = shape.numerics.activations
        self.moves = 0
        size = (n_slots, 2 * shape.inner)
        self.layers = [torch.empty(size, dtype=self.dtype, device=device) for _ in range(shape.n_layers)]

    @property
    def n_slots(self) -> int:
        """Slots that every layer has."""
        return min(layer.shape[0] for layer in self.layers)

    def grow(self, n_slots: int) -> None:
        """Make room for slots below `n_slots`. Where memory is short it raises, and what was there is kept."""
        for i, old in enumerate(self.layers):
            if old.shape[0] < n_slots:
                grown = torch.empty(n_slots, old.shape[1], dtype=self.dtype, device=self.device)
                grown[: old.shape[0]] = old
                self.layers[i] = grown
                self.moves += 1


class CachedAttention:
    """Each row attends to the slots of its path, its own included; see `SelfAttention`.

    `paths` gives, for each row, its slots from the decoder start token to the row's own token.
    """

    def __init__(self, cache: KVCache, shape: Shape, paths: Sequence[SlotArray]) -> None:
        lengths = np.array([len(path) for path in paths])
        longest = int(lengths.max())
        table = np.zeros((len(paths), longest), dtype=np.int64)
        for row, path in enumerate(paths):
            table[row, : len(path)] = path
            table[row, len(path) :] = path[0]
        self._cache, self._shape = cache, shape
        self._own = torch.from_numpy(np.array([path[-1] for path in paths])).to(cache.device)
        self._table = torch.from_numpy(table.reshape(-1)).to(cache.device)
        self._size = (len(paths), longest)
        positions = np.arange(longest)[None, :]
        self._distances = torch.from_numpy(lengths[:, None] - 1 - positions).to(cache.device)
        self._hidden = self._distances < 0 if bool((lengths != longest).any()) else None
        self._lengths = torch.from_numpy(lengths)
        self._native = cache.dtype == torch.float32 and native.usable(shape.head_dim, cache.layers[0])
        self._bias: torch.Tensor | None = None

    def start(self, position_bias: PositionBias | None) -> None:
        """See `SelfAttention`."""
        if position_bias is not None:
            bias = position_bias(self._distances).transpose(1, 2)[:, :, None]  # [n_rows, n_heads, 1, longest]
            if self._hidden is not None:
                bias = bias.masked_fill(self._hidden[:, None, None], -torch.inf)
            self._bias = bias.contiguous()
        elif self._hidden is not None and not self._native:
            visible = torch.zeros(self._size, dtype=self._cache.dtype, device=self._cache.device)
            self._bias = visible.masked_fill_(self._hidden, -torch.inf)[:, None, None]

    @property
    def places(self) -> PathPlaces | None:
        """See `SelfAttention`."""
        if not self._native:
            return None
        caches = np.array([layer.data_ptr() for layer in self._cache.layers], dtype=np.int64)
        return PathPlaces(caches, self._table.view(self._size), self._lengths, self._bias)

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See `SelfAttention`."""
        n_rows, longest = self._size
        inner, heads = self._shape.inner, self._shape.n_heads
        slots = self._cache.layers[layer]
        if self._native:
            table = self._table.view(self._size)
            scale = self._shape.scale
            return native.path_attention(qkv, slots, table, self._lengths, self._shape.head_dim, scale, self._bias)
        slots.index_copy_(0, self._own, qkv[:, inner:])
        past = slots.index_select(0, self._table).view(n_rows, longest, 2, heads, self._shape.head_dim)
        keys, values = past.permute(2, 0, 3, 1, 4).unbind(0)  # [n_rows, n_heads, longest, head_dim]
        query = qkv[:, :inner].view(n_rows, heads, 1, self._shape.head_dim)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=self._bias, scale=self._shape.scale)
        return attended.reshape(n_rows, inner)


class TreeAttention:
    """Rows are the nodes of one tree after another, and see their ancestors in the same pass; see `SelfAttention`.

    When `slots` is given ([n_nodes] for each tree), the keys and values are also kept in the cache.
    """

    places: PathPlaces | None = None

    def __init__(self, cache: KVCache, shape: Shape, trees: Sequence[Trie], slots: Sequence[SlotArray] | None) -> None:
        self._cache, self._shape = cache, shape
        self._trees = list(trees)
        self._own = None if slots is None else torch.from_numpy(np.concatenate(slots)).to(cache.device)
        self._biases: list[torch.Tensor] = []

    def start(self, position_bias: PositionBias | None) -> None:
        """See `SelfAttention`."""
        done: dict[int, torch.Tensor] = {}
        for tree in self._trees:
            if id(tree) not in done:
                done[id(tree)] = self._tree_bias(tree, position_bias)
            self._biases.append(done[id(tree)])

    def _tree_bias(self, tree: Trie, position_bias: PositionBias | None) -> torch.Tensor:
        hidden = torch.from_numpy(~tree.visible).to(self._cache.device)
        if position_bias is None:
            zeros = torch.zeros(hidden.shape, dtype=self._cache.dtype, device=hidden.device)
            return zeros.masked_fill_(hidden, -torch.inf)[None, None]
        distances = torch.from_numpy(tree.depths[:, None] - tree.depths[None, :]).to(hidden.device)
        bias = position_bias(distances).permute(2, 0, 1)
        return bias.masked_fill(hidden, -torch.inf)[None].contiguous()

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See `SelfAttention`."""
        inner = self._shape.inner
        if self._own is not None:
            self._cache.layers[layer].index_copy_(0, self._own, qkv[:, inner:])
        outputs = []
        for rows, bias in zip(torch.split(qkv, [tree.size for tree in self._trees]), self._biases, strict=True):
            heads = rows.view(-1, 3, self._shape.n_heads, self._shape.head_dim)
            query, keys, values = heads.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self._shape.scale)
            outputs.append(attended[0].transpose(0, 1).reshape(-1, inner))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
