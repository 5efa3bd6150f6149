"""Texts read straight from Arrow's buffers are those that Arrow reads."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from retriever_svc.rows import FEW_ROWS, TEXT_COLUMNS, MemoryRows, RowKeys

TEXTS = ["", "a", "zwei", "żółw 🐢", "x" * 5000, "\x00\n", "last"]
WHOLE = pa.chunked_array([pa.array(TEXTS)])
COLUMNS = {
    "whole": WHOLE,
    "a slice": WHOLE.slice(2, 4),
    "chunks": pa.chunked_array([TEXTS[:3], TEXTS[3:]]),
    "all empty": pa.chunked_array([[""] * 4]),
    "large": WHOLE.cast(pa.large_string()),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_passages_are_what_arrow_reads(name: str) -> None:
    column = COLUMNS[name]
    size = len(column)
    keys = RowKeys(np.arange(size), np.ones(size, np.int64))
    rows = MemoryRows(pa.table(dict.fromkeys(TEXT_COLUMNS, column)), np.zeros((size, 4), np.float32), keys)
    expected = column.to_pylist()
    few = np.array([size - 1, *range(size), 0])
    many = np.resize(few, FEW_ROWS + 1)
    for positions in (few, many):
        found = [(one.id, one.title, one.text, one.metadata_json) for one in rows.passages(positions)]
        assert found == [(expected[position],) * len(TEXT_COLUMNS) for position in positions]
