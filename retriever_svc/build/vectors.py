"""Vectors that were computed elsewhere: a NumPy file, or the pickles of DPR's `generate_dense_embeddings.py`."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragserve.errors import InvalidInputError
from ragserve.reasons import reason_of
from retriever_svc.types import Float32, Int64, usable_rows

CHECK_ROWS = 4096  # read together: 12 MB at 768 float32 values
PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True)
class VectorFile:
    """Vectors of one number type, [rows, dim], row after row from `offset` bytes on. Read, never mapped."""

    path: Path
    rows: int
    dimension: int
    dtype: str
    offset: int

    def read(self, start: int, stop: int) -> NDArray[np.floating[Any]]:
        """The vectors of rows `start` to `stop`, [stop - start, dim]."""
        dtype = np.dtype(self.dtype)
        skipped = self.offset + start * self.dimension * dtype.itemsize
        values = np.fromfile(self.path, dtype, count=(stop - start) * self.dimension, offset=skipped)
        return values.reshape(stop - start, self.dimension)

    def take(self, rows: Int64) -> NDArray[np.floating[Any]]:
        """The vectors of ascending rows that are close together, [n_rows, dim]."""
        first = int(rows[0])
        return self.read(first, int(rows[-1]) + 1)[rows - first]

    def unusable(self) -> Iterator[int]:
        """The rows that hold NaN, an infinite value or one beyond LARGEST."""
        for start in range(0, self.rows, CHECK_ROWS):
            block = self.read(start, min(start + CHECK_ROWS, self.rows))
            yield from (start + np.flatnonzero(~usable_rows(block))).tolist()


def embedding_files(embeddings: Sequence[Path], allow_pickle: bool) -> tuple[Path, ...]:
    """The files of embeddings: one `.npy`, or pickles (a directory stands for its pickles, in order of their numbers).

    Raises:
        InvalidInputError: a file is missing or of another kind, or pickles are not allowed.
    """
    files = [file for path in embeddings for file in (_pickles_in(path) if path.is_dir() else [path])]
    if not files:
        raise InvalidInputError(
            "embeddings", f"{', '.join(map(str, embeddings))}: no {' or '.join(PICKLES)} files there"
        )
    for file in files:
        if not file.is_file():
            raise InvalidInputError("embeddings", f"{file} does not exist or is not a file")
        if file.suffix not in (".npy", *PICKLES):
            raise InvalidInputError("embeddings", f"{file}: the name must end in .npy or {' or '.join(PICKLES)}")
        if file.suffix in PICKLES and not allow_pickle:
            raise InvalidInputError(
                "allow_pickle",
                f"{file} is a pickle, and reading one runs the code in it: allow it (allow_pickle) only if you trust "
                "where it comes from",
            )
    if len(files) > 1 and any(file.suffix == ".npy" for file in files):
        raise InvalidInputError("embeddings", "give one .npy file, or pickles only")
    return tuple(files)


def _pickles_in(directory: Path) -> list[Path]:
    """Pickles of a directory: wikipedia_passages_2 comes before wikipedia_passages_10."""
    found = [path for path in directory.iterdir() if path.suffix in PICKLES]
    return sorted(found, key=lambda path: [part.zfill(12) for part in re.split(r"(\d+)", path.name)])


def open_npy(path: Path) -> VectorFile:
    """The array of a `.npy` file, without reading it.

    Raises:
        InvalidInputError: not an array [n, dim] of floating-point numbers in C order, or cut short.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python
        raise InvalidInputError("embeddings", f"{path} is not a .npy file: {reason_of(error)}") from error
    if len(shape) != 2 or dtype.kind != "f" or fortran:
        found = f"{path} has shape {shape} of {dtype}" + (" in Fortran order" if fortran else "")
        raise InvalidInputError("embeddings", f"{found}; it must be [n, dim] of floating-point numbers in C order")
    expected = offset + shape[0] * shape[1] * dtype.itemsize
    if path.stat().st_size != expected:
        raise InvalidInputError("embeddings", f"{path} has {path.stat().st_size} bytes, its header says {expected}")
    return VectorFile(path, int(shape[0]), int(shape[1]), dtype.str, offset)


def unpickle(files: Sequence[Path], passages: Iterable[tuple[int, str]], out: Path, dimension: int) -> VectorFile:
    """Copy the vectors of pickles, lists of (id, vector), to one file; pickles are held in memory one at a time.

    `passages` are the rows and ids of the source in order; rows without a readable passage are left out there.

    Raises:
        InvalidInputError: a pickle is damaged or something else, a vector has another width, or the ids differ.
    """
    expected, total = iter(passages), 0
    row, name = next(expected, (-1, ""))
    with out.open("wb") as file:
        for path in files:
            for number, (identifier, vector) in enumerate(_load(path)):
                place = f"{path}: entry {number} ({identifier!r})"
                if total == row:
                    _check_id(place, identifier, name)
                    row, name = next(expected, (-1, ""))
                file.write(_as_vector(place, vector, dimension).tobytes())
                total += 1
    return VectorFile(out, total, dimension, "<f4", 0)


def _load(path: Path) -> list[tuple[Any, Any]]:
    try:
        with path.open("rb") as file:
            content = pickle.load(file)  # noqa: S301  (the caller allowed it)
    except Exception as error:  # a pickle may raise anything
        raise InvalidInputError("embeddings", f"{path} cannot be unpickled: {reason_of(error)}") from error
    if not isinstance(content, list) or not all(isinstance(entry, tuple) and len(entry) == 2 for entry in content):
        raise InvalidInputError("embeddings", f"{path} is not a list of (id, vector)")
    return content


def _check_id(place: str, identifier: object, expected: str) -> None:
    """DPR writes ids as they are, or after the name of their corpus and a colon."""
    found = str(identifier)
    if found != expected and not found.endswith(f":{expected}"):
        raise InvalidInputError(
            "embeddings", f"{place}: the source has passage {expected!r} there; give the files in the source's order"
        )


def _as_vector(place: str, vector: object, dimension: int) -> Float32:
    try:
        found = np.asarray(vector, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            "embeddings", f"{place} is not a vector: {reason_of(error, 'it holds no numbers')}"
        ) from error
    if found.shape != (dimension,):
        raise InvalidInputError("embeddings", f"{place} has shape {list(found.shape)}; it must be [{dimension}]")
    return found
