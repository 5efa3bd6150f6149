from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers.activations import ACT2FN

from generator_svc.models.linear import ACTIVATIONS, PackedLinear, PlainLinear, check_activation
from ragserve.activations import LEARNED
from ragserve.errors import FailedPreconditionError

# MB that 200 numbers of rows, each with six products, add to a process that has made its first ones.
PROGRAM = """
from ragserve.serving.memory import keep_few_products
keep_few_products()
import re, torch
from pathlib import Path
from generator_svc.models.linear import PackedLinear
torch.set_num_threads(1)
shapes = [(32 * outputs, 32, activation) for activation in ("none", "gelu") for outputs in (1, 2, 3)]
products = [PackedLinear(torch.zeros(out, width), torch.zeros(out), activation) for out, width, activation in shapes]
def memory(rows):
    for product in products:
        product(torch.zeros(rows, 32))
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = memory(1)
print((max(map(memory, range(2, 202))) - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_numbers_of_rows_take_little_memory() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 300  # 150 here, and 500 with what oneDNN and ideep keep by themselves


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
    for name in ("glug", *LEARNED):
        with pytest.raises(FailedPreconditionError, match=name):
            check_activation(name)


def test_every_activation_of_transformers_without_weights_is_served() -> None:
    x = torch.linspace(-6, 6, 200)[None]
    for name in ACT2FN:
        has_weights = isinstance(ACT2FN[name], torch.nn.Module) and any(True for _ in ACT2FN[name].parameters())
        assert has_weights == (name in LEARNED), name
        if not has_weights:
            torch.testing.assert_close(ACTIVATIONS[check_activation(name)](x), ACT2FN[name](x), atol=1e-5, rtol=1e-5)
