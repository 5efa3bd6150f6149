"""The twins of the GPU's kernels against what runs on CPU, and the encoder's packing for GPUs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from generator_svc.gpu.kernels import TorchKernels
from generator_svc.kv_cache import CachedAttention, KVCache
from generator_svc.models import packing
from generator_svc.models.base import GroupedDocuments
from tests.generator_svc.gpu_cases import (
    PATHS,
    TILE_COUNTS,
    VOCABS,
    chain_case,
    check_selection,
    document_case,
    path_case,
    selection_case,
    shape_of,
)
from tests.generator_svc.support import CPU, build, load, random_tokens

LENGTHS = (23, 7, 1, 60, 16, 17, 24)


@pytest.mark.parametrize("biased", [False, True])
def test_paths_equal_the_cached_attention(biased: bool) -> None:
    shape = shape_of(4, 12, torch.float32)
    case = path_case(shape, CPU, biased=biased)
    cache = KVCache(shape, CPU)
    cache.layers = [case.slots.clone()]
    paths = [case.paths.table[row, :length].numpy() for row, length in enumerate(PATHS) if length]
    present = CachedAttention(cache, shape, paths)
    present.start(None if case.bias is None else lambda distances: case.bias[distances.clamp(min=0)])
    n_rows = len(paths)
    expected = present.attend(0, case.qkv[:n_rows])
    ours = TorchKernels().own(case.qkv, case.slots, case.paths, case.bias, shape)
    torch.testing.assert_close(ours[:n_rows], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(case.slots, cache.layers[0])


def test_paths_go_through_slots_that_the_pass_fills() -> None:
    shape = shape_of(4, 16, torch.float32)
    case = chain_case(shape, CPU)
    cache = KVCache(shape, CPU)
    cache.layers = [case.slots.clone()]
    lengths = case.paths.lengths.tolist()
    present = CachedAttention(cache, shape, [case.paths.table[0, :length].numpy() for length in lengths])
    present.start(None)
    expected = present.attend(0, case.qkv)
    ours = TorchKernels().own(case.qkv, case.slots, case.paths, None, shape)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(case.slots, cache.layers[0])


def test_tiles_equal_grouped_documents() -> None:
    shape = shape_of(4, 16, torch.float32)
    case = document_case(shape, CPU)
    kernels = TorchKernels()
    kernels.expect(case.documents)
    groups = tuple((state, count) for state, count in zip(case.documents.values(), TILE_COUNTS, strict=True) if count)
    for layer in range(shape.n_layers):
        expected = GroupedDocuments(groups, shape.scale).attend(layer, case.query)
        ours = kernels.documents(case.query, layer, case.tiles, shape)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", [1, 3, None])
@pytest.mark.parametrize("vocab", VOCABS)
def test_selection_equals_candidates(vocab: int, levels: int | None) -> None:
    for seed in range(8):
        for n_candidates in (1, 16):
            check_selection(TorchKernels(), selection_case(seed, vocab, levels, CPU), n_candidates)


@pytest.mark.parametrize("variant", ["bart", "t5-gated"])
def test_packing_for_gpus_encodes_the_same(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(variant).save_pretrained(tmp_path)
    model, rng = load(tmp_path), random.Random(3)
    for lengths in (LENGTHS, (16, 16), (1,), (40, 33)):
        contexts = [random_tokens(length, rng) for length in lengths]
        expected = model.encode(contexts).documents
        with monkeypatch.context() as patch:
            patch.setitem(packing.ON_DEVICE, "cpu", packing.PackedOnGpu)
            found = model.encode(contexts).documents
        for ours, theirs in zip(found, expected, strict=True):
            for layer, (mine, other) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
                torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
                assert mine.is_contiguous()
                assert mine.data_ptr() == ours.place[0] + layer * mine.nbytes
