"""The C kernels as Python functions over tensors. Built with the package; None where they cannot run.

They share torch's OpenMP pool: torch is loaded first, and brings the library that both are linked to.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

Addresses = npt.NDArray[np.int64]

MODULE = f"{__package__}._native"
ALIGNED = 8  # floats of one vector: widths of heads must be multiples of it
GROUP, FINE_GROUP = 128, 64  # inputs that are quantized together
BLOCK = 512  # tokens whose largest marginal is kept
PANEL = 16  # outputs of a packed weight are padded to whole panels
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_new": 3, "gelu_pytorch_tanh": 3, "silu": 4, "swish": 4}
ADDRESS, COUNT, FLAG, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "choose_vnni": ([FLAG], FLAG),
    "group_count": ([COUNT, COUNT], COUNT),
    "packed_bytes": ([COUNT, COUNT], COUNT),
    "pack_int8": ([ADDRESS, COUNT, COUNT, COUNT, ADDRESS, ADDRESS], COUNT),
    "linear_int8": ([ADDRESS, *[COUNT] * 5, *[ADDRESS] * 6, FLAG, FLAG], FLAG),
    "cross_attention": ([*[ADDRESS] * 5, COUNT, COUNT, COUNT, REAL, FLAG, FLAG], FLAG),
    "document_attention": ([*[ADDRESS] * 4, COUNT, COUNT, COUNT, COUNT, REAL, FLAG], FLAG),
    "path_attention": ([*[ADDRESS] * 6, COUNT, COUNT, COUNT, COUNT, REAL, FLAG], FLAG),
    "log_norms": ([ADDRESS, COUNT, COUNT, ADDRESS, FLAG], FLAG),
    "score_tokens": ([ADDRESS, FLAG], FLAG),
    "select_tokens": ([ADDRESS, ADDRESS, COUNT, COUNT, ADDRESS, ADDRESS], FLAG),
    "run_program": ([ADDRESS, COUNT, ADDRESS], FLAG),
}

log = logging.getLogger(__name__)


@cache
def library() -> Any:
    """The kernels; None where they were not built (no C compiler, not x86-64) or the processor lacks AVX2."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        log.warning("the C kernels are not here: slower ones of torch take their place")
        return None
    loaded = ctypes.CDLL(spec.origin)
    for name, (arguments, result) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, result
    loaded.choose_vnni(True)
    return loaded


class Int8Product:
    """`activation(x @ (weight * scale).T + bias) + residual`, weight int8 [out, in] of -63..63, scale [out].

    A `fine` one has weights of -127..127 and quantizes 64 inputs together instead of 128.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        activation: str,
        *,
        fine: bool = False,
    ) -> None:
        self._library = library()
        self.fine = int(fine)
        self.outputs, self.inputs = weight.shape
        self.activation = ACTIVATIONS[activation]
        weight = weight.contiguous()
        packed = torch.empty(self._library.packed_bytes(self.outputs, self.inputs), dtype=torch.int8)
        scale = self._padded(scale)
        sums = torch.empty(self._library.group_count(self.inputs, self.fine), len(scale))
        given, to = (weight.data_ptr(), self.outputs, self.inputs, self.fine), (packed.data_ptr(), sums.data_ptr())
        self.beside: int = self._library.pack_int8(*given, *to)  # how weights are laid out
        self._kept = (packed, scale, sums, None if bias is None else self._padded(bias))
        self.fixed = [None if tensor is None else tensor.data_ptr() for tensor in self._kept]  # addresses

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """X [rows, in], residual [rows, out] -> [rows, out]."""
        if has_torch_function_unary(x):
            recorded: torch.Tensor = handle_torch_function(Int8Product.__call__, (x,), self, x, residual)
            return recorded
        x = x.contiguous()
        y = torch.empty(x.shape[0], self.outputs)
        more = None if residual is None else residual.contiguous()
        _check(
            self._library.linear_int8(
                x.data_ptr(),
                x.shape[0],
                self.inputs,
                self.outputs,
                self.beside,
                self.fine,
                *self.fixed,
                None if more is None else more.data_ptr(),
                y.data_ptr(),
                self.activation,
                torch.get_num_threads(),
            )
        )
        return y

    def _padded(self, values: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(-(-self.outputs // PANEL) * PANEL)
        padded[: self.outputs] = values
        return padded


def cross_attention(
    query: torch.Tensor,
    documents: Addresses,
    tokens: Addresses,
    starts: Addresses,
    dim: int,
    scale: float,
    *,
    half: bool,
) -> torch.Tensor:
    """Attention of query [n_rows, inner] over documents; rows `starts[g]` to `starts[g + 1]` belong to document g.

    `documents` are the addresses of contiguous [2, n_heads, tokens[g], dim], float16 where `half`, else float32.
    """
    query = query.contiguous()
    y = torch.empty_like(query)
    _check(
        library().cross_attention(
            query.data_ptr(),
            y.data_ptr(),
            documents.ctypes.data,
            tokens.ctypes.data,
            starts.ctypes.data,
            len(tokens),
            query.shape[1] // dim,
            dim,
            scale,
            int(half),
            torch.get_num_threads(),
        )
    )
    return y


def document_attention(
    qkv: torch.Tensor, starts: Addresses, longest: int, dim: int, scale: float, bias: torch.Tensor | None
) -> torch.Tensor:
    """Attention of qkv [n_tokens, 3 * inner] within documents, of which each has tokens `starts[i]` to `starts[i + 1]`.

    `longest` is the length of the longest one, `bias` is [n_heads, longest, longest]. Returns [n_tokens, inner].
    """
    qkv = qkv.contiguous()
    inner = qkv.shape[1] // 3
    y = torch.empty(qkv.shape[0], inner)
    more = None if bias is None else bias.contiguous()
    _check(
        library().document_attention(
            qkv.data_ptr(),
            y.data_ptr(),
            starts.ctypes.data,
            None if more is None else more.data_ptr(),
            len(starts) - 1,
            longest,
            inner // dim,
            dim,
            scale,
            torch.get_num_threads(),
        )
    )
    return y


def path_attention(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    dim: int,
    scale: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of qkv [n_rows, 3 * inner] over slots of the cache [n_slots, 2 * inner]; writes the rows' own first.

    `table` int64 [n_rows, longest] holds the slots of each row's path, `lengths` [n_rows] how many of them, its own
    last; `bias` is [n_rows, n_heads, 1, longest]. Returns [n_rows, inner].
    """
    qkv = qkv.contiguous()
    inner = cache.shape[1] // 2
    y = torch.empty(qkv.shape[0], inner)
    _check(
        library().path_attention(
            qkv.data_ptr(),
            y.data_ptr(),
            cache.data_ptr(),
            table.data_ptr(),
            lengths.data_ptr(),
            None if bias is None else bias.data_ptr(),
            *table.shape,
            inner // dim,
            dim,
            scale,
            torch.get_num_threads(),
        )
    )
    return y


def log_norms(logits: torch.Tensor) -> torch.Tensor:
    """Logarithms of the sums of exponentials over the last dimension: logits [..., vocab] -> [...]."""
    logits = logits.contiguous()
    norms = torch.empty(logits.shape[:-1])
    address, threads = norms.data_ptr(), torch.get_num_threads()
    _check(library().log_norms(logits.data_ptr(), norms.numel(), logits.shape[-1], address, threads))
    return norms


class _Scores(ctypes.Structure):
    """See kernels.h."""

    _fields_ = (
        *((name, COUNT) for name in ("docs", "hypotheses", "vocab")),
        *((name, ADDRESS) for name in ("logits", "priors", "banned", "starts", "norms", "marginal", "peaks", "masses")),
    )


class TokenScores:
    """A step's logits [n_docs, n_hypotheses, vocab], normalized and summed over documents.

    `log_norms` [n_docs, n_hypotheses], `marginal` [n_hypotheses, vocab] with banned tokens at -inf, `log_masses`
    [n_hypotheses]: of the allowed tokens.
    """

    def __init__(
        self, logits: torch.Tensor, log_priors: torch.Tensor | None, banned: Sequence[tuple[int, ...]]
    ) -> None:
        n_docs, n_hypotheses, vocab = logits.shape
        self.logits = logits.contiguous()
        self.log_norms = np.empty((n_docs, n_hypotheses), np.float32)
        self.marginal = torch.empty(n_hypotheses, vocab)
        self.log_masses = np.empty(n_hypotheses, np.float32)
        peaks = np.empty((n_hypotheses, -(-vocab // BLOCK)), np.float32)
        ids = np.array([token for own in banned for token in sorted(own)], np.int64)
        starts = np.array([0, *itertools.accumulate(map(len, banned))], np.int64)
        priors = None if log_priors is None else log_priors.contiguous()
        arrays = (priors, ids, starts, self.log_norms, self.marginal, peaks, self.log_masses)
        self._kept = arrays
        self._scores = _Scores(n_docs, n_hypotheses, vocab, self.logits.data_ptr(), *map(_address, arrays))
        _check(library().score_tokens(ctypes.byref(self._scores), torch.get_num_threads()))

    def best(self, hypotheses: Sequence[int], count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The `count` best allowed tokens by falling marginal, ties by rising id; `count` is meant to be small.

        Ids [n, count], -1 where fewer are allowed, and their log-probabilities [n, n_docs, count].
        """
        chosen = np.array(hypotheses, np.int64)
        ids = np.empty((len(chosen), count), np.int32)
        log_probs = np.empty((len(chosen), len(self.logits), count), np.float32)
        given, to = (ctypes.byref(self._scores), _address(chosen)), (_address(ids), _address(log_probs))
        _check(library().select_tokens(*given, len(chosen), count, *to))
        return ids, log_probs


def _address(values: npt.NDArray[Any] | torch.Tensor | None) -> int | None:
    if values is None:
        return None
    return values.data_ptr() if isinstance(values, torch.Tensor) else values.ctypes.data


def run_program(ops: int, count: int, run: int) -> None:
    """Run kernels one after the other; the addresses of a list of `Op` and of a `Run`, see program.c."""
    _check(library().run_program(ops, count, run))


def sums_usable(logits: torch.Tensor) -> bool:
    """Whether `log_norms` and `TokenScores` can run."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and library() is not None


def usable(dim: int, *tensors: torch.Tensor) -> bool:
    """Whether the attention kernels can run: heads of this width, tensors on CPU of types that they read."""
    fits = all(tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float16) for tensor in tensors)
    return fits and dim % ALIGNED == 0 and library() is not None


def _check(status: int) -> None:
    if status:
        raise MemoryError("no memory for a kernel's buffers")
