"""Reads the weights of a Hugging Face directory, in one file or in shards."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ragserve.errors import DataLossError, FailedPreconditionError, NotFoundError
from ragserve.files import exists, file_error, file_errors, is_about_access, parse_json, require_file
from ragserve.printable import counted

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX_MISSING = "shards without their index: download {} too"
CONVERT = "with transformers 4, load it with {}=True and save it as safetensors"
OTHER_WEIGHTS = {
    "model-*-of-*.safetensors": INDEX_MISSING.format(f"{SAFETENSORS}.index.json"),
    "pytorch_model-*-of-*.bin": INDEX_MISSING.format(f"{PICKLE}.index.json"),
    "tf_model.h5": f"weights of TensorFlow: {CONVERT.format('from_tf')}",
    "flax_model.msgpack": f"weights of Flax: {CONVERT.format('from_flax')}",
    "*.gguf": "weights in llama.cpp's format: take the checkpoint that they were made from",
    "adapter_model.*": "an adapter's weights: merge them into the base model and save the whole",
    "*.safetensors": f"safetensors of another name: rename the file to {SAFETENSORS} if it is the model",
}
LFS_POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not downloaded yet


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the file (or index of shards) they are from."""

    path: Path
    tensors: dict[str, torch.Tensor]

    def below(self, *prefixes: str) -> Weights:
        """The tensors whose name starts with the first of `prefixes` that occurs, without that prefix.

        Raises:
            FailedPreconditionError: no tensor has any of them.
        """
        for prefix in prefixes:
            part = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
            if part:
                return Weights(self.path, part)
        raise FailedPreconditionError(
            f"{self.path} has no weight whose name starts with {' or '.join(prefixes)}: not a RAG checkpoint",
            field=str(self.path),
        )


def find_weights(directory: Path) -> Path:
    """The file that holds the weights: safetensors before pickle, one file before an index of shards.

    Raises:
        NotFoundError: there is none.
    """
    for name in (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json"):
        if exists(directory / name, Path.is_file):
            return directory / name
    raise NotFoundError(
        f"{directory} has no weights: neither {SAFETENSORS} nor {PICKLE}{_other_weights(directory)}",
        field=str(directory),
    )


def _other_weights(directory: Path) -> str:
    """What a directory without readable weights holds instead, and what to do about it."""
    for pattern, what in OTHER_WEIGHTS.items():
        if names := sorted(path.name for path in directory.glob(pattern)):
            return f", only {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
    return ": download the whole checkpoint"


def read_weights(directory: Path, *, allow_pickle: bool) -> Weights:
    """Read all tensors of a directory.

    Raises:
        NotFoundError: a file is missing.
        FailedPreconditionError: the weights are a pickle and `allow_pickle` is not set, or an index cannot be read.
        DataLossError: a file is truncated or damaged.
    """
    path = find_weights(directory)
    tensors: dict[str, torch.Tensor] = {}
    for file in _shards(path) if path.suffix == ".json" else [path]:
        require_file(file, "get it again")
        _check_downloaded(file)
        tensors.update(_read_pickle(file, allow_pickle) if file.suffix == ".bin" else _read_safetensors(file))
    return Weights(path, tensors)


def _shards(index: Path) -> list[Path]:
    """The files that an index names; each must lie next to it."""
    try:
        with file_errors("read", index):
            text = index.read_text(encoding="utf-8")
        names = sorted({str(name) for name in parse_json(text)["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FailedPreconditionError(f"{index} is not an index of weights: {error}", field=str(index)) from error
    paths = [index.parent / name for name in names]
    missing = [path for path in paths if path.parent != index.parent or not exists(path, Path.is_file)]
    if missing:
        raise NotFoundError(
            f"{missing[0]} is missing, and {index.name} lists it. Missing are {len(missing)} of "
            f"{counted(len(paths), 'shard')}: download the whole checkpoint",
            field=str(missing[0]),
        )
    return paths


def _check_downloaded(path: Path) -> None:
    """Raises DataLossError for the text that Git LFS puts in place of a file that is not downloaded."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise DataLossError(f"{path} is a pointer of Git LFS, not the weights: run 'git lfs pull'", field=str(path))


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        if is_about_access(error):
            raise file_error(error, "read", path) from error
        raise DataLossError(
            f"{path} is truncated or not a safetensors file ({error}): get it again", field=str(path)
        ) from error


def _read_pickle(path: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Tensors of a pickle, read with an unpickler that builds tensors and plain containers only."""
    if not allow_pickle:
        raise FailedPreconditionError(
            f"{path} is a pickle, which can hold code: save the checkpoint as safetensors, or pass --allow-pickle "
            "if you trust where it came from",
            field=str(path),
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AttributeError, ValueError) as error:
        if is_about_access(error):
            raise file_error(error, "read", path) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataLossError(f"{path} is truncated, or not a pickle of tensors ({reason})", field=str(path)) from error
