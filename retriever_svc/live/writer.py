"""Commits to a knowledge base: upserts, deletions, rollbacks, compaction. What returns is durable in Lance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragserve.arguments import check_range
from ragserve.errors import AbortedError, DataLossError, InvalidInputError, NotFoundError
from ragserve.files import file_error, is_about_access
from ragserve.printable import counted
from ragserve.reasons import reason_of
from retriever_svc.checksums import file_checks
from retriever_svc.knowledge import DATASET_NAME, PRIMARY_KEY, KnowledgeBase, newest_version
from retriever_svc.live.restoring import remove_left, restore_as_next
from retriever_svc.manifests import UNREADABLE, is_missing, panics_as_errors, removed
from retriever_svc.rows import VECTOR_COLUMN
from retriever_svc.splitting import chunk_parent
from retriever_svc.types import LARGEST, Float32, Passage, usable_rows

RETRY_SECONDS = 0.05  # after a lost race: a commit of a few passages takes about this long
DEFAULT_KEEP_VERSIONS = 10
DEFAULT_KEEP_SECONDS = 3_600.0
MOST_KEEP_SECONDS = 100 * 365 * 86_400  # Lance counts microseconds in 64 bits
# Called right before something is committed. It raises where nothing is to be committed any more.
Proceed = Callable[[], None]


def always() -> None:
    """Commit in any case."""


@dataclass(frozen=True)
class Upsert:
    """What an upsert committed."""

    version: int
    inserted: int
    updated: int
    removed: int = 0


@dataclass(frozen=True)
class Deletion:
    """What a deletion committed; `missing` ids were not there."""

    version: int
    deleted: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Compaction:
    """What a compaction did."""

    version: int
    versions_removed: int
    bytes_removed: int


class KnowledgeWriter:
    """Writes one knowledge base. Several may do so at once: of two that touch the same passages, one is refused.

    All methods raise AbortedError when another commit came first (no passage is changed: try again),
    ResourceExhaustedError when the disk is full, and FailedPreconditionError when the files may not be written. They
    call `proceed` right before they commit; what it raises is raised, and nothing is committed.
    """

    def __init__(self, path: Path, encoder: str) -> None:
        """`encoder`: hash of the passage encoder, which the knowledge base must carry (`passage_encoder_hash`)."""
        self._path = path
        self._encoder = encoder
        self._files = file_checks(path)

    def upsert(
        self,
        passages: Sequence[Passage],
        vectors: Float32,
        chunks: Mapping[str, int] | None = None,
        proceed: Proceed = always,
    ) -> Upsert:
        """Add passages with their vectors [n_passages, dim], or replace those whose ids are there, in one commit.

        `chunks`: how many of the passages are chunks of a longer one, by its id; 1: it is there whole. What its former
        text was split into, and is not replaced, is removed in the same commit.

        Raises:
            InvalidInputError: a vector has another width than those of the knowledge base, or does not fit float16.
        """
        dataset = self._open()
        table = _to_table(passages, vectors, dataset.schema)
        proceed()
        with self._committing(dataset):
            self._name_key(dataset)
            merge = dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            stale = stale_chunks(dataset, chunks) if chunks else []
            if stale:
                quoted = ", ".join("'" + identifier.replace("'", "''") + "'" for identifier in stale)
                merge = merge.when_not_matched_by_source_delete(f"id IN ({quoted})")
            counts = merge.conflict_retries(0).execute(table)
        self._files.record(dataset)
        # Where rows are deleted too, Lance counts each updated one as deleted and inserted again.
        return Upsert(int(dataset.version), counts["num_inserted_rows"], counts["num_updated_rows"], len(stale))

    def delete(self, ids: Sequence[str], proceed: Proceed = always, *, chunks: bool = False) -> Deletion:
        """Delete passages by id in one commit; none is made when none of them is there.

        `chunks`: an id that is not there stands for the chunks of a text of that id.
        """
        dataset = self._open()
        with self._committing(dataset):
            known = set(find_ids(dataset, ids))
            missing = tuple(identifier for identifier in dict.fromkeys(ids) if identifier not in known)
            if chunks and missing:
                parts = stale_chunks(dataset, dict.fromkeys(missing, 1))
                known.update(parts)
                split = {chunk_parent(part) for part in parts}
                missing = tuple(identifier for identifier in missing if identifier not in split)
        if not known:
            return Deletion(int(dataset.version), 0, missing)
        keys = pa.table(
            {"id": pa.array(sorted(known))}, schema=pa.schema([pa.field("id", pa.string(), nullable=False)])
        )
        proceed()
        with self._committing(dataset):
            self._name_key(dataset)
            counts = dataset.merge_insert("id").when_matched_delete().conflict_retries(0).execute(keys)
        self._files.record(dataset)
        return Deletion(int(dataset.version), counts["num_deleted_rows"], missing)

    def rollback(self, version: int, proceed: Proceed = always) -> int:
        """Commit a new version with the content of an older one; its number. The newest one is left as it is.

        It gives way to any commit made since it began, whatever that touched: it would undo it unseen.

        Raises:
            NotFoundError: there is no such version.
            DataLossError: a file of it is gone or was altered.
        """
        newest = newest_version(self._path)
        if version < 1:
            raise NotFoundError(
                f"There is no version {version}; the versions are 1 to {newest}", field="knowledge_version"
            )
        if version == newest:
            return version
        dataset = self._open(version)
        self._files.verify_manifest(newest)
        self._files.require_whole(dataset)
        proceed()
        with self._committing(dataset):
            restored = restore_as_next(self._path / DATASET_NAME, version, newest)
        self._files.record_manifest(restored)
        return restored

    def compact(self, keep_versions: int, keep_seconds: float, proceed: Proceed = always) -> Compaction:
        """Rewrite small files and deleted rows, and remove versions beyond the newest ones that are also old.

        What rollbacks left that were killed is removed as well.

        Replicas read files of the versions that they have loaded: keep as many as they keep, for as long as they
        need to follow.

        Raises:
            InvalidInputError: keep_versions is below 1, or keep_seconds below 0 or above 100 years.
            DataLossError: a file was altered.
        """
        check_range("keep_versions", keep_versions, 1, why="the newest version is never removed")
        check_range("keep_seconds", keep_seconds, 0, MOST_KEEP_SECONDS, why="the most is 100 years")
        dataset = self._open()
        self._files.verify(dataset)  # or what was altered would be written anew, with its own checksum
        proceed()
        with self._committing(dataset):
            dataset.optimize.compact_files()
            cleaned = dataset.cleanup_old_versions(timedelta(seconds=keep_seconds), retain_versions=keep_versions)
        self._files.record(dataset)
        self._files.forget_removed()
        remove_left(self._path / DATASET_NAME)
        return Compaction(int(dataset.version), cleaned.old_versions, cleaned.bytes_removed)

    def _open(self, version: int = 0) -> lance.LanceDataset:
        """A version, open for writing."""
        knowledge = KnowledgeBase.open(self._path, version)
        knowledge.require_servable(self._encoder)
        self._files.verify_manifest(knowledge.version)  # or what was altered would be carried on
        return knowledge.dataset

    @staticmethod
    def _name_key(dataset: lance.LanceDataset) -> None:
        """Tell Lance which column is the key, where an older build did not: it compares inserted keys only then."""
        found = dataset.schema.field("id").metadata or {}
        wanted = {key.encode(): value.encode() for key, value in PRIMARY_KEY.items()}
        if not wanted.items() <= found.items():
            dataset.update_field_metadata({"id": dict(PRIMARY_KEY)})

    @contextmanager
    def _committing(self, dataset: lance.LanceDataset) -> Iterator[None]:
        """Errors of Lance as ours: lost races, a full disk, files that may not be written, and damaged ones.

        A version that another writer's compaction removed, since it was opened here, is a lost race, too.
        """
        opened = int(dataset.version)
        try:
            with panics_as_errors():
                yield
        except UNREADABLE as error:
            text = str(error).replace(str(self._path).lstrip("/"), "").lower()  # a name may hold any of these words
            lost = isinstance(error, FileExistsError) or "concurrent" in text or "conflict" in text
            if lost or (is_missing(error) and removed(self._path / DATASET_NAME, opened)):
                raise AbortedError(
                    f"another writer committed to {self._path} first: try again", retry_after_seconds=RETRY_SECONDS
                ) from error
            if is_about_access(error):
                raise file_error(error, "write", self._path) from error
            problem = f"{self._path} could not be written or read: {reason_of(error)}"
            raise DataLossError(problem, field="knowledge") from error


def find_ids(dataset: lance.LanceDataset, ids: Sequence[str]) -> list[str]:
    """Those of the ids that a version has."""
    if not ids:
        return []
    expression = pc.field("id").isin(pa.array(list(dict.fromkeys(ids)), pa.string()))
    found: list[str] = dataset.to_table(columns=["id"], filter=expression).column("id").to_pylist()
    return found


def stale_chunks(dataset: lance.LanceDataset, chunks: Mapping[str, int]) -> list[str]:
    """Ids of stored passages that `chunks`, the new number of chunks of each passage by its id, leaves behind.

    These are chunks beyond that number, and a passage that was whole and is now split. Ids that look like chunks do not
    count where they are not numbered from 0 without gaps, or where the passage is there whole as well.
    """
    parents = pa.array(list(chunks), pa.string())
    numbers: dict[str, set[int]] = {identifier: set() for identifier in chunks}
    whole: set[str] = set()
    for batch in dataset.to_batches(columns=["id"]):
        ids = batch.column("id")
        whole.update(ids.filter(pc.is_in(ids, parents)).to_pylist())
        of = pc.replace_substring_regex(ids, r"#(0|[1-9][0-9]{0,8})$", "")
        mask = pc.and_(pc.is_in(of, parents), pc.not_equal(of, ids))
        for parent, identifier in zip(of.filter(mask).to_pylist(), ids.filter(mask).to_pylist(), strict=True):
            numbers[parent].add(int(identifier[len(parent) + 1 :]))
    stale = []
    for parent, count in chunks.items():
        kept = count if count > 1 else 0
        if parent in whole and count > 1:
            stale.append(parent)
        elif parent not in whole and numbers[parent] == set(range(len(numbers[parent]))):
            stale += [f"{parent}#{number}" for number in range(kept, len(numbers[parent]))]
    return stale


def _to_table(passages: Sequence[Passage], vectors: Float32, schema: pa.Schema) -> pa.Table:
    vector_type = schema.field(VECTOR_COLUMN).type
    if vectors.shape != (len(passages), vector_type.list_size):
        wanted = vector_type.list_size
        raise InvalidInputError(
            "passages", f"vectors have {counted(vectors.shape[-1], 'value')}; those stored have {wanted}"
        )
    with np.errstate(over="ignore"):
        stored = vectors.astype(vector_type.value_type.to_pandas_dtype())
    if len(bad := np.flatnonzero(~usable_rows(stored))):
        field = f"passages[{bad[0]}].vector"
        raise InvalidInputError(
            field, f"{field} holds a value that is not finite, beyond {LARGEST:g} or too large for float16"
        )
    columns = {
        "id": pa.array([passage.id for passage in passages], pa.string()),
        "title": pa.array([passage.title for passage in passages], pa.string()),
        "text": pa.array([passage.text for passage in passages], pa.string()),
        "metadata": pa.array([passage.metadata_json for passage in passages], pa.string()),
        VECTOR_COLUMN: pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), type=vector_type),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)
