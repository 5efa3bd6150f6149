"""Sources, splits and bad input: what is read, what is refused with its place, what may be left out."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from ragserve.errors import InvalidInputError
from ragserve.passage_rules import MAX_TEXT_BYTES, PassageLimits
from retriever_svc.build import BuildOptions, build_knowledge_base
from retriever_svc.build.sources import read_rows
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.loading import RetrievalOptions
from retriever_svc.rows import MemoryRows
from retriever_svc.splitting import by_tokens, by_words
from retriever_svc.types import Passage
from tests.retriever_svc.sources import WHOLE, read_passages, without_counts
from tests.tiny import tiny_text


def stored(out: Path) -> list[Passage]:
    rows = MemoryRows.read(KnowledgeBase.open(out).dataset)
    return rows.passages(np.arange(rows.size))


def test_a_folder_is_read_recursively(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("# not a heading in plain text\nplain", encoding="utf-8")
    (folder / "b" / "guide.md").write_text("intro\n\n## The *guide* ##\n\ntext\n# Later\n", encoding="utf-8")
    (folder / "b" / "deep" / "x.markdown").write_text("no heading: é 東京", encoding="utf-8")
    (folder / "c.docx").write_bytes(b"\xff\xff")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.md").write_text("not read")
    (folder / "loop").symlink_to(folder)
    build_knowledge_base(folder, tmp_path / "kb", model, options=options)
    assert [(row.id, row.title, row.text) for row in stored(tmp_path / "kb")] == [
        ("a.txt", "a", "# not a heading in plain text\nplain"),
        ("b/deep/x.markdown", "x", "no heading: é 東京"),
        ("b/guide.md", "The guide", "intro\n\nThe guide\n\ntext\n\nLater"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"docs/bad\.md:1: the file is empty"),
        (b"ab\xff", r"docs/bad\.md:1: not UTF-8 at byte 2 of the file; convert the file to UTF-8 \(such as with iconv"),
        (
            b"x" * (MAX_TEXT_BYTES + 1),
            r"docs/bad\.md:1: the file has 1048577 bytes; a text may have 1048576 \(max_text_bytes\): divide it or",
        ),
    ],
)
def test_a_bad_file_is_named_or_left_out(
    content: bytes, message: str, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bad.md").write_bytes(content)
    (tmp_path / "docs" / "good.md").write_text("fine")
    with pytest.raises(InvalidInputError, match=message):
        build_knowledge_base(tmp_path / "docs", tmp_path / "kb", model, options=options)
    told: list[str] = []
    build = BuildOptions(skip_bad_rows=True, notify=told.append)
    build_knowledge_base(tmp_path / "docs", tmp_path / "kb", model, options=options, build=build)
    assert [row.id for row in stored(tmp_path / "kb")] == ["good.md"]
    assert without_counts(told)[0].startswith("skipped 1 file:\n  ")


def test_a_knowledge_base_and_a_lance_dataset_are_sources(
    model: Path, knowledge_base: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    build_knowledge_base(knowledge_base, tmp_path / "again", model, options=options, build=WHOLE)
    assert stored(tmp_path / "again") == stored(knowledge_base)
    table = pa.table({"id": [7, 8], "text": ["a", "b"], "year": [1999, 2000]})
    lance.write_dataset(table, str(tmp_path / "x.lance"))
    found = list(read_passages(tmp_path / "x.lance"))
    assert [(row.id, row.metadata_json) for row in found] == [("7", '{"year": 1999}'), ("8", '{"year": 2000}')]
    (tmp_path / "y.lance").mkdir()
    with pytest.raises(InvalidInputError, match="not a Lance dataset"):
        list(read_passages(tmp_path / "y.lance"))
    with pytest.raises(InvalidInputError, match="nothing does not exist"):
        list(read_passages(tmp_path / "nothing", "folder"))
    with pytest.raises(InvalidInputError, match="is not a file, which the format csv needs"):
        list(read_passages(tmp_path, "csv"))


BROKEN = '''id\ttext\ttitle
1\tplain\tA
2\t"no end\tB
3\t"quoted ""well"""\tC
4\tplain\tD
5\t"closed" early\tE
6\ttoo\tmany\tcolumns
7\t"two
lines"\tF
8\t"never ends\tG
9\tlast\tH
'''


def test_broken_quoting_names_its_line_and_good_rows_are_kept_only_when_asked(
    model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.tsv", tmp_path / "kb"
    source.write_text(BROKEN)
    with pytest.raises(InvalidInputError, match=r"a\.tsv:3: badly quoted"):
        build_knowledge_base(source, out, model, options=options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv"]
    told: list[str] = []
    build = BuildOptions(skip_bad_rows=True, notify=told.append)
    info = build_knowledge_base(source, out, model, options=options, build=build)
    assert [(row.id, row.text) for row in stored(out)] == [
        ("1", "plain"),
        ("3", 'quoted "well"'),
        ("4", "plain"),
        ("7", "two\nlines"),
        ("9", "last"),
    ]
    assert info.passages == 5
    assert told[0].startswith("skipped 4 of 9 rows:\n  ")
    for place in (":3: badly quoted", ":6: badly quoted", ":7: 4 columns; the header has 3", ":10: badly quoted"):
        assert f"{source}{place}" in told[0]


def test_a_quote_that_does_not_end_is_given_up_at_the_limit(tmp_path: Path) -> None:
    source = tmp_path / "a.tsv"
    rows = "".join(f"{number}\tsome text of a row\n" for number in range(60_000))
    source.write_text('id\ttext\nx\t"no end\n' + rows)
    first, *others = read_rows(source, limits=PassageLimits(text_bytes=1000))
    assert isinstance(first, InvalidInputError)
    limit = "the record is longer than 1054576 bytes (6 times max_text_bytes and 1 MiB)"
    assert first.message.startswith(f"{source}:2: a quoted text has no end, or {limit}, columns that are left out")
    assert len(others) == 60_000
    assert not any(isinstance(row, InvalidInputError) for row in others)


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.csv", "a.jsonl.gz"])
def test_a_text_of_ten_megabytes_is_refused_with_its_line(
    name: str, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source, out, long = tmp_path / name, tmp_path / "kb", "word " * 2_000_000
    opened = gzip.open if name.endswith(".gz") else open
    with opened(source, "wt", encoding="utf-8", newline="") as file:
        if "jsonl" in name:
            file.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(["a", long, "b"]))
        else:
            writer = csv.writer(file, delimiter="\t" if name == "a.tsv" else ",", lineterminator="\n")
            writer.writerows([["id", "text"], [0, "a"], [1, long], [2, "b"]])
    line = 2 if "jsonl" in name else 3
    with pytest.raises(
        InvalidInputError, match=rf":{line}: the line is longer than 7340032 bytes \(6 times max_text_b"
    ):
        build_knowledge_base(source, out, model, options=options)
    build = BuildOptions(skip_bad_rows=True)
    build_knowledge_base(source, out, model, options=options, build=build)
    assert [row.id for row in stored(out)] == ["0", "2"]


def test_a_longer_text_is_read_when_the_limit_is_raised(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"id": "1", "text": "é" * 1_000_000}) + "\n")
    with pytest.raises(InvalidInputError, match=r":1: column 'text' has 2000000 bytes; a text may have 1048576 \("):
        list(read_passages(source))
    assert len(next(read_passages(source, limits=PassageLimits(text_bytes=2_000_000))).text) == 1_000_000


def test_repeated_ids_are_named_or_left_out(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "kb"
    words = " ".join(map(str, range(25)))
    rows = [("a", words), ("b", "x"), ("a", "short"), ("b", words), ("a#1", "y"), ("c", "z")]
    source.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in rows))
    with pytest.raises(InvalidInputError, match=r"a\.jsonl:3: column 'id' is 'a', as in line 1"):
        build_knowledge_base(source, out, model, split_words=10, options=options)
    told: list[str] = []
    build = BuildOptions(skip_bad_rows=True, shard_passages=2, notify=told.append)
    info = build_knowledge_base(source, out, model, split_words=10, options=options, build=build)
    assert [row.id for row in stored(out)] == ["a#0", "a#1", "a#2", "b", "c"]
    assert info.passages == 5
    assert told[0].startswith("skipped 3 of 6 rows:\n  ")
    assert "a.jsonl:4: column 'id' is 'b', as in line 2" in told[0]


def test_repeats_are_found_across_many_rows(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("id,text\n" + "".join(f"{number},t\n" for number in range(66_000)) + "5,t\n")
    with pytest.raises(InvalidInputError, match=r"a\.csv:66002: column 'id' is '5', as in line 7"):
        build_knowledge_base(source, tmp_path / "kb", model)


def test_nothing_but_bad_rows_is_refused(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("{\n[]\n")
    with pytest.raises(InvalidInputError, match=r"holds no passages: 2 bad rows, .*a\.jsonl:1, column 2: not JSON"):
        build_knowledge_base(source, tmp_path / "kb", model, build=BuildOptions(skip_bad_rows=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_gzip_that_ends_early_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl.gz"
    rows = "".join(json.dumps({"id": number, "text": f"text {number * 7919}"}) + "\n" for number in range(1000))
    source.write_bytes(gzip.compress(rows.encode())[:-100])
    with pytest.raises(InvalidInputError, match=r"a\.jsonl\.gz:\d+: the file cannot be unpacked: it"):
        list(read_passages(source))


def test_tokens_are_cut_with_overlap_out_of_the_original_text(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "passage_encoder" / "tokenizer.json"))
    tokenizer.no_truncation()
    words = [word for word in tiny_text(60, random.Random(1)).split() if len(tokenizer.encode(word).ids) == 3]
    text = "".join(word + ("\n" if number % 5 == 0 else "  ") for number, word in enumerate(words))
    cut = by_tokens(model / "passage_encoder", 6, 2)
    chunks = cut("", text)
    assert len(chunks) > 4
    assert all(chunk in text for chunk in chunks)

    def tokens(piece: str) -> list[int]:
        return list(tokenizer.encode(piece, add_special_tokens=False).ids)

    assert all(len(tokens(chunk)) <= 6 for chunk in chunks)
    rebuilt = tokens(chunks[0])
    for before, after in itertools.pairwise(chunks):
        assert tokens(before)[-2:] == tokens(after)[:2]
        rebuilt += tokens(after)[2:]
    assert rebuilt == tokens(text)
    assert cut("", "city") == ["city"]
    assert by_words(2)("", "a b c") == ["a b", "c"]


def test_token_chunks_keep_title_and_metadata(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"id": "a", "title": "T", "text": "the old city and the river", "n": 1}) + "\n")
    build = BuildOptions(split_tokens=4, overlap=1)
    build_knowledge_base(source, tmp_path / "kb", model, options=options, build=build)
    found = stored(tmp_path / "kb")
    assert len(found) > 1
    assert [row.id for row in found] == [f"a#{number}" for number in range(len(found))]
    assert {(row.title, row.metadata_json) for row in found} == {("T", '{"n": 1}')}


@pytest.mark.parametrize(
    ("words", "build", "message"),
    [
        (None, {"split_tokens": 0}, "split_tokens is 0; it must be between 1 and 46: the encoder"),
        (None, {"split_tokens": 47}, "split_tokens is 47; it must be between 1 and 46"),
        (None, {"split_tokens": 8, "overlap": 8}, "overlap is 8; it must be between 0 and 7: split_tokens is 8"),
        (None, {"overlap": 1}, "overlap is 1, which only split_tokens uses"),
        (5, {"split_tokens": 5}, "split_tokens is 5 and split_words is 5: give one"),
        (4, {"split": "none"}, "split is 'none' and split_words is 4: leave one out"),
        (None, {"split": "sentences", "split_tokens": 4}, "split is 'sentences' and split_tokens is 4: leave one out"),
        (5, {"embeddings": (Path("x.npy"),)}, "split_words is 5, and given vectors .*: do not split"),
        (None, {"embeddings": (Path("x.npy"),), "split": "sentences"}, "split is 'sentences', and given vectors"),
        (None, {"workers": 2}, "workers is 2; it goes with the engine 'ray'"),
        (None, {"engine": "spark"}, "must be one of local, ray"),
        (None, {"shard_passages": -1}, "shard_passages is -1"),
        (None, {"max_text_bytes": 0}, "max_text_bytes is 0"),
        (None, {"workers": -1}, "workers is -1"),
    ],
)
def test_options_that_cannot_be(words: int | None, build: dict, message: str, model: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"id": "1", "text": "a"}\n')
    with pytest.raises(InvalidInputError, match=message):
        build_knowledge_base(source, tmp_path / "kb", model, split_words=words, build=BuildOptions(**build))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["metadata", "html"])
def test_the_column_that_makes_a_line_too_long_is_named(tmp_path: Path, name: str) -> None:
    source = tmp_path / "p.jsonl"
    large = {"notes": "x" * 15_000_000} if name == "metadata" else "x" * 15_000_000
    source.write_text(f'{{"id": "a", "text": "one"}}\n{json.dumps({"id": "b", "text": "two", name: large})}\n')
    first, second = read_rows(source)
    assert not isinstance(first, InvalidInputError)
    assert isinstance(second, InvalidInputError)
    assert second.message.startswith(f"{source}:2: the line is longer than 7340032 bytes ")
    assert f", columns that are left out included. Most of it is the column '{name}' (15000" in second.message
    assert second.message.endswith(": shorten it, remove it from the file, or raise max_text_bytes")


def test_the_further_column_that_makes_the_metadata_too_large_is_named(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["one"], "url": ["u"], "html": ["x" * 600_000]}), source)
    advice = r"1: column 'metadata' has \d+ bytes.*column 'html' \(600002 bytes\).*--without-column html"
    with pytest.raises(InvalidInputError, match=advice):
        build_knowledge_base(source, tmp_path / "kb", model)
    own = json.dumps({"html": "x" * 600_000})  # an entry that no column of the source has
    pq.write_table(pa.table({"id": ["a"], "text": ["one"], "metadata": [own]}), source)
    with pytest.raises(InvalidInputError, match=r"column 'metadata' has \d+ bytes") as caught:
        build_knowledge_base(source, tmp_path / "kb", model)
    assert "without-column" not in caught.value.message
