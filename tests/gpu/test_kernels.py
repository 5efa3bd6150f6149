"""The Triton kernels against their twins. They also run on CPU where Triton is installed: TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch

from generator_svc.gpu.kernels import Selected, TorchKernels
from tests.generator_svc.gpu_cases import (
    PATHS,
    VOCABS,
    chain_case,
    check_selection,
    document_case,
    path_case,
    selection_case,
    shape_of,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ERRORS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of attention over values of spread 1

pytestmark = pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="torch sees no GPU")


@pytest.fixture(scope="module")
def kernels():
    from generator_svc.gpu.cuda import TritonKernels  # noqa: PLC0415

    return TritonKernels()


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (4, 12), (3, 8), (2, 128)])
@pytest.mark.parametrize("biased", [False, True])
def test_paths_equal_the_twin(kernels, heads: int, dim: int, dtype: torch.dtype, biased: bool) -> None:
    shape = shape_of(heads, dim, dtype)
    case = path_case(shape, DEVICE, biased=biased)
    slots = case.slots.clone()
    ours = kernels.own(case.qkv, slots, case.paths, case.bias, shape)
    expected = TorchKernels().own(case.qkv, case.slots, case.paths, case.bias, shape)
    assert torch.equal(slots, case.slots)
    torch.testing.assert_close(ours, expected, atol=ERRORS[dtype], rtol=ERRORS[dtype])
    assert not ours[PATHS.index(0)].any()


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("heads", "dim"), [(16, 64), (3, 8)])
def test_paths_go_through_slots_that_the_pass_fills(kernels, heads: int, dim: int, dtype: torch.dtype) -> None:
    shape = shape_of(heads, dim, dtype)
    case = chain_case(shape, DEVICE)
    slots = case.slots.clone()
    ours = kernels.own(case.qkv, slots, case.paths, None, shape)
    expected = TorchKernels().own(case.qkv, case.slots, case.paths, None, shape)
    assert torch.equal(slots, case.slots)
    torch.testing.assert_close(ours, expected, atol=ERRORS[dtype], rtol=ERRORS[dtype])


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (4, 12), (3, 8), (2, 128)])
def test_documents_equal_the_twin(kernels, heads: int, dim: int, dtype: torch.dtype) -> None:
    shape = shape_of(heads, dim, dtype)
    case = document_case(shape, DEVICE)
    twin = TorchKernels()
    twin.expect(case.documents)
    for layer in range(shape.n_layers):
        ours = kernels.documents(case.query, layer, case.tiles, shape)
        expected = twin.documents(case.query, layer, case.tiles, shape)
        torch.testing.assert_close(ours, expected, atol=ERRORS[dtype], rtol=ERRORS[dtype])


@pytest.mark.parametrize("levels", [1, 3, None])
@pytest.mark.parametrize("vocab", [*VOCABS, 7, 2048, 5000])
def test_selection_equals_candidates(kernels, vocab: int, levels: int | None) -> None:
    for seed in range(8):
        for n_candidates in (16, 128):
            check_selection(kernels, selection_case(seed, vocab, levels, DEVICE), n_candidates)


def test_nan_reaches_the_norms_of_its_session_only(kernels) -> None:
    case = selection_case(5, 64, None, DEVICE)
    assert len(case.sessions) > 1
    case.logits[case.starts[1], 3] = torch.nan
    n_rows = len(case.logits)
    ids = torch.zeros(n_rows, 16, dtype=torch.int32, device=DEVICE)
    values = [torch.zeros(size, device=DEVICE) for size in ((n_rows, 16), (n_rows,), (n_rows,))]
    selected = Selected(ids, *values)
    kernels.select(case.logits, case.selection, selected)
    assert selected.log_norms[: case.starts[1]].isfinite().all()
    assert selected.log_norms[case.starts[1]].isnan()
