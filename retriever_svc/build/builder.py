"""Embeds passages and commits them as a knowledge base: all of it appears at once, or nothing does."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lance
import numpy as np
import pyarrow as pa

from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc import knowledge
from retriever_svc.build.sources import SourcePassage, bad_row, read_passages
from retriever_svc.build.split import split_passages
from retriever_svc.encoder import TextEncoder
from retriever_svc.knowledge import DATASET_NAME, KnowledgeInfo, describe
from retriever_svc.loading import RetrievalOptions, load_passage_encoder
from retriever_svc.types import Passage

CHUNK_PASSAGES = 64  # embedded together, sorted by length
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Progress:
    """How many passages of the source are embedded."""

    done: int
    total: int


def build_knowledge_base(  # noqa: PLR0913
    source: Path,
    out: Path,
    model: Path,
    *,
    source_format: str | None = None,
    split_words: int | None = None,
    precision: Precision = "float32",
    replace: bool = False,
    progress: Callable[[Progress], None] | None = None,
    options: RetrievalOptions | None = None,
) -> KnowledgeInfo:
    """Embed the passages of a file with a model's passage encoder and write them to the directory `out`.

    The whole source is checked before anything is embedded. A new knowledge base appears under its name only when it
    is complete; with `replace`, an existing one gets a new version, and the old versions stay readable.

    Raises:
        InvalidInputError: a bad row, a duplicate id, no rows, or `split_words` below 1.
        NotFoundError: source or model is not there.
        FailedPreconditionError: `out` exists and may not be replaced, or is no knowledge base.
    """
    if split_words is not None and split_words < 1:
        raise InvalidInputError("split_words", f"split_words is {split_words}; it must be at least 1")
    exists = _check_target(out, replace)

    def passages() -> Iterator[SourcePassage]:
        found = read_passages(source, source_format)
        return found if split_words is None else split_passages(found, split_words)

    total = _check_passages(source, passages())
    encoder, encoder_hash = load_passage_encoder(model, options or RetrievalOptions())
    schema = knowledge.schema(encoder.config.dim, precision, encoder_hash)
    report = progress or (lambda _progress: None)
    batches = _embed(passages(), encoder, schema, lambda done: report(Progress(done, total)))
    if exists:
        _write(out / DATASET_NAME, schema, batches, mode="overwrite")
    else:
        with _directory_in_place(out) as temporary:
            _write(temporary / DATASET_NAME, schema, batches, mode="create")
    return describe(out)


def _check_target(out: Path, replace: bool) -> bool:
    """Whether a knowledge base is there already, which may be replaced."""
    if not out.exists():
        return False
    if not replace:
        raise FailedPreconditionError(f"{out} exists: choose another name, or ask to replace it", field="out")
    if not (out / DATASET_NAME).is_dir():
        raise FailedPreconditionError(f"{out} exists and is not a knowledge base: choose another name", field="out")
    return True


def _check_passages(source: Path, passages: Iterator[SourcePassage]) -> int:
    """Read everything once; the number of passages."""
    lines: dict[str, int] = {}
    for passage in passages:
        first = lines.setdefault(passage.id, passage.line)
        if first != passage.line:
            raise bad_row(source, passage.line, f"column 'id' is {passage.id!r}, as in line {first}")
    if not lines:
        raise InvalidInputError("source", f"{source} holds no passages")
    return len(lines)


def _embed(
    passages: Iterator[SourcePassage], encoder: TextEncoder, schema: pa.Schema, report: Callable[[int], None]
) -> Iterator[pa.RecordBatch]:
    """Record batches of the knowledge base, a chunk of passages each."""
    vector_type = schema.field("embedding").type
    dtype = vector_type.value_type.to_pandas_dtype()
    done = 0
    report(done)
    while chunk := list(itertools.islice(passages, CHUNK_PASSAGES)):
        vectors = encoder.encode_passages([Passage(row.id, row.title, row.text) for row in chunk]).astype(dtype)
        if not np.isfinite(vectors).all():
            raise InvalidInputError("precision", "a vector is too large for float16: store float32")
        columns = {
            "id": pa.array([row.id for row in chunk]),
            "title": pa.array([row.title for row in chunk]),
            "text": pa.array([row.text for row in chunk]),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=vector_type),
            "metadata": pa.array([row.metadata_json for row in chunk]),
        }
        yield pa.record_batch([columns[name] for name in schema.names], schema=schema)
        done += len(chunk)
        report(done)


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch], mode: str) -> None:
    """Commit the batches as one version of the dataset. What goes wrong in `batches` is raised as it was."""
    failures: list[BaseException] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except BaseException as error:
            failures.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, guarded())
    try:
        lance.write_dataset(reader, str(path), schema=schema, mode=mode, enable_stable_row_ids=True)
    except OSError as error:
        if failures:
            raise failures[0] from None
        raise FailedPreconditionError(f"{path} could not be written: {error}", field=str(path)) from error


@contextmanager
def _directory_in_place(out: Path) -> Iterator[Path]:
    """A new directory that becomes `out` when the block ends well; leftovers of builds that were killed are removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.building-"
    for leftover in out.parent.glob(f"{prefix}*"):
        with _locked(leftover) as ours:
            if ours:
                shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    try:
        with _locked(temporary):
            yield temporary
            temporary.chmod(0o755)
            _rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(directory: Path, out: Path) -> None:
    try:
        directory.rename(out)
    except OSError as error:
        raise FailedPreconditionError(f"{out} was made by someone else meanwhile: {error}", field="out") from error


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold the directory's lock, which ends with the process; False when another process holds it."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            locked = False
        yield locked
    finally:
        os.close(handle)
