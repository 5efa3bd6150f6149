"""What differs between two versions of a knowledge base, by row.

Where every commit between them adds to the history, Lance's own `delta` says it from the versions in the rows. It does
not after a rollback or an overwrite (rows that come back carry their old version), nor backwards: then ids and stamps
of all rows are compared (1,000,000 rows: 35 ms).
"""

from __future__ import annotations

from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa

from retriever_svc.manifests import UNREADABLE, panics_as_errors
from retriever_svc.rows import ROW_ID, MemoryRows, RowKeys
from retriever_svc.types import Int64

# Operations of Lance that leave a row's id and stamp alone, or say that they changed them.
LINEAR = frozenset({"Append", "Update", "Delete", "Rewrite", "CreateIndex", "BaseOperation"})


@dataclass(frozen=True)
class Changes:
    """Row ids that a version has lost or rewritten since another one, and the rows that it added or rewrote."""

    gone: Int64  # deleted or rewritten
    rows: MemoryRows  # as the newer version has them


def linear_changes(old: int, new: lance.LanceDataset) -> Changes | None:
    """What changed since version `old`, by `LanceDataset.delta`; None where the history between is not linear."""
    if old > int(new.version):
        return None
    try:
        with panics_as_errors():
            delta = new.delta(compared_against=old)
            operations = {type(transaction.operation).__name__ for transaction in delta.list_transactions()}
            if not operations <= LINEAR:
                return None
            inserted, updated = delta.get_inserted_rows().read_all(), delta.get_updated_rows().read_all()
            deleted = delta.get_deleted_row_ids().read_all()
    except UNREADABLE:
        return None  # a version between them is removed, or damaged
    gone = np.concatenate([_row_ids(deleted), _row_ids(updated)])
    return Changes(gone, MemoryRows.of(pa.concat_tables([updated, inserted])))


@dataclass(frozen=True)
class Difference:
    """How a version's rows compare with known ones: what is `kept` of these [n_known], and the row ids of the rest."""

    kept: np.ndarray[tuple[int], np.dtype[np.bool_]]
    others: Int64


def compare(known: RowKeys, new: RowKeys) -> Difference:
    """Compare rows by id and stamp."""
    places = known.find(new.row_ids)
    same = places >= 0
    same[same] = known.stamps[places[same]] == new.stamps[same]
    kept = np.zeros(len(known.row_ids), dtype=np.bool_)
    kept[places[same]] = True
    return Difference(kept, new.row_ids[~same])


def _row_ids(table: pa.Table) -> Int64:
    return np.asarray(table.column(ROW_ID).to_numpy(), dtype=np.int64)
