"""Reads what a knowledge base was and is: its versions, what differs between two of them, passages by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragserve.arguments import check_range
from ragserve.errors import NotFoundError
from retriever_svc.checksums import file_checks
from retriever_svc.knowledge import DATASET_NAME, KnowledgeBase, newest_version, reading
from retriever_svc.live.changes import compare
from retriever_svc.manifests import UNREADABLE, panics_as_errors, readable
from retriever_svc.rows import TEXT_COLUMNS, VECTOR_COLUMN, RowKeys
from retriever_svc.types import Int64, Passage

DEFAULT_LIMIT = 1_000
# What Lance calls an operation, and what made it here. An update without new rows is a deletion. The first write to a
# knowledge base of an older ragserve marks its key column, in a version of its own ("settings"). A compaction first
# reserves numbers for its files, in a version of its own, and pylance has no class for that operation.
OPERATIONS = {
    "Overwrite": "build",
    "Append": "upsert",
    "Update": "upsert",
    "Delete": "delete",
    "Restore": "rollback",
    "Rewrite": "compact",
    "BaseOperation": "compact",
    "UpdateConfig": "settings",
    "CreateIndex": "settings",
}


@dataclass(frozen=True)
class Version:
    """One version of a knowledge base."""

    version: int
    created_unix_seconds: float
    passages: int
    operation: str  # build, upsert, delete, rollback, compact, settings or other (by another program)


@dataclass(frozen=True)
class VersionDiff:
    """Ids of passages that differ between two versions, the first `limit` of each kind, and how many there are."""

    from_version: int
    to_version: int
    added_ids: tuple[str, ...]
    changed_ids: tuple[str, ...]
    removed_ids: tuple[str, ...]
    added: int
    changed: int
    removed: int


def list_versions(path: Path) -> list[Version]:
    """The versions that can still be read, oldest first; not those that are damaged. Raises as `KnowledgeBase.open`."""
    dataset = KnowledgeBase.open(path).dataset
    with reading(path):
        return [
            Version(each.version, each.created.timestamp(), each.passages, _operation(dataset, each.version))
            for each in readable(dataset, path / DATASET_NAME)
        ]


def _operation(dataset: lance.LanceDataset, version: int) -> str:
    try:
        with panics_as_errors():
            operation: Any = getattr(dataset.read_transaction(version), "operation", None)
    except UNREADABLE:
        return "other"
    name = type(operation).__name__
    if name == "Update" and not operation.new_fragments:
        return "delete"
    return OPERATIONS.get(name, "other")


def read_passages(path: Path, ids: Sequence[str], version: int = 0) -> tuple[int, dict[str, Passage]]:
    """The version read (0: the newest), and the passages that it has, by id. Raises as `KnowledgeBase.open`."""
    knowledge = KnowledgeBase.open(path, version)
    file_checks(path).verify_again(knowledge.dataset)
    with reading(path, knowledge.version):
        wanted = pc.field("id").isin(pa.array(list(dict.fromkeys(ids)), pa.string()))
        rows = knowledge.dataset.to_table(columns=TEXT_COLUMNS, filter=wanted).to_pylist()
    found = (Passage(row["id"], row["title"], row["text"], row["metadata"]) for row in rows)
    return knowledge.version, {passage.id: passage for passage in found}


def read_passages_of(path: Path, ids: Sequence[str], loaded: int) -> tuple[int, dict[str, Passage]]:
    """Those of the version that is loaded, or of the newest one where a compaction removed the loaded one's files.

    Raises as `KnowledgeBase.open`.
    """
    while True:
        try:
            return read_passages(path, ids, loaded)
        except NotFoundError:
            if (newest := newest_version(path)) <= loaded:
                raise
            loaded = newest


def diff_versions(path: Path, from_version: int, to_version: int = 0, limit: int = 0) -> VersionDiff:
    """What differs between two versions; `limit` 0 means 1,000 ids of each kind.

    Raises:
        InvalidInputError: from_version is below 1.
        NotFoundError: there is no such version.
    """
    check_range("from_version", from_version, 1, why="versions count from 1")
    old, new = KnowledgeBase.open(path, from_version), KnowledgeBase.open(path, to_version)
    for knowledge in (old, new):
        file_checks(path).verify_again(knowledge.dataset)
    with reading(path, old.version, new.version):
        before, after = _differing(old.dataset, new.dataset)
    added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    changed = sorted(key for key in before.keys() & after.keys() if before[key] != after[key])
    limit = limit or DEFAULT_LIMIT
    return VersionDiff(
        old.version,
        new.version,
        added_ids=tuple(added[:limit]),
        changed_ids=tuple(changed[:limit]),
        removed_ids=tuple(removed[:limit]),
        added=len(added),
        changed=len(changed),
        removed=len(removed),
    )


def _differing(old: lance.LanceDataset, new: lance.LanceDataset) -> tuple[dict[str, int], dict[str, int]]:
    """The rows of each version that the other does not have: a hash of the content by passage id."""
    old_keys, new_keys = RowKeys.read(old), RowKeys.read(new)
    difference = compare(old_keys, new_keys)
    gone: Int64 = old_keys.row_ids[~difference.kept]
    return _contents(old, gone), _contents(new, difference.others)


def _contents(dataset: lance.LanceDataset, row_ids: Int64) -> dict[str, int]:
    contents: dict[str, int] = {}
    for start in range(0, len(row_ids), 10_000):
        block: list[int] = np.asarray(row_ids[start : start + 10_000]).tolist()
        table = dataset._take_rows(block, columns=[*TEXT_COLUMNS, VECTOR_COLUMN])
        vectors = table.column(VECTOR_COLUMN).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        texts = zip(*(table.column(name).to_pylist() for name in TEXT_COLUMNS), strict=True)
        for row, vector in zip(texts, vectors.reshape(table.num_rows, -1), strict=True):
            contents[row[0]] = hash((row, vector.tobytes()))
    return contents
