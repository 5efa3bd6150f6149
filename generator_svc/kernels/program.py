"""Operators recorded once and run as one call of C: a decoder's layers without Python between their kernels.

`record` calls a function with a `Value` in place of a tensor, as torch lets tensor-like objects stand in (its
`__torch_function__`). What the function does with it is noted as a list of kernels, and where their results stand in
memory. `Program` runs that list: see program.c.
"""

from __future__ import annotations

import ctypes
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812

from generator_svc.kernels import native

LINEAR, LAYER_NORM, RMS_NORM, MULTIPLY, PATHS, DOCUMENTS = range(6)
INT, ADDRESS = ctypes.c_int64, ctypes.c_void_p

log = logging.getLogger(__name__)


class _Linear(ctypes.Structure):
    _fields_ = (
        *[(name, INT) for name in ("inputs", "outputs", "beside", "fine", "activation")],
        *[(name, ADDRESS) for name in ("weight", "scale", "sums", "bias")],
    )


class _Op(ctypes.Structure):
    _fields_ = (
        *[(name, INT) for name in ("kind", "from_", "more", "to", "width", "layer")],
        ("linear", _Linear),
        ("norm_weight", ADDRESS),
        ("norm_bias", ADDRESS),
        ("eps", ctypes.c_double),
    )


class _Paths(ctypes.Structure):
    _fields_ = (
        *[(name, ADDRESS) for name in ("table", "lengths", "bias")],
        *[(name, INT) for name in ("rows", "longest", "heads", "dim")],
        ("scale", ctypes.c_float),
    )


class _Documents(ctypes.Structure):
    _fields_ = (
        *[(name, ADDRESS) for name in ("tokens", "starts")],
        *[(name, INT) for name in ("groups", "longest", "heads", "dim")],
        ("scale", ctypes.c_float),
        ("half", ctypes.c_int),
    )


class _Run(ctypes.Structure):
    _fields_ = (
        *[(name, INT) for name in ("rows", "threads", "width", "x_width")],
        ("x", ADDRESS),
        ("y", ADDRESS),
        ("paths", _Paths),
        ("caches", ADDRESS),
        ("documents", _Documents),
        ("addresses", ADDRESS),
    )


class Attend(Protocol):
    """Attention of rows to something; see `SelfAttention` and `CrossAttention`."""

    def attend(self, layer: int, x: torch.Tensor, /) -> torch.Tensor:
        """[n_rows, width] -> [n_rows, inner]."""


Function = Callable[[torch.Tensor, Attend, Attend], torch.Tensor]  # x, the rows' own paths, the documents


@dataclass(frozen=True)
class Heads:
    """Of every attention: their number, their width, and the scale of the products of queries and keys."""

    count: int
    dim: int
    scale: float


@dataclass(frozen=True)
class PathPlaces:
    """The paths of rows: `caches` are addresses [n_layers]; for the rest see `native.path_attention`."""

    caches: native.Addresses
    table: torch.Tensor  # int64 [n_rows, longest]
    lengths: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class DocumentPlaces:
    """The documents of groups of rows: `addresses` [n_layers, n_groups]; the rest as in `native.cross_attention`."""

    addresses: native.Addresses
    tokens: native.Addresses
    starts: native.Addresses
    half: bool


class NotRecordableError(Exception):
    """A function does something that no kernel here does."""


@dataclass(eq=False)
class Value:
    """Stands in for a tensor [n_rows, width] while a function is recorded."""

    tape: _Tape
    width: int

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Value:
        if function not in RECORDED:
            raise NotRecordableError(function)
        return RECORDED[function](*args, **(kwargs or {}))

    def __mul__(self, other: object) -> Value:
        if not isinstance(other, Value) or other.width != self.width:
            return NotImplemented
        return self.tape.note(MULTIPLY, self, other, self.width)


@dataclass(frozen=True)
class _Noted:
    kind: int
    inputs: tuple[Value, ...]
    result: Value
    fields: Mapping[str, Any]
    weights: object  # what the addresses in `fields` point into: kept as long as the program


@dataclass(eq=False)
class _Tape:
    """What was done with values, in order; `heads` of the attention."""

    heads: Heads
    noted: list[_Noted] = field(default_factory=list)

    def note(self, kind: int, x: Value, more: Value | None, width: int, weights: object = None, **fields: Any) -> Value:
        result = Value(self, width)
        self.noted.append(_Noted(kind, (x,) if more is None else (x, more), result, fields, weights))
        return result

    def places(self, x: Value) -> tuple[dict[Value, int], int]:
        """Where each value stands, in floats of a row, and how many these are: places are used again."""
        last_use = {value: i for i, noted in enumerate(self.noted) for value in noted.inputs}
        free: dict[int, list[int]] = defaultdict(list)
        places, total = {x: 0}, x.width
        for i, noted in enumerate(self.noted):
            width = noted.result.width
            if free[width]:
                places[noted.result] = free[width].pop()
            else:
                places[noted.result] = total
                total += width
            for value in {value for value in noted.inputs if last_use[value] == i}:
                free[value.width].append(places[value])
        return places, total


@dataclass(frozen=True)
class _Recorder:
    """Notes attention to the paths or to the documents."""

    kind: int

    def attend(self, layer: int, x: torch.Tensor, /) -> torch.Tensor:
        value = cast(Value, x)
        heads = value.tape.heads
        return cast(torch.Tensor, value.tape.note(self.kind, value, None, heads.count * heads.dim, layer=layer))


def _note_linear(product: native.Int8Product, x: Value, residual: Value | None = None) -> Value:
    weight, scale, sums, bias = product.fixed
    how = (product.inputs, product.outputs, product.beside, product.fine, product.activation)
    linear = _Linear(*how, weight, scale, sums, bias)
    return x.tape.note(LINEAR, x, residual, product.outputs, product, linear=linear)


def _note_layer_norm(
    x: Value, shape: Sequence[int], weight: torch.Tensor, bias: torch.Tensor, eps: float, **_: Any
) -> Value:
    given = {"norm_weight": weight.data_ptr(), "norm_bias": bias.data_ptr(), "eps": eps}
    return x.tape.note(LAYER_NORM, x, None, x.width, (weight.detach(), bias.detach()), **given)


def _note_rms_norm(x: Value, shape: Sequence[int], weight: torch.Tensor, eps: float) -> Value:
    return x.tape.note(RMS_NORM, x, None, x.width, weight.detach(), norm_weight=weight.data_ptr(), eps=eps)


RECORDED: dict[Any, Callable[..., Value]] = {
    native.Int8Product.__call__: _note_linear,
    F.layer_norm: _note_layer_norm,
    F.rms_norm: _note_rms_norm,
}


def record(function: Function, width: int, heads: Heads) -> Program | None:
    """A program for a function of x [n_rows, width]; None where it does something that no kernel does.

    A function may use any operator, attribute or method of tensors. A `Value` lacks most of them, so what such a
    function raises can be of any kind: it only means that there is no program. A function with a real fault raises it
    again when it is run on tensors.

    What the function does last is its result. The program keeps the weights that the function read: their memory at
    the time, so one that is replaced later stays as it was.
    """
    tape = _Tape(heads)
    x = Value(tape, width)
    try:
        function(cast(torch.Tensor, x), _Recorder(PATHS), _Recorder(DOCUMENTS))
    except Exception as error:
        log.debug("the layers run operator by operator: no kernel for %r", error)
        return None
    return Program(tape, x)


class Program:
    """A recorded function of float32 rows on a CPU; `width` is what a row takes of memory meanwhile, in floats."""

    def __init__(self, tape: _Tape, x: Value) -> None:
        places, self.width = tape.places(x)
        self._heads = tape.heads
        self._weights = [noted.weights for noted in tape.noted]
        self._widths = (x.width, tape.noted[-1].result.width)
        self._ops = (_Op * len(tape.noted))()
        for op, noted in zip(self._ops, tape.noted, strict=True):
            more = noted.inputs[1] if len(noted.inputs) > 1 else None
            op.kind, op.width = noted.kind, noted.result.width
            op.from_, op.to = places[noted.inputs[0]], places[noted.result]
            op.more = -1 if more is None else places[more]
            for name, value in noted.fields.items():
                setattr(op, name, value)

    def __call__(self, x: torch.Tensor, paths: PathPlaces, documents: DocumentPlaces) -> torch.Tensor:
        """X [n_rows, width] -> [n_rows, width of the result].

        Raises:
            MemoryError: there is none for the values.
        """
        x = x.contiguous()
        y = torch.empty(x.shape[0], self._widths[1])
        heads = (self._heads.count, self._heads.dim, self._heads.scale)
        bias = None if paths.bias is None else paths.bias.data_ptr()
        run = _Run(
            rows=x.shape[0],
            threads=torch.get_num_threads(),
            width=self.width,
            x_width=self._widths[0],
            x=x.data_ptr(),
            y=y.data_ptr(),
            paths=_Paths(paths.table.data_ptr(), paths.lengths.data_ptr(), bias, *paths.table.shape, *heads),
            caches=paths.caches.ctypes.data,
            documents=_Documents(
                documents.tokens.ctypes.data,
                documents.starts.ctypes.data,
                len(documents.tokens),
                int(documents.tokens.max()),
                *heads,
                int(documents.half),
            ),
            addresses=documents.addresses.ctypes.data,
        )
        native.run_program(ctypes.addressof(self._ops), len(self._ops), ctypes.addressof(run))
        return y
