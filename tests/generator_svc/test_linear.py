from __future__ import annotations

import pytest
import torch

from generator_svc.models.linear import ACTIVATIONS, PackedLinear, PlainLinear, check_activation
from ragserve.errors import FailedPreconditionError


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 7])
def test_the_packed_kernel_equals_the_plain_one(activation: str, rows: int) -> None:
    torch.manual_seed(rows)
    weight, bias, x, residual = torch.randn(24, 16), torch.randn(24), torch.randn(rows, 16), torch.randn(rows, 24)
    for own_bias in (bias, None):
        plain, packed = PlainLinear(weight, own_bias, activation), PackedLinear(weight, own_bias, activation)
        torch.testing.assert_close(packed(x), plain(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(packed(x, residual), plain(x, residual), atol=1e-5, rtol=0)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="mish"):
        check_activation("mish")
