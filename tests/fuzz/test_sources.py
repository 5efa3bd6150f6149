"""Random files through every reader: only our own errors come out, rows have their place, and nothing hangs."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragserve.errors import InvalidInputError, RagserveError
from ragserve.passage_rules import PassageLimits
from retriever_svc.build.reading import QUOTES, ReadOptions
from retriever_svc.build.sources import SourcePassage, read_rows
from tests.fuzz.corpora import HTML, MARKDOWN, PDF

SECONDS = 20.0  # for one file of some kilobytes
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck))

CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.text(alphabet='"\t,\r\n\\ab1\x00\u2028\ufeff', max_size=20),
    st.lists(st.floats(allow_nan=True), max_size=40),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)
NAMES = st.sampled_from(["id", "_id", "text", "contents", "body", "title", "metadata", "embeddings", "", "x", "ID"])
RECORDS = st.lists(st.dictionaries(NAMES, CELLS, max_size=6), max_size=6)


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode("utf-8", "surrogatepass")


def as_array(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode("utf-8", "surrogatepass")


def as_delimited(delimiter: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def write(rows: list[dict[str, Any]]) -> bytes:
        file = io.StringIO()
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "text", "title", "x"])
        writer.writerows([str(value) for _, value in sorted(row.items())] for row in rows)
        return file.getvalue().encode("utf-8", "surrogatepass")

    return write


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows with those columns that Arrow can hold."""
    names = sorted({name for row in rows for name in row}) or ["text"]
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            columns[name] = pa.array([repr(row.get(name)).encode() for row in rows])
    return pa.table(columns)


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    try:
        pq.write_table(as_table(rows), file)
    except (pa.ArrowException, ValueError):  # such as an empty struct
        pq.write_table(pa.table({"text": ["x"]}), file)
    return file.getvalue()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    file, table = io.BytesIO(), as_table(rows)
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def as_feather(rows: list[dict[str, Any]]) -> bytes:
    file, table = io.BytesIO(), as_table(rows)
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": as_jsonl,
    "a.json": as_array,
    "a.csv": as_delimited(","),
    "a.tsv": as_delimited("\t"),
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "a.feather": as_feather,
    "a.json.gz": lambda rows: gzip.compress(as_array(rows)),
    "a.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "a.csv.gz": lambda rows: gzip.compress(as_delimited(",")(rows)),
}
SAMPLE = [{"id": f"{number}", "text": f'some "text" {number}', "title": "T", "x": number} for number in range(5)]
DOCUMENTS = {"a.html": HTML, "a.md": MARKDOWN, "a.pdf": PDF, "a.txt": b"some text\n"}
FORMATS = [*WRITERS, *DOCUMENTS]
QUOTED = ("a.csv", "a.tsv", "a.csv.gz")


@cache
def valid(name: str) -> bytes:
    return DOCUMENTS[name] if name in DOCUMENTS else WRITERS[name](SAMPLE)


def check(name: str, content: bytes, options: ReadOptions | None = None) -> list[SourcePassage]:
    """Read a file; its passages. Whatever is wrong with it must come as one of our errors, with its place."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / name
        source.write_bytes(content)
        began = time.perf_counter()
        rows: list[SourcePassage | InvalidInputError] = []
        try:
            rows.extend(read_rows(source, None, PassageLimits(text_bytes=100_000), options))
        except RagserveError as error:
            assert name in error.message  # noqa: PT017
        assert time.perf_counter() - began < SECONDS
    for row in rows:
        if isinstance(row, InvalidInputError):
            assert f"{name}:" in row.message
        else:
            assert row.text.strip()
            assert row.id
            json.loads(row.metadata_json or "{}")
            (row.id + row.title + row.text + row.metadata_json).encode()
    return [row for row in rows if isinstance(row, SourcePassage)]


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A valid file with bytes replaced, removed, repeated, or cut off."""
    content = bytearray(valid(name))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        size = draw(st.integers(0, 8))
        how = draw(st.sampled_from(["flip", "insert", "remove", "repeat", "cut"]))
        if how == "flip" and content:
            content[at] ^= draw(st.integers(1, 255))
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=8))
        elif how == "remove":
            del content[at : at + size]
        elif how == "repeat":
            content[at:at] = bytes(content[at : at + size]) * draw(st.integers(1, 50))
        elif how == "cut" and draw(st.booleans()):
            del content[at:]
    return bytes(content)


TOKENS = {
    "a.html": "<p> </p> <div> <a href=' > <!-- --> <![CDATA[ ]]> <pre> <li> <td> & &#55296; x é \n <main> <nav>",
    "a.md": "# ``` --- [ ]( ) ![ * _ > - | <b> <!-- --> 1. x \n \n\n \t title: : & \\ ~~~ é [x]: {",
    "a.pdf": "obj endobj << >> /Type /Page /Pages stream endstream ( ) [ ] 1 0 R xref trailer %PDF-1.4 %%EOF \n",
    "a.txt": "x \n \r \x00 é \ufeff",
    "a.jsonl": '{ } [ ] " : , id text "id": "text": "x" 1 1e999 NaN \\ud800 \\u0000 \n \r null true -',
    "a.json": '[ ] { } , " : "id": "text": "x" {"text":"x"} {"id":1} 1 1e999 NaN \\ud800 \n null true - \ufeff',
    "a.csv": 'id text , " "" \n \r\n \r x 1 id,text\n 1,x\n',
    "a.tsv": 'id text \t " "" \n \r\n \r x 1 id\ttext\n 1\tx\n',
}


def tokens(name: str) -> st.SearchStrategy[bytes]:
    """Files of the format's own words in any order, some of them very often."""
    words = [word for word in TOKENS[name].split(" ") if word] + [" "]
    runs = st.tuples(st.sampled_from(words), st.sampled_from([1, 1, 1, 2, 5, 300]))
    start = {"a.csv": "id,text\n", "a.tsv": "id\ttext\n"}.get(name, "")
    return st.lists(runs, max_size=25).map(lambda found: (start + "".join(w * n for w, n in found)).encode())


def inputs(name: str) -> st.SearchStrategy[bytes]:
    kinds = [st.binary(max_size=200), mutated(name)]
    if name in WRITERS:
        kinds.append(RECORDS.map(WRITERS[name]))
    if name in TOKENS:
        kinds.append(tokens(name))
    return st.one_of(kinds)


def options(name: str) -> st.SearchStrategy[ReadOptions]:
    """What has a meaning for the format."""
    return st.builds(
        ReadOptions,
        text_column=st.sampled_from([None] if name in DOCUMENTS else [None, None, "x", "body"]),
        without_columns=st.sampled_from([(), (), ("x",), ("text",)]),
        quotes=st.sampled_from(QUOTES if name in QUOTED else ["auto"]),
    )


def run(name: str, many: settings) -> None:
    @many
    @given(content=inputs(name), reading=options(name))
    def every_file(content: bytes, reading: ReadOptions) -> None:
        check(name, content, reading)

    every_file()


@pytest.mark.parametrize("name", FORMATS)
def test_only_our_errors_come_out(name: str) -> None:
    run(name, FEW)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", FORMATS)
def test_only_our_errors_come_out_of_many(name: str) -> None:
    run(name, MANY)


@pytest.mark.parametrize("name", FORMATS)
def test_valid_files_are_read(name: str) -> None:
    assert check(name, valid(name))


TEXT = st.text(max_size=30).filter(lambda text: bool(text.strip()) and "\x00" not in text)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow"])
@FEW
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_every_text_comes_back_as_it_was(name: str, texts: list[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"id": str(number), "text": text, "title": "", "x": "y"} for number, text in enumerate(texts)
    ]
    found = check(name, WRITERS[name](rows), ReadOptions(quotes="yes" if name in QUOTED else "auto"))
    assert [row.text for row in found] == texts


PATHOLOGICAL = {
    "open brackets": ("a.md", b"[" * 90_000),
    "open images": ("a.md", b"![" * 45_000),
    "deep quotes": ("a.md", b"> " * 40_000),
    "deep lists": ("a.md", b"- " * 40_000),
    "stars": ("a.md", b"*a " * 30_000),
    "yaml aliases": ("a.md", b"---\na: &a [x,x,x,x,x,x,x,x]\n" + b"b: [*a,*a]\n" * 20 + b"---\nx"),
    "yaml depth": ("a.md", b"---\na: " + b"[" * 5000 + b"\n---\nx"),
    "open tags": ("a.html", b"<a" * 100_000),
    "open comments": ("a.html", b"<!--" * 50_000),
    "open attributes": ("a.html", b"<a x='" * 50_000),
    "tags in tags": ("a.html", b"<a " * 60_000 + b">"),
    "open sections": ("a.html", b"<![CDATA[" * 30_000),
    "deep elements": ("a.html", b"<div>" * 50_000 + b"x"),
    "deep cells": ("a.html", b"<table><tr><td>" * 20_000 + b"x"),
    "deep json": ("a.jsonl", b'{"a":' * 50_000),
    "deep arrays": ("a.json", b"[{" + b'"a":{' * 50_000),
    "an array that does not end": ("a.json", b'[{"text": "x"},' * 1 + b'{"text": "x"}, ' * 30_000),
    "an object that does not end": ("a.json", b'[{"text": "' + b"x" * 3_000_000),
    "long numbers": ("a.jsonl", b'{"id": 1, "text": "a", "n": ' + b"9" * 100_000 + b"}"),
    "open quotes": ("a.tsv", b"id\ttext\n" + b'1\t"x\n' * 30_000),
    "quotes and lines": ("a.csv", b"id,text\n" + b'1,"""\n' * 30_000 + b"x,y\n" * 30_000),
    "gzip bomb": ("a.jsonl.gz", gzip.compress(b" " * 100_000_000)),
}


@pytest.mark.parametrize("kind", PATHOLOGICAL)
def test_nothing_hangs(kind: str) -> None:
    check(*PATHOLOGICAL[kind])
