"""One rule for columns in every format: which are read as what, what becomes metadata, what is refused."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.build import BuildOptions, ReadOptions, build_knowledge_base
from retriever_svc.build.sources import SourcePassage, read_rows
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.loading import RetrievalOptions
from retriever_svc.rows import MemoryRows
from tests.retriever_svc.models import DIMENSION
from tests.retriever_svc.sources import read_passages, without_counts

Rows = list[dict[str, Any]]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_stream(path: Path, rows: Rows) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path, Rows], object]] = {
    "a.jsonl": write_jsonl,
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "a.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
    "a.arrow": write_stream,
    "a.feather": lambda path, rows: pyarrow.feather.write_feather(pa.Table.from_pylist(rows), str(path)),
    "a.lance": lambda path, rows: lance.write_dataset(pa.Table.from_pylist(rows), str(path)),
}


def metadata(passage: SourcePassage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(passage.metadata_json or "{}")
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_further_columns_are_metadata_in_every_format(name: str, tmp_path: Path) -> None:
    row = {"id": "1", "title": "T", "text": "one", "lang": "en", "metadata": '{"year": 1999, "lang": "de"}'}
    WRITERS[name](tmp_path / name, [row])
    (passage,) = read_passages(tmp_path / name)
    assert (passage.id, passage.title, passage.text) == ("1", "T", "one")
    assert metadata(passage) == {"lang": "de", "year": 1999}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_metadata_column_may_be_an_object(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [{"id": "1", "text": "one", "metadata": {"year": 1999}, "n": None}])
    assert [metadata(passage) for passage in read_passages(tmp_path / name)] == [{"year": 1999}]


@pytest.mark.parametrize("name", WRITERS)
def test_usual_names_stand_for_id_and_text(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [{"_id": "d1", "title": "T", "contents": "one", "k": "v"}])
    notes: list[str] = []
    found = list(read_rows(tmp_path / name, notify=notes.append))
    assert [(row.id, row.text, metadata(row)) for row in found if isinstance(row, SourcePassage)] == [
        ("d1", "one", {"k": "v"})
    ]
    assert notes == ["reading the column '_id' as the id", "reading the column 'contents' as the text"]


@pytest.mark.parametrize("name", WRITERS)
def test_ids_are_made_of_file_and_line_where_there_are_none(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [{"title": "T", "text": "one"}, {"title": "T", "text": "two"}])
    first = 2 if name in ("a.csv", "a.tsv") else 1
    notes: list[str] = []
    found = [row for row in read_rows(tmp_path / name, notify=notes.append) if isinstance(row, SourcePassage)]
    assert [row.id for row in found] == [f"{name}:{first}", f"{name}:{first + 1}"]
    assert notes[0].endswith(f"has no column 'id': ids are made of file and line, as in {name}:{first}")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.jsonl", {"quotes": "no"}, "quotes is 'no'; the format jsonl has no quotes"),
        ("a.md", {"text_column": "x"}, "text_column is 'x', and a source of the format markdown has no columns"),
        ("a.txt", {"id_column": "x"}, "id_column is 'x', and a source of the format text has no columns"),
        ("a.csv", {"id_column": "x", "text_column": "x"}, "text_column is 'x', as id_column is: a column holds one of"),
        (
            "a.csv",
            {"text_column": "x", "without_columns": ("x",)},
            "text_column is 'x', which without_columns leaves out: name another",
        ),
        ("a.csv", {"without_columns": ("text",)}, "{file}:1: column 'text' is missing: the columns are 'n'; name"),
    ],
)
def test_options_that_contradict_each_other_or_the_format(
    name: str, options: dict[str, Any], said: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("n,text\n1,one\n")
    build = BuildOptions(reading=ReadOptions(**options))
    with pytest.raises(InvalidInputError) as refused:
        build_knowledge_base(tmp_path / name, tmp_path / "kb", model, build=build)
    assert refused.value.message.startswith(said.format(file=tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_columns_are_named_or_left_out_by_options(name: str, tmp_path: Path) -> None:
    row = {"key": "k1", "headline": "H", "abstract": "one", "secret": "s", "n": "2", "text": "other"}
    WRITERS[name](tmp_path / name, [row])
    options = ReadOptions("key", "headline", "abstract", ("secret", "text", "nothing"))
    notes: list[str] = []
    found = list(read_rows(tmp_path / name, options=options, notify=notes.append))
    assert [(row.id, row.title, row.text, metadata(row)) for row in found if isinstance(row, SourcePassage)] == [
        ("k1", "H", "one", {"n": "2"})
    ]
    assert notes == ["no column is named 'nothing' (--without-column)"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_that_no_row_has_is_no_reason_to_skip_rows(name: str, model: Path, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [{"id": "1", "title": "T", "text": "one"}])
    build = BuildOptions(reading=ReadOptions(id_column="nope"))
    with pytest.raises(
        InvalidInputError, match=r"'nope' \(--id-column\) is missing; the columns are 'id', .*"
    ) as caught:
        build_knowledge_base(tmp_path / name, tmp_path / "kb", model, build=build)
    assert "skip_bad_rows" not in caught.value.message


def test_a_column_that_other_rows_have_may_be_skipped_with_its_row(model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"pid": "1", "text": "one"}, {"text": "two"}])
    build = BuildOptions(reading=ReadOptions(id_column="pid"))
    with pytest.raises(
        InvalidInputError, match=r":2: column 'pid' .* is missing; .*skip_bad_rows leaves such rows out"
    ):
        build_knowledge_base(tmp_path / "a.jsonl", tmp_path / "kb", model, build=build)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"id": "1", "t": "x"}, ReadOptions(), r"'text' is missing: the columns are 'id', 't'; .*--text-column"),
        ({"id": "1", "body": "x", "content": "y"}, ReadOptions(), r"'body' and 'content' may both be the text"),
        ({"id": "1", "text": "x", "b": "y"}, ReadOptions(text_column="b"), r"leave it out \(--without-column text\)"),
        ({"id": "1", "text": "x"}, ReadOptions(id_column="pid"), r"'pid' \(--id-column\) is missing"),
    ],
)
def test_doubtful_columns_are_refused(
    name: str, row: dict[str, str], options: ReadOptions, message: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, [row])
    with pytest.raises(InvalidInputError, match=rf"{name}:1: .*{message}"):
        list(read_passages(tmp_path / name, options=options))


def test_no_column_is_lost_silently(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("id,text,n,n\n1,a,2,3\n")
    with pytest.raises(InvalidInputError, match=r"a\.csv:1: column 'n' is there twice"):
        list(read_passages(source))
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "a", "n": 1, "n": 2}\n')
    with pytest.raises(InvalidInputError, match=r"the key 'n' is there twice"):
        list(read_passages(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_text(
        '{"id": "1", "text": "a", "n": NaN}\n{"text": "b"}\n{"id": "3", "text": Infinity}\n'
    )
    first, second, third = read_rows(tmp_path / "b.jsonl")
    assert isinstance(first, SourcePassage)
    assert first.metadata_json == ""
    assert isinstance(second, InvalidInputError)
    assert "column 'id' is missing" in second.message
    assert isinstance(third, InvalidInputError)
    assert "Infinity is not a JSON value" in third.message


def typed_table() -> pa.Table:
    utc = datetime.UTC
    when = datetime.datetime(2020, 1, 2, 3, 4, 5, 6000, utc)
    columns = {
        "id": pa.array(["1", "2"]),
        "text": pa.array(["a", "b"]).dictionary_encode(),
        "price": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")], pa.decimal128(9, 2)),
        "day": pa.array([datetime.date(2020, 1, 2)] * 2),
        "at": pa.array([when, None], pa.timestamp("us", "UTC")),
        "nanos": pa.array([1_600_000_000_123_456_789, None], pa.timestamp("ns")),
        "clock": pa.array([datetime.time(1, 2, 3)] * 2),
        "took": pa.array([datetime.timedelta(seconds=1.5)] * 2, pa.duration("ns")),
        "raw": pa.array([b"bytes"] * 2),
        "uuid": pa.array([uuid.UUID(int=1).bytes] * 2, pa.uuid()),
        "score": pa.array([float("nan"), 0.5]),
        "half": pa.array(np.array([0.5, 1], np.float16)),
        "tags": pa.array([["a"], []], pa.large_list(pa.string())),
        "nested": pa.array([{"x": {"y": [1.0, None]}}, None]),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "kind": pa.array(["p", "q"]).dictionary_encode(),
    }
    return pa.table(columns)


TYPED = {
    "price": 1.5,
    "day": "2020-01-02",
    "at": "2020-01-02T03:04:05.006000+00:00",
    "nanos": "2020-09-13T12:26:40.123456",
    "clock": "01:02:03",
    "took": 1.5,
    "raw": "bytes",
    "uuid": "00000000-0000-0000-0000-000000000001",
    "half": 0.5,
    "tags": ["a"],
    "nested": {"x": {"y": [1.0, None]}},
    "map": {"k": 1},
    "kind": "p",
}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_every_type_has_one_form_in_json(name: str, tmp_path: Path) -> None:
    table = typed_table()
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    first, second = read_passages(tmp_path / name)
    assert metadata(first) == TYPED
    assert (second.text, metadata(second)["price"], metadata(second)["score"]) == ("b", 2, 0.5)
    assert not {"at", "nanos", "nested"} & set(metadata(second))


def test_a_column_without_a_form_in_json_is_named_and_may_be_left_out(tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["a", "b"], "image": [b"ok", b"\xff\xd8"]}), source)
    first, second = read_rows(source)
    assert isinstance(first, SourcePassage)
    assert isinstance(second, InvalidInputError)
    assert second.message == (
        f"{source}:2: column 'image' holds bytes that are not UTF-8 text: leave the column out (--without-column image)"
    )
    assert len(list(read_passages(source, options=ReadOptions(without_columns=("image",))))) == 2


def test_the_index_of_pandas_is_left_out(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": ["a", "b"], "text": ["x", "y"], "n": [1.0, None]}, index=[5, 7])
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv")
    frame.index.name = None
    assert "__index_level_0__" in pq.read_schema(tmp_path / "a.parquet").names
    assert [metadata(row) for row in read_passages(tmp_path / "a.parquet")] == [{"n": 1.0}, {}]
    assert [metadata(row) for row in read_passages(tmp_path / "a.csv")] == [{"n": "1.0"}, {}]


def vectors_of(out: Path) -> np.ndarray:
    rows = MemoryRows.read(KnowledgeBase.open(out).dataset)
    return rows.vectors(np.arange(rows.size))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), DIMENSION), pa.large_list(pa.float32())]
)
def test_embeddings_of_the_encoders_width_are_the_vectors(
    kind: pa.DataType, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source, given = tmp_path / "a.parquet", np.random.default_rng(1).normal(size=(3, DIMENSION)).astype(np.float32)
    table = pa.table({"title": ["T"] * 3, "text": ["a", "", "c"], "embeddings": pa.array(given.tolist(), kind)})
    pq.write_table(table, source)
    notes: list[str] = []
    build = BuildOptions(skip_bad_rows=True, notify=notes.append)
    build_knowledge_base(source, tmp_path / "kb", model, options=options, build=build)
    np.testing.assert_array_equal(vectors_of(tmp_path / "kb"), given[[0, 2]])
    assert any(note.startswith("the vectors are those of the column 'embeddings'") for note in notes)


def test_embeddings_that_do_not_fit_are_left_out_and_named(
    model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    write_jsonl(source, [{"id": "1", "text": "a", "embeddings": [0.5] * 5}])
    notes: list[str] = []
    build_knowledge_base(source, tmp_path / "kb", model, options=options, build=BuildOptions(notify=notes.append))
    made = vectors_of(tmp_path / "kb")
    write_jsonl(source, [{"id": "1", "text": "a"}])
    build_knowledge_base(source, tmp_path / "kb2", model, options=options)
    np.testing.assert_array_equal(made, vectors_of(tmp_path / "kb2"))
    assert without_counts(notes) == [
        f"column 'embeddings' is left out: it has vectors of 5 values, and the model's encoder makes {DIMENSION}"
    ]


@pytest.mark.parametrize(
    ("first", "words", "why"),
    [
        ([1.0] * DIMENSION, 5, "its vectors are those of whole texts, and the texts are split"),
        (None, None, "the first passage has no vector"),
    ],
)
def test_vectors_of_a_column_are_not_left_out_silently(
    first: list[float] | None, words: int | None, why: str, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    write_jsonl(source, [{"id": str(n), "text": "a", "embeddings": vector} for n, vector in enumerate([first, [1.0]])])
    notes: list[str] = []
    build = BuildOptions(notify=notes.append)
    build_knowledge_base(source, tmp_path / "kb", model, options=options, split_words=words, build=build)
    assert without_counts(notes) == [f"column 'embeddings' is left out: {why}"]


def test_embeddings_that_are_missing_or_not_finite_are_bad_rows(
    model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source = tmp_path / "a.parquet"
    values = [[1.0] * DIMENSION, None, [float("nan")] * DIMENSION, [1.0] * 3, [2.0] * DIMENSION]
    pq.write_table(pa.table({"id": list("abcde"), "text": list("abcde"), "embeddings": values}), source)
    with pytest.raises(InvalidInputError, match=r"a\.parquet:2: column 'embeddings' is missing"):
        build_knowledge_base(source, tmp_path / "kb", model, options=options)
    build = BuildOptions(skip_bad_rows=True)
    assert build_knowledge_base(source, tmp_path / "kb", model, options=options, build=build).passages == 2
    assert vectors_of(tmp_path / "kb")[:, 0].tolist() == [1.0, 2.0]


def test_vectors_under_other_names_are_not_metadata(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "a", "emb": [0.5] * 64, "few": [0.5, 1.5]}]
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        WRITERS[name](tmp_path / name, rows)
        notes: list[str] = []
        (passage,) = read_rows(tmp_path / name, notify=notes.append)
        assert isinstance(passage, SourcePassage)
        assert metadata(passage) == {"few": [0.5, 1.5]}
        assert without_counts(notes) == ["column 'emb' holds vectors and is left out; name it 'embeddings' to use them"]


def test_an_error_names_the_first_columns_only(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text(",".join(f"column{number}" * 20 for number in range(5000)) + "\n")
    with pytest.raises(InvalidInputError, match=r"and 4980 more; .* the first line must name the columns") as caught:
        list(read_passages(source))
    assert len(caught.value.message) < 2000
