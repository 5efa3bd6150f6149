from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragserve.errors import FailedPreconditionError, InvalidInputError, NotFoundError
from retriever_svc.build import Progress, build_knowledge_base
from retriever_svc.encoder import TextEncoder
from retriever_svc.knowledge import KnowledgeBase, describe
from retriever_svc.loading import RetrievalOptions
from retriever_svc.rows import MemoryRows
from retriever_svc.types import Passage
from tests.retriever_svc.sources import WHOLE, read_passages
from tests.tiny import tiny_passages, write_jsonl

ROWS = [
    {"id": "1", "title": 'A "quoted" title', "text": "First, with a comma\tand a tab."},
    {"id": "2", "title": "", "text": 'Second "text"\nof two lines: é, 東京.'},
    {"id": "x-3", "title": "Third", "text": "Third."},
]


def write_delimited(path: Path, delimiter: str) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "text", "title"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_source(directory: Path, name: str) -> Path:
    path = directory / f"passages.{name}"
    if name == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif name == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        plain = write_source(directory, name.removesuffix(".gz"))
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        write_delimited(path, "\t" if name == "tsv" else ",")
    return path


@pytest.mark.parametrize("name", ["jsonl", "tsv", "csv", "parquet", "jsonl.gz", "tsv.gz"])
def test_every_format_gives_the_same_passages(
    name: str, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    out = tmp_path / "kb"
    info = build_knowledge_base(write_source(tmp_path, name), out, model, options=options)
    assert (info.passages, info.version, info.path) == (3, 1, out)
    found = MemoryRows.read(KnowledgeBase.open(out).dataset).passages(np.arange(3))
    assert found == [Passage(row["id"], row["title"], row["text"], "") for row in ROWS]
    assert not list(tmp_path.glob(".*"))


def test_vectors_are_the_passage_encoders(knowledge_base: Path, model: Path, rows: MemoryRows) -> None:
    encoder = TextEncoder.load(model / "passage_encoder", device="cpu", threads=1)
    expected = encoder.encode_passages(rows.passages(np.arange(rows.size)))
    np.testing.assert_allclose(rows.vectors(np.arange(rows.size)), expected, atol=1e-5)
    assert KnowledgeBase.open(knowledge_base).dataset.has_stable_row_ids


def test_float16_halves_the_vectors(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    source = write_source(tmp_path, "jsonl")
    build_knowledge_base(source, tmp_path / "full", model, options=options, build=WHOLE)
    assert build_knowledge_base(source, tmp_path / "half", model, precision="float16", options=options, build=WHOLE)
    assert describe(tmp_path / "half").precision == "float16"
    full, half = (MemoryRows.read(KnowledgeBase.open(tmp_path / name).dataset) for name in ("full", "half"))
    np.testing.assert_allclose(half.vectors(np.arange(3)), full.vectors(np.arange(3)), rtol=1e-3, atol=1e-4)


def test_long_texts_are_split_and_keep_their_title(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    source = tmp_path / "passages.jsonl"
    words = [f"word{number}" for number in range(250)]
    long, short = {"id": "long", "title": "T", "text": "  ".join(words), "year": 1999}, {"id": "short", "text": "a b"}
    source.write_text(json.dumps(long) + "\n" + json.dumps(short) + "\n")
    seen: list[Progress] = []
    build_knowledge_base(source, tmp_path / "kb", model, split_words=100, progress=seen.append, options=options)
    found = MemoryRows.read(KnowledgeBase.open(tmp_path / "kb").dataset).passages(np.arange(4))
    assert [passage.id for passage in found] == ["long#0", "long#1", "long#2", "short"]
    assert [passage.title for passage in found] == ["T", "T", "T", ""]
    assert [word for passage in found[:3] for word in passage.text.split()] == words
    assert all(passage.text in long["text"] for passage in found[:3])
    assert [json.loads(passage.metadata_json) for passage in found[:3]] == [{"year": 1999}] * 3
    assert seen[0] == Progress(0, 4)
    assert seen[-1] == Progress(4, 4)


def test_metadata_and_further_columns_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text('id,text,metadata,url\n1,a,"{""lang"": ""de""}",http://x\n2,b,,\n')
    first, second = read_passages(source)
    assert json.loads(first.metadata_json) == {"lang": "de", "url": "http://x"}
    assert second.metadata_json == ""


GOOD = '{"id": "1", "text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + "{broken", r"a\.jsonl:2, column 2: not JSON"),
        ("a.jsonl", GOOD + "[1]", r"a\.jsonl:2: not a JSON object"),
        ("a.jsonl", GOOD + '{"id": "2"}', r"a\.jsonl:2: column 'text' is missing"),
        ("a.jsonl", GOOD + '{"text": "b"}', r"a\.jsonl:2: column 'id' is missing"),
        ("a.jsonl", GOOD + '{"id": "2", "text": "  "}', r"a\.jsonl:2: column 'text' is empty"),
        ("a.jsonl", GOOD + '{"id": "2", "text": 5}', r"a\.jsonl:2: column 'text' is 5"),
        ("a.jsonl", GOOD + '{"id": "2", "text": "\\ud800"}', r"a\.jsonl:2: column 'text' holds half"),
        ("a.jsonl", GOOD + '{"id": "2", "text": "b", "title": ["x"]}', r"a\.jsonl:2: column 'title'"),
        ("a.jsonl", GOOD + '{"id": "2", "text": "b", "title": 0}', r"a\.jsonl:2: column 'title' is 0"),
        ("a.jsonl", GOOD + '{"id": "2", "text": "b", "metadata": [1]}', r"a\.jsonl:2: column 'metadata'"),
        (
            "a.jsonl",
            GOOD + '{"id": "2", "text": "b", "year": 1e999}',
            r"a\.jsonl:2: column 'metadata' has inf",
        ),
        ("a.jsonl", GOOD + GOOD, r"a\.jsonl:2: column 'id' is '1', as in line 1"),
        ("a.jsonl", "\n", r"a\.jsonl holds no passages"),
        ("a.csv", "id,title\n1,a\n", r"a\.csv:1: column 'text' is missing: the columns are 'id', 'title'"),
        ("a.csv", "id,text\n1,a\n2,b,c\n", r"a\.csv:3: 3 columns; the header has 2"),
        ("a.csv", 'id,text\n1,"a\nb"\n2,"b"c\n', r"a\.csv:4: badly quoted"),
        ("a.csv", 'id,text\n1,a\n2,"b', r"a\.csv:3: badly quoted"),
        ("a.tsv", "id\ttext\ttitle\n1\ta\tb\n2\t\tb\n", r"a\.tsv:3: column 'text' is empty"),
        ("a.csv", "id,text,metadata\n1,a,nope\n", r"a\.csv:2: column 'metadata' is not JSON"),
        ("a.csv", "", r"a\.csv holds no passages"),
        ("a.parquet", "no parquet", r"a\.parquet:1: not a Parquet file"),
        ("a.dat", GOOD, "say the format"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_left(
    name: str, content: str, message: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        build_knowledge_base(tmp_path / name, tmp_path / "kb", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_text_that_is_not_utf8_names_the_line(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b'{"id": "2", "text": "\xff"}\n')
    with pytest.raises(InvalidInputError, match=r"a\.jsonl:2: not UTF-8 at byte 21"):
        build_knowledge_base(source, tmp_path / "kb", model)


def test_a_parquet_row_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInputError, match=r"a\.parquet:2: column 'text' is missing"):
        list(read_passages(tmp_path / "a.parquet"))


def test_wrong_arguments_are_refused(model: Path, knowledge_base: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path, "jsonl")
    with pytest.raises(InvalidInputError, match=r"missing\.jsonl does not exist"):
        build_knowledge_base(tmp_path / "missing.jsonl", tmp_path / "kb", model)
    with pytest.raises(FailedPreconditionError, match="exists"):
        build_knowledge_base(source, knowledge_base, model)
    with pytest.raises(FailedPreconditionError, match="is not a knowledge base"):
        build_knowledge_base(source, tmp_path, model, replace=True)
    with pytest.raises(InvalidInputError, match="split_words is 0"):
        build_knowledge_base(source, tmp_path / "kb", model, split_words=0)
    with pytest.raises(InvalidInputError, match="must be one of jsonl"):
        build_knowledge_base(source, tmp_path / "kb", model, source_format="xml")
    with pytest.raises(NotFoundError, match=r"ragserve\.json"):
        build_knowledge_base(source, tmp_path / "kb", tmp_path)
    assert describe(knowledge_base).passages == 120


def test_an_error_while_embedding_is_raised_as_it_was(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_knowledge_base(write_source(tmp_path, "csv"), tmp_path / "kb", model, progress=stop, options=options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["passages.csv"]


SLOW_BUILD = """
import sys, time
from pathlib import Path
from retriever_svc.build import BuildOptions, build_knowledge_base
from retriever_svc.loading import RetrievalOptions

def slow(progress):
    print(progress.done, flush=True)
    if progress.done:
        time.sleep(60)

source, out, model = map(Path, sys.argv[1:])
options = RetrievalOptions(device="cpu", threads=1)
build = BuildOptions(split="none")
build_knowledge_base(source, out, model, replace=True, progress=slow, options=options, build=build)
"""


def kill_while_building(source: Path, out: Path, model: Path) -> None:
    command = [sys.executable, "-c", SLOW_BUILD, str(source), str(out), str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["0", "64"]
        process.send_signal(signal.SIGKILL)


def test_a_killed_build_leaves_no_knowledge_base(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    out = tmp_path / "new" / "kb"
    source = write_jsonl(tmp_path / "passages.jsonl", tiny_passages(100))
    kill_while_building(source, out, model)
    assert not out.exists()
    with pytest.raises(NotFoundError):
        describe(out)
    assert len(list(out.parent.iterdir())) == 1
    build_knowledge_base(source, out, model, options=options, build=WHOLE)
    assert [path.name for path in out.parent.iterdir()] == ["kb"]


def test_a_killed_replacement_leaves_the_old_version(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    out = tmp_path / "kb"
    build_knowledge_base(write_source(tmp_path, "jsonl"), out, model, options=options)
    source = write_jsonl(tmp_path / "more.jsonl", tiny_passages(100))
    kill_while_building(source, out, model)
    assert (describe(out).version, describe(out).passages) == (1, 3)
    assert len(MemoryRows.read(KnowledgeBase.open(out).dataset).passages(np.arange(3))) == 3
    assert build_knowledge_base(source, out, model, replace=True, options=options, build=WHOLE).passages == 100
