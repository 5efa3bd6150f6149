"""Reads a safetensors file as float32: float32, float16 and bfloat16 tensors, and int8 ones stored row-wise.

An int8 tensor NAME [rows, cols] comes with NAME.scale [rows, 1]; its value is NAME * NAME.scale.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ragserve.errors import DataLossError, FailedPreconditionError, NotFoundError

BASE_PREFIX = "model."  # BART has it before all names but the head's, T5 never
SCALE_SUFFIX = ".scale"
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, as float32.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: the file is truncated or is not a safetensors file.
        FailedPreconditionError: a tensor is of a type not known here, or an int8 tensor has no scale.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is missing: import the checkpoint again", field=str(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            raw: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataLossError(
            f"{path} is truncated or not a safetensors file ({error}): import the checkpoint again", field=str(path)
        ) from error
    scales = {name for name in raw if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in raw}
    return {name: _as_float32(name, raw, path) for name in raw if name not in scales}


def _as_float32(name: str, raw: dict[str, torch.Tensor], path: Path) -> torch.Tensor:
    tensor = raw[name]
    if tensor.dtype in FLOAT_TYPES:
        return tensor.float()
    scale = raw.get(name + SCALE_SUFFIX)
    if tensor.dtype != torch.int8 or scale is None:
        raise FailedPreconditionError(
            f"{path}: tensor {name} is {tensor.dtype}; expected a float type, or int8 with {name}{SCALE_SUFFIX}",
            field=str(path),
        )
    return tensor.float() * scale.float()


class WeightMap:
    """Hands out tensors by name, `model.` left off, and knows afterwards which were not asked for."""

    def __init__(self, tensors: dict[str, torch.Tensor], source: Path) -> None:
        self._tensors = {name.removeprefix(BASE_PREFIX): tensor for name, tensor in tensors.items()}
        self._source = source
        self._shared: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor of this name, handed over: the map lets go of it, so that two copies of a model never exist.

        Raises:
            FailedPreconditionError: it is missing, or its shape is not the one that config.json implies.
        """
        if name not in self._tensors:
            raise FailedPreconditionError(f"{self._source}: tensor {name} is missing", field=str(self._source))
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise FailedPreconditionError(
                f"{self._source}: tensor {name} has shape {list(tensor.shape)}, config.json implies {list(shape)}",
                field=str(self._source),
            )
        del self._tensors[name]
        return tensor

    def take_first(self, names: tuple[str, ...], shape: tuple[int, ...]) -> torch.Tensor:
        """The first of these tensors that is there, and it stays: tied weights are stored under one of their names."""
        for name in names:
            if name in self._tensors:
                tensor = self.take(name, shape)
                self._tensors[name] = tensor
                self._shared.add(name)
                return tensor
        return self.take(names[0], shape)

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Check that every tensor was used.

        Raises:
            FailedPreconditionError: names the tensors that this model has no place for.
        """
        unexpected = sorted(set(self._tensors) - self._shared - set(ignored))
        if unexpected:
            shown = ", ".join(unexpected[:5]) + (f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else "")
            raise FailedPreconditionError(
                f"{self._source}: the model has no place for these tensors: {shown}", field=str(self._source)
            )
