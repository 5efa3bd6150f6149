"""What a precision means: types of weights, activations and caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from generator_svc.models.precision import Precision


@dataclass(frozen=True)
class Numerics:
    """Types of activations (and of all weights that are not quantized), and of the documents' keys and values."""

    activations: torch.dtype
    documents: torch.dtype
    embeddings: torch.dtype  # of the table that tokens are looked up in; rows are converted to `activations`
    quantized: bool = False  # the weights of linear maps are int8, their inputs quantized row by row


NUMERICS: dict[Precision, Numerics] = {
    "float32": Numerics(torch.float32, torch.float32, torch.float32),
    "int8": Numerics(torch.float32, torch.float16, torch.float16, quantized=True),
    "bfloat16": Numerics(torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "float16": Numerics(torch.float16, torch.float16, torch.float16),
}
FLOAT32 = NUMERICS["float32"]
