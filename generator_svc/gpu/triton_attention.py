"""Attention of a decode step in Triton: over paths of cache slots, and over documents by their address.

Sums, maxima and exponentials are float32; products of float32 inputs are IEEE's, not TF32's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from generator_svc.gpu.kernels import Paths, Tiles
from generator_svc.gpu.layout import TILE_ROWS, power_of_two
from generator_svc.models.base import Shape

PAST_BLOCK = 32  # slots of a path at a time
TOKEN_BLOCK = 64  # tokens of a document at a time
LEAST_DIM = 16  # of a product of matrices


@triton.jit
def _keep_kernel(
    qkv: tl.tensor,
    slots: tl.tensor,
    table: tl.tensor,
    lengths: tl.tensor,
    longest: tl.tensor,
    width: tl.constexpr,
    padded_width: tl.constexpr,
) -> None:
    """One row: puts its keys and values, of all heads, into its slot."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row)
    if length > 0:
        own = tl.load(table + row * longest + (length - 1))
        at = tl.arange(0, padded_width)
        inside = at < width
        kept = tl.load(qkv + row * (width // 2 * 3) + width // 2 + at, mask=inside)
        tl.store(slots + own * width + at, kept, mask=inside)


@triton.jit
def _own_kernel(
    qkv: tl.tensor,
    slots: tl.tensor,
    table: tl.tensor,
    lengths: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    longest: tl.tensor,
    scale: tl.tensor,
    heads: tl.constexpr,
    dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block: tl.constexpr,
    biased: tl.constexpr,
) -> None:
    """One row and head goes over its path, whose slots all have their keys and values: see `_keep_kernel`."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(lengths + row).to(tl.int32)
    dims = tl.arange(0, padded_dim)
    inside = dims < dim
    inner = heads * dim
    at = head * dim + dims
    if length > 0:
        query = tl.load(qkv + row * 3 * inner + at, mask=inside, other=0.0).to(tl.float32) * scale
        key = tl.load(qkv + row * 3 * inner + inner + at, mask=inside, other=0.0).to(tl.float32)
        attended = tl.load(qkv + row * 3 * inner + 2 * inner + at, mask=inside, other=0.0).to(tl.float32)
        best = tl.sum(query * key, 0)
        if biased:
            best += tl.load(bias + head).to(tl.float32)
        total = tl.sum(tl.where(dims == 0, 1.0, 0.0), 0)
        for start in range(0, length - 1, block):
            past = start + tl.arange(0, block)
            there = past < length - 1
            places = tl.load(table + row * longest + past, mask=there, other=0)[:, None] * 2 * inner + at[None, :]
            both = there[:, None] & inside[None, :]
            keys = tl.load(slots + places, mask=both, other=0.0).to(tl.float32)
            scores = tl.where(there, tl.sum(query[None, :] * keys, 1), float("-inf"))
            if biased:
                scores += tl.load(bias + (length - 1 - past) * heads + head, mask=there, other=0.0).to(tl.float32)
            higher = tl.maximum(best, tl.max(scores, 0))
            weights = tl.exp(scores - higher)
            shrink = tl.exp(best - higher)
            values = tl.load(slots + inner + places, mask=both, other=0.0).to(tl.float32)
            attended = attended * shrink + tl.sum(weights[:, None] * values, 0)
            total = total * shrink + tl.sum(weights, 0)
            best = higher
        tl.store(out + row * inner + at, (attended / total).to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out + row * inner + at, tl.zeros([padded_dim], out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["layer"])
def _documents_kernel(
    query: tl.tensor,
    addresses: tl.tensor,
    tokens: tl.tensor,
    firsts: tl.tensor,
    counts: tl.tensor,
    out: tl.tensor,
    layer: tl.tensor,
    scale: tl.tensor,
    heads: tl.constexpr,
    dim: tl.constexpr,
    padded_dim: tl.constexpr,
    tile_rows: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """One tile and head: the stacked rows go over the tokens of their document once."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    count = tl.load(counts + tile)
    if count > 0:
        n_tokens = tl.load(tokens + tile)
        dims = tl.arange(0, padded_dim)
        inside = dims < dim
        rows = tl.arange(0, tile_rows)
        places = (tl.load(firsts + tile) + rows)[:, None] * heads * dim + (head * dim + dims)[None, :]
        real = (rows < count)[:, None] & inside[None, :]
        queries = tl.load(query + places, mask=real, other=0.0)
        document = tl.multiple_of(tl.load(addresses + tile).to(query.dtype), 16)
        keys_at = document + (layer * 2 * heads + head) * n_tokens * dim
        values_at = keys_at + heads * n_tokens * dim
        best = tl.full([tile_rows], float("-inf"), tl.float32)
        total = tl.zeros([tile_rows], tl.float32)
        attended = tl.zeros([tile_rows, padded_dim], tl.float32)
        for start in range(0, n_tokens.to(tl.int32), block):
            each = start + tl.arange(0, block)
            there = each < n_tokens
            both = there[:, None] & inside[None, :]
            keys = tl.load(keys_at + each[:, None] * dim + dims[None, :], mask=both, other=0.0)
            values = tl.load(values_at + each[:, None] * dim + dims[None, :], mask=both, other=0.0)
            scores = tl.dot(queries, tl.trans(keys), input_precision=precision)
            scores = tl.where(there[None, :], scores * scale, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            shrink = tl.exp(best - higher)
            attended = attended * shrink[:, None]
            attended += tl.dot(weights.to(values.dtype), values, input_precision=precision)
            total = total * shrink + tl.sum(weights, 1)
            best = higher
        tl.store(out + places, (attended / total[:, None]).to(out.dtype.element_ty), mask=real)


def own_attention(
    qkv: torch.Tensor, slots: torch.Tensor, paths: Paths, bias: torch.Tensor | None, shape: Shape
) -> torch.Tensor:
    """See `Kernels.own`.

    Two launches: a guessed token's path goes through the slots of other rows of the pass, and programs of one launch do
    not wait for each other.
    """
    out = torch.empty(qkv.shape[0], shape.inner, dtype=qkv.dtype, device=qkv.device)
    width = 2 * shape.inner
    longest = paths.table.shape[1]
    _keep_kernel[(qkv.shape[0],)](
        *(qkv, slots, paths.table, paths.lengths, longest), width=width, padded_width=power_of_two(width)
    )
    _own_kernel[(qkv.shape[0], shape.n_heads)](
        qkv,
        slots,
        paths.table,
        paths.lengths,
        slots if bias is None else bias,
        out,
        longest,
        shape.scale,
        heads=shape.n_heads,
        dim=shape.head_dim,
        padded_dim=power_of_two(shape.head_dim),
        block=PAST_BLOCK,
        biased=bias is not None,
    )
    return out


def document_attention(query: torch.Tensor, layer: int, tiles: Tiles, shape: Shape) -> torch.Tensor:
    """See `Kernels.documents`."""
    out = torch.empty_like(query)
    _documents_kernel[(len(tiles.addresses), shape.n_heads)](
        query,
        tiles.addresses,
        tiles.tokens,
        tiles.firsts,
        tiles.counts,
        out,
        layer,
        shape.scale,
        heads=shape.n_heads,
        dim=shape.head_dim,
        padded_dim=power_of_two(shape.head_dim, LEAST_DIM),
        tile_rows=TILE_ROWS,
        block=TOKEN_BLOCK,
        precision="ieee",
    )
    return out
