"""One interface over the best kernel for products of few rows with a large weight.

On CPU a float32 weight is packed once for oneDNN: measured at 5 to 800 rows, it takes 0.3 to 0.5 of the time of the
plain `F.linear` (which goes to MKL), and the activation and the residual sum are fused into it. An int8 weight goes to
a kernel of ours (`kernels/linear_int8.c`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from transformers.activations import ACT2FN

from generator_svc.kernels import native
from generator_svc.models.numerics import FLOAT32, Numerics
from ragserve.activations import LEARNED
from ragserve.errors import FailedPreconditionError

ACTIVATION_LEVELS = 127
WEIGHT_LEVELS, FINE_WEIGHT_LEVELS = 63, 127  # four products fit into 16 bits, or two: see kernels/linear_int8.c
QUANTIZED_ROWS = 2048  # of a weight at a time
PACKING_ROWS = 32  # hint for the packed layout; layouts for 5, 20 and 80 rows measure the same
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{name: ACT2FN[name] for name in ACT2FN if name not in LEARNED},  # those of transformers, by its names
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
FUSED = {"none": ("none", ""), "relu": ("relu", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh")}


def check_activation(name: str) -> str:
    """The name, when it is known here.

    Raises:
        FailedPreconditionError: it is not.
    """
    if name not in ACTIVATIONS:
        raise FailedPreconditionError(
            f"config.json: activation {name!r} is none of {', '.join(ACTIVATIONS)}", field="config.json"
        )
    return name


class Linear(Protocol):
    """`activation(x @ weight.T + bias) + residual`."""

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """X [rows, in], residual [rows, out] -> [rows, out]."""


class PlainLinear:
    """On any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> None:
        self._weight = weight
        self._bias = bias
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Linear`."""
        y = self._activation(F.linear(x, self._weight, self._bias))
        return y if residual is None else y + residual


class PackedLinear:
    """On CPU, the weight packed for oneDNN."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKING_ROWS)
        self._bias = bias
        self._fused, self._algorithm = FUSED.get(activation, ("none", ""))
        self._activation = None if activation in FUSED else ACTIVATIONS[activation]
        self._can_add = activation == "none"

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Linear`."""
        y: torch.Tensor
        if residual is not None and self._can_add:
            y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
            return y
        y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, self._fused, [], self._algorithm)
        y = y if self._activation is None else self._activation(y)
        return y if residual is None else y + residual


class Int8Linear:
    """On CPU: weights of 7 bits with a scale for each output, inputs of 7 bits with step and minimum for each group.

    A group is 128 inputs of one row. Integer sums are exact, so a row's result does not depend on the rows beside it,
    nor on who computes it. A `fine` one has weights of 8 bits, and groups of 64 inputs.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, *, fine: bool = False) -> None:
        quantized, scale = quantize_weight(weight, FINE_WEIGHT_LEVELS if fine else WEIGHT_LEVELS)
        fused = activation if activation in native.ACTIVATIONS else "none"
        product = Int8Torch if native.library() is None else native.Int8Product
        self._product = product(quantized, scale, bias, fused, fine=fine)
        self._activation = None if fused == activation else ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Linear`."""
        if self._activation is None:
            return self._product(x, residual)
        y = self._activation(self._product(x, None))
        return y if residual is None else y + residual


class Int8Torch:
    """What `native.Int8Product` computes, in operators of torch: for processors that the kernel is not for."""

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        activation: str,
        *,
        fine: bool = False,
    ) -> None:
        self._group = native.FINE_GROUP if fine else native.GROUP
        self._weights = [part.T.contiguous() for part in torch.split(weight, self._group, dim=1)]
        self._sums = [part.sum(0, dtype=torch.float32) for part in self._weights]
        self._scale = scale
        self._bias = bias
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Linear`."""
        total = torch.zeros(x.shape[0], len(self._scale))
        for part, weight, sums in zip(torch.split(x, self._group, dim=1), self._weights, self._sums, strict=True):
            minimum, maximum = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
            step = (maximum - minimum) / ACTIVATION_LEVELS
            levels = ((part - minimum) * (1 / step)).nan_to_num().round().clamp(0, ACTIVATION_LEVELS).to(torch.int8)
            total += step * torch._int_mm(levels, weight) + minimum * sums
        y = self._scale * total
        y = self._activation(y if self._bias is None else y + self._bias)
        return y if residual is None else y + residual


def quantize_weight(weight: torch.Tensor, levels: int = WEIGHT_LEVELS) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [out, in] as int8 of -levels..levels, and each output's scale; some rows at a time, to need no copy."""
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scale = (torch.maximum(weight.amax(1), -weight.amin(1)) / levels).clamp(min=torch.finfo(torch.float32).tiny)
    for start in range(0, weight.shape[0], QUANTIZED_ROWS):
        rows = slice(start, start + QUANTIZED_ROWS)
        quantized[rows] = (weight[rows] / scale[rows, None]).round_().to(torch.int8)
    return quantized, scale


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    numerics: Numerics = FLOAT32,
    *,
    fine: bool = False,
) -> Linear:
    """The best kernel for a weight [out, in] on its device; `fine` where int8 needs more care than elsewhere."""
    if numerics.quantized:
        return Int8Linear(weight, bias, activation, fine=fine)
    packed = weight.device.type == "cpu" and weight.dtype == torch.float32
    packed = packed and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return (PackedLinear if packed else PlainLinear)(weight, bias, activation)


def fuse(*weights: torch.Tensor) -> torch.Tensor:
    """One weight (or bias) for several projections of the same input: [sum of outs, in]."""
    return torch.cat(weights)
