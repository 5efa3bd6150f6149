"""Selection of a step's candidates in Triton: log-softmax, marginal over documents, and the M best, in three launches.

A token is ranked by one integer: its marginal's bits, made to rise with the value, above its id, made to fall. So the
order is total, and ties go to the smaller id.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from generator_svc.gpu.kernels import Selected, Selection
from generator_svc.gpu.layout import power_of_two

VOCAB_BLOCK = 2048  # tokens of one program
NOTHING = tl.constexpr(-0x7FFFFFFFFFFFFFFF)  # ranks below every token
LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _finite(top: tl.tensor) -> tl.tensor:
    """A maximum to subtract before exponentials: 0 where it is infinite, as torch.logsumexp does."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@triton.jit
def _keep_sum(maxima: tl.tensor, sums: tl.tensor, values: tl.tensor) -> None:
    """The largest of some logarithms, and the sum of exponentials below it."""
    top = _finite(tl.max(values, 0))
    tl.store(maxima, top)
    tl.store(sums, tl.sum(tl.exp(values - top), 0))


@triton.jit
def _norms_kernel(
    logits: tl.tensor, maxima: tl.tensor, sums: tl.tensor, vocab: tl.tensor, n_blocks: tl.tensor, block: tl.constexpr
) -> None:
    """One row and block: its part of the normalizer."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    ids = part * block + tl.arange(0, block)
    values = tl.load(logits + row * vocab + ids, mask=ids < vocab, other=float("-inf"))
    _keep_sum(maxima + row * n_blocks + part, sums + row * n_blocks + part, values)


@triton.jit
def _combined(
    maxima: tl.tensor, sums: tl.tensor, row: tl.tensor, n_blocks: tl.tensor, padded_blocks: tl.constexpr
) -> tl.tensor:
    """The logarithm of a sum that was taken in blocks."""
    parts = tl.arange(0, padded_blocks)
    there = parts < n_blocks
    tops = tl.load(maxima + row * n_blocks + parts, mask=there, other=float("-inf"))
    totals = tl.load(sums + row * n_blocks + parts, mask=there, other=0.0)
    top = tl.max(tl.where(totals == 0.0, float("-inf"), tops), 0)
    top = _finite(top)
    return tl.log(tl.sum(tl.where(totals == 0.0, 0.0, totals * tl.exp(tops - top)), 0)) + top


@triton.jit
def _weighted(
    logits: tl.tensor,
    maxima: tl.tensor,
    sums: tl.tensor,
    log_priors: tl.tensor,
    row: tl.tensor,
    ids: tl.tensor,
    vocab: tl.tensor,
    n_blocks: tl.tensor,
    size: tl.constexpr,
) -> tl.tensor:
    """The logarithm of p(z|x) p(y|x,z) of some tokens of one row, and the row's normalizer."""
    log_norm = _combined(maxima, sums, row, n_blocks, size)
    values = tl.load(logits + row * vocab + ids, mask=ids < vocab, other=float("-inf"))
    return values + (tl.load(log_priors + row) - log_norm), log_norm


@triton.jit
def _allowed(ids: tl.tensor, vocab: tl.tensor, banned: tl.tensor, count: tl.tensor) -> tl.tensor:
    """Tokens of the vocabulary that are not among the banned ones."""
    allowed = ids < vocab
    for i in range(0, count):
        allowed = allowed & (ids != tl.load(banned + i))
    return allowed


@triton.jit
def _ranks(values: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """Integers that rise with the value, and among equals fall with the id."""
    values = tl.where(values == 0.0, 0.0, values)  # -0 and 0 are one
    bits = values.to(tl.int32, bitcast=True)
    rank = tl.where(bits < 0, bits ^ LARGEST, bits).to(tl.int64)
    return (rank << 32) | (ids ^ LARGEST).to(tl.int64)


@triton.jit
def _blocks_kernel(
    logits: tl.tensor,
    maxima: tl.tensor,
    sums: tl.tensor,
    log_priors: tl.tensor,
    strides: tl.tensor,
    counts: tl.tensor,
    banned: tl.tensor,
    banned_starts: tl.tensor,
    banned_counts: tl.tensor,
    log_norms: tl.tensor,
    keys: tl.tensor,
    mass_maxima: tl.tensor,
    mass_sums: tl.tensor,
    vocab: tl.tensor,
    n_blocks: tl.tensor,
    block: tl.constexpr,
    padded_blocks: tl.constexpr,
    n_candidates: tl.constexpr,
) -> None:
    """One hypothesis and block: the marginal of its tokens, the best of them, and their mass."""
    first = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    count = tl.load(counts + first).to(tl.int32)
    stride = tl.load(strides + first)
    if count > 0:
        ids = part * block + tl.arange(0, block)
        top = tl.full([block], float("-inf"), tl.float32)
        for i in range(0, count):
            row = first + i * stride
            values, log_norm = _weighted(logits, maxima, sums, log_priors, row, ids, vocab, n_blocks, padded_blocks)
            tl.store(log_norms + row, log_norm, mask=part == 0)
            top = tl.maximum(top, values)
        top = _finite(top)
        total = tl.zeros([block], tl.float32)
        for i in range(0, count):
            row = first + i * stride
            values, _ = _weighted(logits, maxima, sums, log_priors, row, ids, vocab, n_blocks, padded_blocks)
            total += tl.exp(values - top)
        marginal = tl.log(total) + top
        n_banned = tl.load(banned_counts + first).to(tl.int32)
        allowed = _allowed(ids, vocab, banned + tl.load(banned_starts + first), n_banned)
        place = first * n_blocks + part
        _keep_sum(mass_maxima + place, mass_sums + place, tl.where(allowed, marginal, float("-inf")))
        key = tl.where(allowed, _ranks(marginal, ids), NOTHING)
        for i in range(0, n_candidates):
            best = tl.max(key, 0)
            tl.store(keys + place * n_candidates + i, best)
            key = tl.where(key == best, NOTHING, key)


@triton.jit
def _merge_kernel(
    logits: tl.tensor,
    log_norms: tl.tensor,
    strides: tl.tensor,
    counts: tl.tensor,
    keys: tl.tensor,
    mass_maxima: tl.tensor,
    mass_sums: tl.tensor,
    ids: tl.tensor,
    log_probs: tl.tensor,
    mass: tl.tensor,
    vocab: tl.tensor,
    n_blocks: tl.tensor,
    padded_keys: tl.constexpr,
    padded_blocks: tl.constexpr,
    n_candidates: tl.constexpr,
) -> None:
    """One hypothesis: the best of its blocks' best, and every row's log-probabilities of them."""
    first = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + first).to(tl.int32)
    stride = tl.load(strides + first)
    if count > 0:
        n_keys = n_blocks * n_candidates
        places = tl.arange(0, padded_keys)
        key = tl.load(keys + first * n_keys + places, mask=places < n_keys, other=NOTHING)
        order = tl.arange(0, n_candidates)
        chosen = tl.full([n_candidates], -1, tl.int64)
        for i in range(0, n_candidates):
            best = tl.max(key, 0)
            token = tl.where(best == NOTHING, -1, (best & LARGEST) ^ LARGEST)
            chosen = tl.where(order == i, token, chosen)
            key = tl.where(key == best, NOTHING, key)
        tl.store(ids + first * n_candidates + order, chosen.to(tl.int32))
        for i in range(0, count):
            row = first + i * stride
            values = tl.load(logits + row * vocab + chosen, mask=chosen >= 0, other=float("-inf"))
            tl.store(log_probs + row * n_candidates + order, values - tl.load(log_norms + row))
        tl.store(mass + first, _combined(mass_maxima, mass_sums, first, n_blocks, padded_blocks))


def select_candidates(logits: torch.Tensor, selection: Selection, selected: Selected) -> None:
    """See `Kernels.select`."""
    n_rows, vocab = logits.shape
    n_candidates = selected.ids.shape[1]
    n_blocks = -(-vocab // VOCAB_BLOCK)
    sizes = {"padded_blocks": power_of_two(n_blocks), "n_candidates": n_candidates}
    parts = torch.empty(4, n_rows, n_blocks, dtype=torch.float32, device=logits.device)
    keys = torch.empty(n_rows, n_blocks, n_candidates, dtype=torch.int64, device=logits.device)
    maxima, sums, mass_maxima, mass_sums = parts.unbind(0)
    counted = (selection.strides, selection.counts)
    banned = (selection.banned, selection.banned_starts, selection.banned_counts)
    _norms_kernel[(n_rows, n_blocks)](logits, maxima, sums, vocab, n_blocks, block=VOCAB_BLOCK, num_warps=8)
    _blocks_kernel[(n_rows, n_blocks)](
        *(logits, maxima, sums, selection.log_priors, *counted, *banned, selected.log_norms),
        *(keys, mass_maxima, mass_sums, vocab, n_blocks),
        block=VOCAB_BLOCK,
        **sizes,
        num_warps=8,
    )
    _merge_kernel[(n_rows,)](
        *(logits, selected.log_norms, *counted, keys, mass_maxima, mass_sums),
        *(selected.ids, selected.log_probs, selected.mass, vocab, n_blocks),
        padded_keys=power_of_two(n_blocks * n_candidates),
        **sizes,
    )
