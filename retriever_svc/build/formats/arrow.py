"""Reads Parquet files, Arrow files (streams, as Hugging Face's `save_to_disk` writes, and Feather), Lance datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq

from ragserve.errors import InvalidInputError
from ragserve.reasons import reason_of
from retriever_svc.build.columns import ColumnNames
from retriever_svc.build.formats.values import plain
from retriever_svc.build.lines import bad_row
from retriever_svc.build.reading import EMBEDDINGS, RawRow, Row
from retriever_svc.knowledge import DATASET_NAME

READ_ROWS = 256  # decoded together
FILE_MAGIC = b"ARROW1"
# ValueError: also names and texts that are not UTF-8.
FILE_ERRORS = (pa.ArrowException, OSError, NotImplementedError, ValueError, KeyError)
DECODING_ERRORS = (ValueError, KeyError, TypeError, ArithmeticError, NotImplementedError, pa.ArrowException)


def read_parquet(source: Path, names: ColumnNames, _max_text_bytes: int) -> Iterator[RawRow]:
    """A row for every row."""
    source.open("rb").close()  # says what the operating system has against it
    with _called_none(source, "a Parquet"):
        file = pq.ParquetFile(source)
    with file:
        with _called_none(source, "a Parquet"):
            columns = _columns(source, file.schema_arrow, names)
        yield from _rows(source, file.iter_batches(batch_size=READ_ROWS, columns=columns), columns, names)


def read_arrow(source: Path, names: ColumnNames, _max_text_bytes: int) -> Iterator[RawRow]:
    """A row for every row."""
    with pa.OSFile(str(source)) as file:
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        file.seek(0)
        with _called_none(source, "an Arrow"):
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            columns = _columns(source, reader.schema, names)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        yield from _rows(source, batches, columns, names)


@contextmanager
def _called_none(source: Path, kind: str) -> Iterator[None]:
    """Says that a file is not of a format, where it cannot be opened as one."""
    try:
        yield
    except FILE_ERRORS as error:
        raise bad_row(source, 1, f"not {kind} file: {reason_of(error)}") from error


def read_lance(source: Path, names: ColumnNames, _max_text_bytes: int) -> Iterator[RawRow]:
    """A row for every row. A knowledge base's own vectors are left out: another encoder may have made them."""
    dataset = open_lance(source)
    columns = _columns(source, dataset.schema, names)
    batches = dataset.to_batches(columns=columns, batch_size=READ_ROWS, scan_in_order=True)
    yield from _rows(source, batches, columns, names)


def open_lance(source: Path) -> lance.LanceDataset:
    """The Lance dataset of a source: the directory itself, or the one in a knowledge base.

    Raises:
        InvalidInputError: it is none.
    """
    directory = source / DATASET_NAME if (source / DATASET_NAME).is_dir() else source
    try:
        return lance.dataset(str(directory))
    except (ValueError, OSError) as error:
        raise bad_row(source, 1, f"not a Lance dataset: {reason_of(error)}") from error


def _columns(source: Path, schema: pa.Schema, names: ColumnNames) -> list[str]:
    """The columns to read: those that are wanted, without vectors under other names."""
    plan = names.plan(source, 1, schema.names)
    further = [name for name in plan.further if name == EMBEDDINGS or not _is_vector(schema.field(name).type)]
    left_out = [name for name in plan.further if name not in further and name != "vector"]
    if left_out:
        names.notify(f"{source}: columns of vectors are left out: {', '.join(left_out)}")
    return [*(column for _, column in plan.columns), *further]


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type))


def _rows(source: Path, batches: Iterable[pa.RecordBatch], columns: list[str], names: ColumnNames) -> Iterator[RawRow]:
    number = 0
    try:
        for read in batches:
            batch = read.select(columns)
            batch.validate(full=True)
            for start in range(0, batch.num_rows, READ_ROWS):
                for row in _decoded(batch.slice(start, READ_ROWS)):
                    number += 1
                    yield source, number, _named(source, number, row, names)
    except FILE_ERRORS as error:
        raise bad_row(source, number + 1, f"cannot be read: {reason_of(error)}") from error


def _named(source: Path, number: int, row: Row, names: ColumnNames) -> Row | InvalidInputError:
    try:
        for column, value in row.items():
            if isinstance(value, _Unreadable):
                hint = f"leave the column out (--without-column {column})"
                raise bad_row(source, number, f"column {column!r} {value.reason}: {hint}")
        return names.row(source, number, row)
    except InvalidInputError as error:
        return error


class _Unreadable:
    """Stands for a value that cannot be had."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _decoded(batch: pa.RecordBatch) -> Iterator[Row]:
    names = batch.schema.names
    values = [_values(name, column) for name, column in zip(names, batch.columns, strict=True)]
    for row in zip(*values, strict=True):
        yield dict(zip(names, row, strict=True))


def _values(name: str, column: pa.Array) -> list[Any]:
    kind = column.type
    if name == EMBEDDINGS and _is_list(kind) and pa.types.is_floating(kind.value_type):
        return [None if one.values is None else one.values.to_numpy(zero_copy_only=False) for one in column]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        return list(column.to_pylist())
    return [_value(one) for one in _in_microseconds(column)]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _value(scalar: pa.Scalar) -> Any:
    try:
        value = scalar.as_py(maps_as_pydicts="strict")
    except DECODING_ERRORS as error:
        return _Unreadable(f"cannot be read: {reason_of(error)}")
    try:
        return plain(value)
    except ValueError as error:
        return _Unreadable(str(error))
    except DECODING_ERRORS as error:
        return _Unreadable(f"cannot be read: {reason_of(error)}")


def _in_microseconds(column: pa.Array) -> pa.Array:
    """The column with times of nanoseconds cut to microseconds, which is what Python's have."""
    kind = _without_nanoseconds(column.type)
    return column if kind == column.type else column.cast(kind, safe=False)


def _without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_nanoseconds(field.type)) for field in kind.fields])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_nanoseconds(kind.value_type)))
    return kind
