"""Reads a safetensors file as float32: float32, float16 and bfloat16 tensors, and int8 ones stored row-wise.

An int8 tensor NAME [rows, cols] comes with NAME.scale [rows, 1]; its value is NAME * NAME.scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ragserve.checkpoint import IMPORT_AGAIN
from ragserve.errors import DataLossError, FailedPreconditionError
from ragserve.files import file_error, is_about_access, require_file

BASE_PREFIX = "model."  # BART has it before all names but the head's, T5 never
SCALE_SUFFIX = ".scale"
CPU_FLOAT32 = (torch.device("cpu"), torch.float32)
MAPPED_BYTES = 64 * 2**20
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class TensorFile:
    """Tensors of a file, read one at a time: a model is never in memory twice.

    Raises, when made:
        NotFoundError: there is no such file.
        FailedPreconditionError: the file may not be read.
        DataLossError: the file is truncated or is not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        require_file(path, IMPORT_AGAIN)
        self.path = path
        self._read = 0  # bytes through the mapping that is open
        try:
            self._file: Any = self._open()
            names = set(self._file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            if is_about_access(error):
                raise file_error(error, "read", path) from error
            raise DataLossError(
                f"{path} is truncated or not a safetensors file ({error}): import the checkpoint again", field=str(path)
            ) from error
        scales = {name for name in names if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in names}
        self._with_scale = {name.removesuffix(SCALE_SUFFIX) for name in scales}
        self.names = frozenset(names - scales)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as float32 in memory of its own.

        Raises:
            FailedPreconditionError: it is of a type not known here, or an int8 tensor has no scale.
        """
        if self._read > MAPPED_BYTES:  # pages that were read stay with the process until they are unmapped
            self._file, self._read = self._open(), 0
        tensor: torch.Tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        if tensor.dtype in FLOAT_TYPES:
            return tensor.to(torch.float32, copy=True)
        if tensor.dtype != torch.int8 or name not in self._with_scale:
            raise FailedPreconditionError(
                f"{self.path}: tensor {name} is {tensor.dtype}; expected a float type, or int8 with "
                f"{name}{SCALE_SUFFIX}",
                field=str(self.path),
            )
        return tensor.float().mul_(self._file.get_tensor(name + SCALE_SUFFIX).float())

    def _open(self) -> Any:
        return safe_open(str(self.path), framework="pt").__enter__()  # type: ignore[no-untyped-call]


class WeightMap:
    """Hands out tensors by name, `model.` left off, and knows afterwards which were not asked for."""

    def __init__(self, file: TensorFile) -> None:
        self._names = {name.removeprefix(BASE_PREFIX): name for name in file.names}
        self._file = file
        self._source = file.path
        self._shared: dict[str, dict[tuple[torch.device, torch.dtype], torch.Tensor]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor of this name, for its one user.

        Raises:
            FailedPreconditionError: it is missing, or its shape is not the one that config.json implies.
        """
        if name not in self._names:
            raise FailedPreconditionError(f"{self._source}: tensor {name} is missing", field=str(self._source))
        tensor = self._file.read(self._names.pop(name))
        if tuple(tensor.shape) != shape:
            raise FailedPreconditionError(
                f"{self._source}: tensor {name} has shape {list(tensor.shape)}, config.json implies {list(shape)}",
                field=str(self._source),
            )
        return tensor

    def take_first(
        self, names: tuple[str, ...], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """The first of these tensors that is there, on a device and of a type.

        Tied weights are stored under one name: whoever asks for it gets the same tensor.
        """
        name = next((name for name in names if name in self._names or name in self._shared), names[0])
        if name not in self._shared:
            self._shared[name] = {CPU_FLOAT32: self.take(name, shape)}
        versions = self._shared[name]
        if (device, dtype) not in versions:
            versions[device, dtype] = versions[CPU_FLOAT32].to(device, dtype)
        return versions[device, dtype]

    def forget_shared(self) -> None:
        """Let go of tied weights: all their users have them."""
        self._shared.clear()

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Check that every tensor was used.

        Raises:
            FailedPreconditionError: names the tensors that this model has no place for.
        """
        unexpected = sorted(set(self._names) - set(ignored))
        if unexpected:
            shown = ", ".join(unexpected[:5]) + (f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else "")
            raise FailedPreconditionError(
                f"{self._source}: the model has no place for these tensors: {shown}", field=str(self._source)
            )
