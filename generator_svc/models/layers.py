"""Runs a decoder's layers: as one call of C where everything in them has a kernel, else one operator at a time."""

from __future__ import annotations

import torch

from generator_svc.kernels import native
from generator_svc.kernels.program import Function, Heads, Program, record
from generator_svc.models.base import CrossAttention, SelfAttention, Shape


class DecoderLayers:
    """Layers as a function of rows [n_rows, width], their own past and their documents.

    On a CPU int8 has a kernel for everything, but not for most activation functions: those layers run operator by
    operator.
    """

    def __init__(self, layers: Function, width: int, shape: Shape) -> None:
        self._layers = layers
        self._program: Program | None = None
        if shape.numerics.quantized and native.usable(shape.head_dim):
            self._program = record(layers, width, Heads(shape.n_heads, shape.head_dim, shape.scale))

    def __call__(self, x: torch.Tensor, attention: SelfAttention, documents: CrossAttention) -> torch.Tensor:
        """[n_rows, width] -> [n_rows, width]."""
        if self._program is not None:
            own, theirs = attention.places, documents.places
            if own is not None and theirs is not None:
                return self._program(x, own, theirs)
        return self._layers(x, attention, documents)
