from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers.activations import ACT2FN

from generator_svc.kernels import native
from generator_svc.kernels.program import RECORDED, Attend, DocumentPlaces, Heads, PathPlaces, Program, Value, record
from generator_svc.models import layers
from generator_svc.models.linear import quantize_weight
from generator_svc.models.precision import Precision
from generator_svc.runner import Runner
from generator_svc.sessions import Start
from ragserve.activations import LEARNED
from tests.generator_svc.support import CPU, Chain, build, load, random_tokens

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels need a C compiler and AVX2")
NOTHING = np.zeros(1, np.int64)
NO_PATHS = PathPlaces(NOTHING, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), None)
NO_DOCUMENTS = DocumentPlaces(NOTHING, NOTHING, NOTHING, half=False)


def recorded(function: Callable[[Any], Any], width: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of rows alone, run as a program."""
    program = record(lambda x, _paths, _documents: function(x), width, Heads(1, 8, 1.0))
    assert program is not None
    return lambda x: program(x, NO_PATHS, NO_DOCUMENTS)


def product(outputs: int, inputs: int, activation: str = "none") -> native.Int8Product:
    return native.Int8Product(*quantize_weight(torch.randn(outputs, inputs)), torch.randn(outputs), activation)


@pytest.mark.parametrize("width", [1, 7, 8, 45, 1024])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_norms_equal_torch(width: int, rows: int) -> None:
    torch.manual_seed(width)
    weight, bias = torch.randn(width), torch.randn(width)
    x = (torch.randn(rows, width) + 1) * torch.logspace(-2, 2, rows)[:, None]
    layer = recorded(lambda x: F.layer_norm(x, (width,), weight, bias, 1e-5), width)
    torch.testing.assert_close(layer(x), F.layer_norm(x, (width,), weight, bias, 1e-5), atol=2e-5, rtol=1e-5)
    mean_square = recorded(lambda x: F.rms_norm(x, (width,), weight, 1e-6), width)
    torch.testing.assert_close(mean_square(x), F.rms_norm(x, (width,), weight, 1e-6), atol=1e-6, rtol=1e-5)


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(3, 20)
    x[1, 18] = torch.nan
    y = recorded(lambda x: F.layer_norm(x, (20,), torch.ones(20), torch.zeros(20), 1e-5), 20)(x)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def test_a_program_keeps_its_weights() -> None:
    """Memory that nobody keeps is given to the next tensor of that size."""

    def function(x: Any) -> Any:
        return F.rms_norm(F.layer_norm(x, (20,), torch.ones(20), torch.zeros(20), 1e-5), (20,), torch.ones(20), 1e-5)

    program = recorded(function, 20)
    taken = [torch.full((20,), torch.nan) for _ in range(100)]
    x = torch.randn(3, 20)
    torch.testing.assert_close(program(x), function(x), atol=2e-5, rtol=1e-5)
    assert len(taken) == 100


@pytest.mark.parametrize("rows", [1, 5, 6, 23])
def test_values_used_late_are_not_overwritten(rows: int) -> None:
    torch.manual_seed(rows)
    up, gate, down, square = product(50, 40, "gelu"), product(50, 40), product(40, 50), product(40, 40, "relu")

    def function(x: Any) -> Any:
        first = square(x)
        for _ in range(3):
            first = square(first, first)
        return down(up(first) * gate(x), x)

    x = torch.randn(rows, 40)
    assert torch.equal(recorded(function, 40)(x), function(x))


def test_places_are_used_again() -> None:
    square = product(40, 40)

    def repeated(times: int) -> Program:
        def function(x: Any, _paths: Attend, _documents: Attend) -> Any:
            for _ in range(times):
                x = square(x)
            return x

        program = record(function, 40, Heads(1, 8, 1.0))
        assert program is not None
        return program

    assert repeated(100).width == repeated(2).width == 2 * 40


def test_what_has_no_kernel_is_not_recorded() -> None:
    own = product(8, 8)
    assert record(lambda x, _paths, _documents: torch.tanh(own(x)), 8, Heads(1, 8, 1.0)) is None
    for unknown in (lambda x: 2.0 * x, lambda x: x * 2.0, lambda x: x.clamp(0), lambda x: x * x.shape[0], torch.mul):
        assert record(lambda x, _paths, _documents, f=unknown: f(own(x)), 8, Heads(1, 8, 1.0)) is None
    assert record(lambda x, paths, _documents: paths.attend(0, x), 24, Heads(1, 8, 1.0)) is not None


@pytest.mark.parametrize("variant", ["bart", "bart-scaled-relu", "bart-silu", "t5-gated-16"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_decoder_run_as_a_program_has_the_bits_of_its_operators(
    variant: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = build(variant)
    reference.save_pretrained(tmp_path)
    start = reference.config.decoder_start_token_id
    rng = random.Random(4)
    contexts = [random_tokens(length, rng) for length in (23, 7, 1, 60)]
    starts = (
        [Start((start,)), Start((start, 5, 9))] if shared else [Start((start, 4)[: 1 + i % 2], i) for i in range(4)]
    )
    calls = count_runs(monkeypatch)
    monkeypatch.setattr(F, "layer_norm", _norm(F.layer_norm))
    monkeypatch.setattr(F, "rms_norm", _norm(F.rms_norm))

    def logits() -> list[torch.Tensor]:
        chain = Chain(Runner(load(tmp_path, "int8"), CPU), contexts, shared=shared, starts=starts)
        steps = [chain.step(), chain.advance([(0, 7), (1, 8), (0, 9)])]
        return [torch.from_numpy(np.asarray(step)) for step in [*steps, chain.advance([(2, 7), (2, 8), (1, 9)])]]

    ours = logits()
    assert calls == [1, 1, 1]
    monkeypatch.setattr(layers, "record", lambda *_: None)
    theirs = logits()
    assert calls == [1, 1, 1]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("variant", ["bart-tanh", "t5"])
def test_other_decoders_run_operator_by_operator(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = build(variant)
    reference.save_pretrained(tmp_path)
    calls = count_runs(monkeypatch)
    start = reference.config.decoder_start_token_id
    chain = Chain(Runner(load(tmp_path, "int8"), CPU), [[5, 6, 7]], shared=True, starts=[Start((start,))])
    assert np.isfinite(chain.step()).all()
    assert not calls


@pytest.mark.parametrize("activation", [name for name in ACT2FN if name not in LEARNED])
@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        ("bart", "int8"),
        ("t5-gated-16", "int8"),
        *[
            pytest.param(variant, precision, marks=pytest.mark.long)
            for variant in ("t5", "bart", "t5-gated-16")
            for precision in ("int8", "bfloat16", "float16")
            if (variant, precision) not in (("bart", "int8"), ("t5-gated-16", "int8"))
        ],
    ],
)
def test_every_activation_that_imports_is_served_in_every_precision(
    variant: str, precision: Precision, activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program where it can be recorded; operator by operator the numbers are nearly the same."""
    setting = "activation_function" if variant == "bart" else "feed_forward_proj"
    gated = "gated-" if variant == "t5-gated-16" else ""
    reference = build(variant, **{setting: gated + activation})
    reference.save_pretrained(tmp_path)
    start = reference.config.decoder_start_token_id

    def logits() -> torch.Tensor:
        chain = Chain(Runner(load(tmp_path, precision), CPU), [[5, 6, 7]], shared=True, starts=[Start((start,))])
        return torch.from_numpy(np.asarray(chain.step()))

    ours = logits()
    monkeypatch.setattr(layers, "record", lambda *_: None)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, logits(), atol=1e-3, rtol=1e-3)


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets a 1 for each run of a decoder's program."""
    calls = list[int]()
    call = Program.__call__

    def counted(self: Program, *args: Any) -> torch.Tensor:
        if args[1] is not NO_PATHS:
            calls.append(1)
        return call(self, *args)

    monkeypatch.setattr(Program, "__call__", counted)
    return calls


def _norm(function: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """A norm of torch, computed by the kernel that a program uses, outside of programs too."""

    def norm(x: Any, *args: Any) -> Any:
        if isinstance(x, Value):
            return RECORDED[function](x, *args)
        return recorded(lambda value: RECORDED[function](value, *args), x.shape[1])(x)

    return norm
