from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from ragserve.checkpoint import load_manifest, sha256_of
from ragserve.errors import DataLossError, FailedPreconditionError, NotFoundError
from retriever_svc.build import build_knowledge_base
from retriever_svc.index import IndexSpec
from retriever_svc.knowledge import KnowledgeBase, describe, passage_encoder_directory, passage_encoder_hash, schema
from retriever_svc.loading import RetrievalOptions, load_snapshot
from retriever_svc.rows import DiskRows, MemoryRows
from tests.retriever_svc.models import DIMENSION
from tests.retriever_svc.sources import WHOLE
from tests.tiny import tiny_passages, write_jsonl


def tree(directory: Path) -> dict[str, str]:
    """Every file below a directory, with the hash of its bytes."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def two_versions(model: Path, options: RetrievalOptions, tmp_path: Path) -> Path:
    """Version 1 with 20 passages, version 2 with 30 others."""
    for n, seed in ((20, 1), (30, 2)):
        source = write_jsonl(tmp_path / "passages.jsonl", tiny_passages(n, seed))
        build_knowledge_base(source, tmp_path / "kb", model, replace=True, options=options, build=WHOLE)
    return tmp_path / "kb"


def test_describe_tells_what_is_there(knowledge_base: Path, model: Path) -> None:
    info = describe(knowledge_base)
    assert (info.version, info.versions, info.passages, info.dimension) == (1, (1,), 120, DIMENSION)
    assert info.precision == "float32"
    assert info.size_bytes > 120 * DIMENSION * 4
    assert info.encoder == passage_encoder_hash(model, load_manifest(model))
    assert info.created.startswith("20")


def test_every_version_stays_readable(two_versions: Path, model: Path, options: RetrievalOptions) -> None:
    assert describe(two_versions).versions == (1, 2)
    assert [KnowledgeBase.open(two_versions, version).passages for version in (0, 1, 2)] == [30, 20, 30]
    pinned = load_snapshot(model, two_versions, replace(options, knowledge_version=1), DIMENSION)
    assert (pinned.version, pinned.size) == (1, 20)
    with pytest.raises(NotFoundError, match="no version 7; it has 1, 2"):
        KnowledgeBase.open(two_versions, 7)


def test_rows_on_disk_and_in_memory_are_the_same_after_deletes(two_versions: Path) -> None:
    lance.dataset(str(two_versions / "passages.lance")).delete("id IN ('3', '4', '11')")
    dataset = KnowledgeBase.open(two_versions).dataset
    disk, memory = DiskRows(dataset), MemoryRows.read(dataset)
    positions = np.array([26, 0, 3, 3, 10])
    assert disk.size == memory.size == 27
    assert disk.passages(positions) == memory.passages(positions)
    np.testing.assert_array_equal(disk.vectors(positions), memory.vectors(positions))
    np.testing.assert_array_equal(np.concatenate([*disk.vector_blocks()]), np.concatenate([*memory.vector_blocks()]))
    np.testing.assert_array_equal(disk.vectors(np.arange(27)), np.concatenate([*memory.vector_blocks()]))
    assert len({passage.id for passage in memory.passages(np.arange(27))}) == 27


def test_serving_writes_nothing_into_the_knowledge_base(
    knowledge_base: Path, model: Path, options: RetrievalOptions
) -> None:
    before = tree(knowledge_base)
    snapshot = load_snapshot(model, knowledge_base, options, DIMENSION)
    snapshot.rows.passages(np.array([1, 2]))
    assert tree(knowledge_base) == before


def test_a_knowledge_base_that_takes_no_files_is_served_without_cache(
    two_versions: Path, model: Path, options: RetrievalOptions
) -> None:
    (two_versions / "indexes").write_text("in the way")
    hnsw = replace(options, index=IndexSpec("HNSW16", device="cpu", build_threads=1))
    assert load_snapshot(model, two_versions, hnsw, DIMENSION).size == 30


def test_the_cache_lies_in_the_knowledge_base_and_knows_its_versions(
    two_versions: Path, model: Path, options: RetrievalOptions
) -> None:
    hnsw = replace(options, index=IndexSpec("HNSW16", device="cpu", build_threads=1))
    for version, size in ((1, 20), (2, 30), (1, 20)):
        chosen = replace(hnsw, knowledge_version=version)
        assert load_snapshot(model, two_versions, chosen, DIMENSION).size == size
    assert len(list((two_versions / "indexes").glob("*.faiss"))) == 2


def test_other_rows_under_the_same_version_have_another_key(
    model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    contents = set()
    for seed in (1, 2):
        source = write_jsonl(tmp_path / "passages.jsonl", tiny_passages(20, seed))
        build_knowledge_base(source, tmp_path / f"kb{seed}", model, options=options, build=WHOLE)
        knowledge = KnowledgeBase.open(tmp_path / f"kb{seed}")
        assert knowledge.version == 1
        assert knowledge.content == KnowledgeBase.open(tmp_path / f"kb{seed}").content
        contents.add(knowledge.content)
    assert len(contents) == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "encoder.json"])
def test_another_tokenizer_is_another_encoder(
    two_versions: Path, model: Path, options: RetrievalOptions, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (file,) = (path for path in other.rglob(name) if path.parent.name == passage_encoder_directory(model).name)
    file.write_text(f"{file.read_text()} ")
    manifest = load_manifest(other)
    files = {**manifest.files, file.relative_to(other).as_posix(): sha256_of(file)}
    encoder = passage_encoder_hash(other, replace(manifest, files=files))
    knowledge = KnowledgeBase.open(two_versions)
    with pytest.raises(FailedPreconditionError, match=r"another tokenizer\.json or encoder\.json"):
        knowledge.require_servable(encoder)
    knowledge.require_servable(passage_encoder_hash(model, load_manifest(model)))
    older = replace(knowledge, encoder=knowledge.encoder.partition("+")[0])
    older.require_servable(encoder)  # it knows the graph alone
    with pytest.raises(FailedPreconditionError, match=r"model\.onnx"):
        older.require_servable("0" * 64)


def write_dataset(directory: Path, table_schema: pa.Schema) -> Path:
    lance.write_dataset(table_schema.empty_table(), str(directory / "passages.lance"), enable_stable_row_ids=True)
    return directory


def test_what_is_no_knowledge_base_is_refused(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    encoder = passage_encoder_hash(model, load_manifest(model))
    with pytest.raises(NotFoundError, match="is not a knowledge base"):
        describe(tmp_path / "nothing")
    other = write_dataset(tmp_path / "other", pa.schema([pa.field("id", pa.string())]))
    with pytest.raises(FailedPreconditionError, match="must have the columns"):
        describe(other)
    newer = schema(DIMENSION, "float32", encoder)
    newer = newer.with_metadata({**newer.metadata, b"ragserve.format_version": b"2"})
    with pytest.raises(FailedPreconditionError, match="format_version 2"):
        describe(write_dataset(tmp_path / "newer", newer))
    empty = write_dataset(tmp_path / "empty", schema(DIMENSION, "float16", encoder))
    assert (describe(empty).passages, describe(empty).precision) == (0, "float16")
    assert load_snapshot(model, empty, options, DIMENSION).size == 0  # passages may be added while it serves
    lance.write_dataset(schema(DIMENSION, "float32", encoder).empty_table(), str(tmp_path / "old" / "passages.lance"))
    with pytest.raises(FailedPreconditionError, match="without stable row ids: build it again"):
        load_snapshot(model, tmp_path / "old", options, DIMENSION)


def test_a_damaged_dataset_is_named(two_versions: Path) -> None:
    for manifest in (two_versions / "passages.lance" / "_versions").iterdir():
        manifest.write_bytes(b"garbage")
    with pytest.raises(DataLossError, match=r"passages\.lance: the newest version is damaged"):
        describe(two_versions)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_data_is_named(
    two_versions: Path, model: Path, options: RetrievalOptions, damage: str, in_memory: bool
) -> None:
    for file in (two_versions / "passages.lance" / "data").iterdir():
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        else:
            file.unlink()
    with pytest.raises(DataLossError, match="is damaged, build it again") as caught:
        load_snapshot(model, two_versions, replace(options, max_memory_bytes=in_memory * 2**30), DIMENSION)
    assert caught.value.field == str(two_versions)


def test_vectors_that_are_not_finite_are_refused(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    table_schema = schema(2, "float32", passage_encoder_hash(model, load_manifest(model)))
    row = {"id": "1", "title": "", "text": "a", "embedding": [1.0, float("nan")], "metadata": ""}
    table = pa.Table.from_pylist([row], schema=table_schema)
    lance.write_dataset(table, str(tmp_path / "passages.lance"), enable_stable_row_ids=True)
    with pytest.raises(FailedPreconditionError, match="not finite"):
        load_snapshot(model, tmp_path, options, 2)
    with pytest.raises(FailedPreconditionError, match="vectors of width 2, the query encoder makes 32"):
        load_snapshot(model, tmp_path, options, DIMENSION)
