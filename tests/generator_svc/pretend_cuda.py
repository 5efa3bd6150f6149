"""Pretends that there is a GPU: tensors that say they are on cuda, and whose numbers are on the CPU.

An operator that mixes the two devices, as CUDA would not, is refused. So is what waits for the device, or depends on
what is in its memory, while `waiting` is False. `Tape` stands in for a CUDA graph: it keeps the operators of a
capture with the memory that they read and wrote, and its replay does just these again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from generator_svc.gpu.kernels import Paths, Selected, Selection, Tiles, TorchKernels
from generator_svc.models.base import DocumentState, Shape

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2, aten.equal}
HOST_INDEXED = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}  # take indices on the CPU, and wait


class OnCuda(torch.Tensor):
    """A tensor whose `elem` is on the CPU and which says that it is on CUDA."""

    elem: torch.Tensor
    is_cuda = True

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> OnCuda:
        with torch.utils._python_dispatch._disable_current_modes():
            shell = torch.empty_strided(elem.size(), elem.stride(), dtype=elem.dtype, device="meta")
        made: OnCuda = torch.Tensor._make_subclass(
            cls, shell, False, dispatch_device=True, device_for_backend_keys=CUDA
        )
        made.elem = elem
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def item(self) -> Any:
        _wait("item")
        return self.elem.item()

    def tolist(self) -> Any:
        _wait("tolist")
        return self.elem.tolist()

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __invert__(self) -> torch.Tensor:
        return torch.bitwise_not(self)

    def __bool__(self) -> bool:
        return bool(self.item())

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> OnCuda:  # type: ignore[override]
        _copied(aten.copy_.default, (self, source, non_blocking), {})
        _taped(torch.Tensor.copy_, self.elem, on_host(source))
        return self

    def nonzero(self, **_: Any) -> OnCuda:  # type: ignore[override]
        _wait("nonzero")
        return OnCuda(self.elem.nonzero())

    def contiguous(self, **_: Any) -> OnCuda:
        return self if self.elem.is_contiguous() else OnCuda(_taped(torch.Tensor.contiguous, self.elem))

    def is_contiguous(self, **_: Any) -> bool:
        return self.elem.is_contiguous()

    def __getitem__(self, key: Any) -> OnCuda:
        return OnCuda(_taped(_get, self.elem, _key(key)))

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.dim() and not isinstance(value, OnCuda):
            raise RuntimeError("a value on the CPU for a tensor on cuda:0")
        _taped(torch.Tensor.__setitem__, self.elem, _key(key), on_host(value))

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({self.elem})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with Pretend():
            return _dispatch(func, args, kwargs or {})


class State:
    """What the pretended device is doing."""

    waiting = True
    tape: Tape | None = None
    pinned: ClassVar[set[int]] = set()  # where it begins
    waits: ClassVar[list[str]] = []


class Tape:
    """The operators of a capture."""

    def __init__(self) -> None:
        self.steps: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def replay(self) -> None:
        """Do them again, in the same memory."""
        for call, args, kwargs, out in self.steps:
            again = call(*args, **kwargs)
            for new, old in zip(_tensors(again), _tensors(out), strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def _get(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    return tensor[key]


def _taped(call: Callable[..., Any], *args: Any) -> Any:
    """Does what the pretended device is asked for."""
    with torch.utils._python_dispatch._disable_current_modes():
        out = call(*args)
    if State.tape is not None:
        State.tape.steps.append((call, args, {}, out))
    return out


def _key(key: Any) -> Any:
    """An index, which waits where it is on the CPU or is a mask."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if isinstance(part, torch.Tensor) and (not isinstance(part, OnCuda) or part.dtype is torch.bool):
            _wait("an index on the CPU, or a mask,")
    return tuple(map(on_host, parts)) if isinstance(key, tuple) else on_host(key)


def _tensors(out: Any) -> list[torch.Tensor]:
    return [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _wait(what: str) -> None:
    if not State.waiting:
        raise RuntimeError(f"{what} waits for the device")
    State.waits.append(what)


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Operators made of others come undivided in inference mode."""
    if func is torch.ops.prim.device.default:
        return args[0].device
    if func.overloadpacket is aten.to:
        return _to(func, args, kwargs)
    out = func.decompose(*args, **kwargs)
    return _compute(func, args, kwargs) if out is NotImplemented else out


def _to(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Its own decomposition asks for a driver."""
    given = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
    tensor, other = given["self"], given.get("other")
    device = given.get("device") if other is None else other.device
    dtype = (given.get("dtype") if other is None else other.dtype) or tensor.dtype
    device = tensor.device if device is None else torch.device(device)
    if (device.type, dtype) == (tensor.device.type, tensor.dtype) and not given.get("copy"):
        return tensor
    return aten._to_copy(tensor, dtype=dtype, device=CUDA if device.type == "cuda" else device)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    packet = func.overloadpacket
    seen: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, seen.append, (args, kwargs))
    ours = [x for x in seen if isinstance(x, OnCuda)]
    others = [x for x in seen if not isinstance(x, OnCuda) and x.dim() > 0]
    target = kwargs.get("device")
    to_cuda = _is_cuda(target) or (target is None and bool(ours))
    if packet in WAITS and ours:
        _wait(str(func))
    copies = packet in (aten._to_copy, aten.copy_)
    if packet in HOST_INDEXED and ours and others and isinstance(args[0], OnCuda):
        _wait(f"{func} with indices on the CPU")
    elif ours and others and not copies:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu")
    if copies:
        to_cuda = _copied(func, args, kwargs)
    elem_args, elem_kwargs = tree_map_only(OnCuda, lambda x: x.elem, (args, kwargs))
    if elem_kwargs.get("device") is not None:
        elem_kwargs["device"] = CPU
    pinned = bool(elem_kwargs.pop("pin_memory", None))
    with torch.utils._python_dispatch._disable_current_modes():
        out = func(*elem_args, **elem_kwargs)
        if State.tape is not None and (ours or to_cuda):
            State.tape.steps.append((func, elem_args, elem_kwargs, out))
    if pinned:
        State.pinned.add(out.untyped_storage().data_ptr())
    if not to_cuda:
        return out
    for given in ours:  # in place: the same tensor
        if out is given.elem:
            return given
    return tree_map_only(torch.Tensor, OnCuda, out)


def _copied(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the result of a copy is on CUDA; copies between the devices wait unless they are from pinned memory."""
    if func.overloadpacket is aten._to_copy:
        source = isinstance(args[0], OnCuda)
        target = _is_cuda(kwargs["device"]) if kwargs.get("device") is not None else source
        if source != target:
            _wait(f"{func}")
        return target
    target, source = isinstance(args[0], OnCuda), isinstance(args[1], OnCuda)
    if target != source and args[1].dim():
        host = args[1] if target else args[0]
        free = len(args) > 2 and args[2] and host.untyped_storage().data_ptr() in State.pinned
        if not free:
            _wait(f"{func} with memory that is not pinned")
    return target


class Pretend(TorchDispatchMode):
    """Within it factories give tensors that say they are on CUDA where that is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            return _dispatch(func, args, kwargs or {})


@contextmanager
def without_waiting() -> Iterator[None]:
    """Nothing may wait for the device."""
    State.waiting = False
    try:
        yield
    finally:
        State.waiting = True


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """In place of `GraphCapture`."""
    State.tape = tape = Tape()
    try:
        with without_waiting():
            function()
    finally:
        State.tape = None
    return tape.replay


def on_host(x: Any) -> Any:
    """The memory itself of tensors, also within dataclasses of them."""
    if isinstance(x, OnCuda):
        return x.elem
    if isinstance(x, Paths | Tiles | Selection | Selected):
        return type(x)(**{name: on_host(value) for name, value in vars(x).items()})
    return x


class TwinKernels:
    """The twins, as kernels on the pretended device."""

    def __init__(self) -> None:
        self._twin = TorchKernels()

    def expect(self, documents: dict[int, DocumentState]) -> None:
        self._twin.expect({at: DocumentState(tuple(map(on_host, state.layers))) for at, state in documents.items()})

    def _launch(self, call: Callable[..., Any], *args: Any) -> Any:
        checked: list[Any] = []
        for arg in args:
            checked += vars(arg).values() if isinstance(arg, Paths | Tiles | Selection | Selected) else [arg]
        assert all(isinstance(x, OnCuda) for x in checked if isinstance(x, torch.Tensor)), "a pointer to the CPU"
        given = tuple(map(on_host, args))
        out = _taped(call, *given)
        return None if out is None else OnCuda(out)

    def own(self, qkv: torch.Tensor, slots: torch.Tensor, paths: Paths, bias: Any, shape: Shape) -> torch.Tensor:
        return self._launch(self._twin.own, qkv, slots, paths, bias, shape)

    def documents(self, query: torch.Tensor, layer: int, tiles: Tiles, shape: Shape) -> torch.Tensor:
        return self._launch(self._twin.documents, query, layer, tiles, shape)

    def select(self, logits: torch.Tensor, selection: Selection, selected: Selected) -> None:
        self._launch(self._twin.select, logits, selection, selected)


class Stream:
    """Everything on it is done."""

    def synchronize(self) -> None:
        _wait("synchronize")


@contextmanager
def thread() -> Iterator[None]:
    """Within this the thread may use the pretended device."""
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes its tensor on the CPU, and moves it
    try:
        # Not in inference mode torch asks for a driver before it asks the mode.
        with torch.inference_mode(), Pretend():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


@contextmanager
def pretended(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within this `cuda` is a device, for this thread."""
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    patch.setattr(torch.cuda, "current_stream", Stream)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    with thread():
        yield
