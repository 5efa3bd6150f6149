"""Writes that a kill cannot leave half done, and what identifies files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from ragserve.checkpoint import sha256_of
from ragserve.errors import FailedPreconditionError
from ragserve.files import file_error, is_about_access
from ragserve.reasons import reason_of


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there completely or not at all, a power cut included."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's data, or a directory's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of(files: Iterable[tuple[str, Path]], *, unreadable: bool = False) -> str:
    """SHA-256 over names and contents of files, in this order; `unreadable`: a file may be unreadable."""
    total = hashlib.sha256()
    for name, path in files:
        try:
            content = f"{path.stat().st_size}\0{sha256_of(path)}"
        except OSError:
            if not unreadable:
                raise
            content = "unreadable"
        total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


@contextmanager
def unfinished_work(directory: Path) -> Iterator[None]:
    """Says what to do where what an earlier build left in a directory cannot be read.

    Raises:
        FailedPreconditionError: in place of the errors of Lance, NumPy and JSON.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        if is_about_access(error):
            raise
        raise FailedPreconditionError(
            f"{directory} is damaged: remove it and build again: {reason_of(error)}", field=str(directory)
        ) from error


def write_batches(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Write a Lance dataset of its own. What goes wrong in `batches` is raised as it was."""
    with _Guarded(path, batches) as guarded:
        reader = pa.RecordBatchReader.from_batches(schema, guarded)
        lance.write_dataset(reader, str(path), schema=schema, mode="create")


def write_fragment(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> FragmentMetadata | None:
    """Write one data file to a dataset without committing it; None for no rows. Raises as `write_batches`."""
    with _Guarded(path, batches) as guarded:
        reader = pa.RecordBatchReader.from_batches(schema, guarded)
        found = write_fragments(reader, str(path), schema=schema, mode="create", enable_stable_row_ids=True)
    return found[0] if found else None


class _Guarded:
    """Batches on their way into Lance, which makes an OSError of every exception in them."""

    def __init__(self, path: Path, batches: Iterator[pa.RecordBatch]) -> None:
        self._path, self._batches = path, batches
        self._failure: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._batches
        except BaseException as error:
            self._failure = error
            raise

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: Any) -> None:
        if self._failure is not None and isinstance(error, Exception):
            raise self._failure from None
        if isinstance(error, OSError):
            raise file_error(error, "write", self._path) from error
