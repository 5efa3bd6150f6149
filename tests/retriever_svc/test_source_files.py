"""Files as people have them: quotes, line ends and encodings, and folders of shards and documents."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.build import BuildOptions, ReadOptions, build_knowledge_base
from retriever_svc.build.reading import Quotes
from retriever_svc.build.sources import SourcePassage, read_rows
from retriever_svc.loading import RetrievalOptions
from tests.retriever_svc.sources import read_passages

RAW_QUOTES = """id\ttext\ttitle
1\tplain\tA
2\t"Heroes is a song\tB
3\tthe third\tC
4\tthe disc is 12"\tD
5\t"Let it be" is one\tE
6\t""\tF
"""
QUOTED = 'id\ttext\ttitle\n1\t"Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron\n2\t"two\nlines"\tB\n'


def texts(source: Path, quotes: Quotes = "auto") -> list[tuple[str, str]]:
    return [(row.id, row.text) for row in read_passages(source, options=ReadOptions(quotes=quotes))]


def test_quotes_are_characters_where_it_is_said(tmp_path: Path) -> None:
    source = tmp_path / "a.tsv"
    source.write_text(RAW_QUOTES)
    assert texts(source, "no") == [
        ("1", "plain"),
        ("2", '"Heroes is a song'),
        ("3", "the third"),
        ("4", 'the disc is 12"'),
        ("5", '"Let it be" is one'),
        ("6", '""'),
    ]


def test_a_quoted_text_that_swallows_records_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.tsv"
    source.write_text(RAW_QUOTES.replace('12"\tD', 'D\t12"'))
    rows = list(read_rows(source))
    wrong = [row.message for row in rows if isinstance(row, InvalidInputError)]
    assert wrong[0].startswith(f"{source}:3: badly quoted: the quoted text goes on to line 5, and lines of it read as")
    assert "(--quotes no)" in wrong[0]
    assert wrong[1].startswith(f"{source}:6: badly quoted")
    assert [row.id for row in rows if isinstance(row, SourcePassage)] == ["1", "3", "4"]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_quoted_texts_of_several_lines_are_read(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_text(QUOTED.replace("\t", "\t" if name == "a.tsv" else ","), encoding="utf-8")
    assert texts(source) == [("1", 'Aaron ( or ; "Ahärôn") is a prophet'), ("2", "two\nlines")]


def test_commas_in_a_text_of_several_lines_are_no_records(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text('id,text\n1,"one, two\nthree, four\nfive, six"\nx,"two\ny,raw"\n')
    first, second, third = read_rows(source)
    assert isinstance(first, SourcePassage)
    assert first.text == "one, two\nthree, four\nfive, six"
    assert isinstance(second, InvalidInputError)
    assert "badly quoted: the quoted text goes on to line 6" in second.message
    assert isinstance(third, SourcePassage)
    assert [row.text for row in read_passages(source, options=ReadOptions(quotes="yes"))][1] == "two\ny,raw"


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.json"])
def test_rows_in_utf_16_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('[{"text": "one"}]'.encode("utf-16"))
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(InvalidInputError, match=rf"{name}:1: the file is UTF-16: convert it to UTF-8 \(iconv "):
            list(read_passages(source))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "id\ttext\r1\tone\r"),
        ("a.csv", "id,text\r1,one\r"),
        ("a.jsonl", '{"text": "one"}\r{"text": "two"}\r'),
    ],
)
def test_rows_that_end_with_cr_alone_are_refused_by_name(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(InvalidInputError, match=r":1\b.*holds a carriage return \(CR\): lines must end with"):
        list(read_passages(tmp_path / name))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
@pytest.mark.parametrize("charset", ["utf-16", "utf-8"])
def test_documents_may_be_utf_16_and_end_lines_with_cr(name: str, charset: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("the river\rthe sea é\r".encode(charset))
    (row,) = read_passages(tmp_path / name)
    assert row.text.split() == ["the", "river", "the", "sea", "é"]


@pytest.mark.parametrize("inside", ["a\rb", "a\x85b", "a\u2028b", "a\x0cb", "a\x0bb", "a\x1eb"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "quotes"), [("a.tsv", "auto"), ("a.tsv", "no"), ("a.csv", "auto"), ("a.csv", "no"), ("a.jsonl", "auto")]
)
def test_control_characters_in_a_text_are_kept(
    name: str, end: str, inside: str, quotes: Quotes, tmp_path: Path
) -> None:
    source, delimiter = tmp_path / name, "," if name == "a.csv" else "\t"
    lines = [f"id{delimiter}text", f"1{delimiter}{inside}", f"2{delimiter}x"]
    if name == "a.jsonl":
        lines = [json.dumps({"id": "1", "text": inside}, ensure_ascii=False), '{"id": "2", "text": "x"}']
    source.write_bytes(("\ufeff" + "".join(line + end for line in lines)).encode())
    assert texts(source, quotes) == [("1", inside), ("2", "x")]


def test_line_ends_and_encodings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, content in (("a.csv", "id,text\r1,a\r2,b\r"), ("a.jsonl", '{"id": "1"}\r{"id": "2"}\r')):
        (tmp_path / name).write_bytes(content.encode())
        with pytest.raises(InvalidInputError, match=r":1\b.*carriage return \(CR\): lines must end with LF or CRLF"):
            list(read_passages(tmp_path / name))
        (tmp_path / name).write_bytes(content.replace("\r", "\n").encode("utf-16"))
        with pytest.raises(InvalidInputError, match=r":1: the file is UTF-16: convert it to UTF-8 \(iconv"):
            list(read_passages(tmp_path / name))


def shards(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    rows = [{"text": "one"}, {"text": "two"}]
    (folder / "data" / "part-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data" / "part-1.csv").write_text("id,text\nx,three\n")
    pq.write_table(pa.table({"text": ["four"]}), folder / "data" / "part-2.parquet")
    (folder / "data" / "_SUCCESS").touch()
    (folder / "data" / "_part-9.jsonl").write_text("unfinished")
    (folder / "data" / ".part-0.jsonl.crc").write_bytes(b"\xff")
    (folder / "README.md").write_text("# The data\n")


def test_a_folder_of_shards_and_documents_is_read(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shards(folder)
    (folder / "guide.md").write_text("# Guide\n\nfive")
    (folder / "notes").mkdir()
    (folder / "notes" / "README.md").write_text("six")
    (folder / "picture.png").touch()
    (folder / "loop.md").symlink_to("loop.md")
    (folder / "gone.csv").symlink_to("nowhere")
    (folder / "linked.txt").symlink_to("guide.md")
    notes: list[str] = []
    rows = [row for row in read_rows(folder, notify=notes.append) if isinstance(row, SourcePassage)]
    assert [(row.id, row.text) for row in rows] == [
        ("data/part-0.jsonl:1", "one"),
        ("data/part-0.jsonl:2", "two"),
        ("x", "three"),
        ("data/part-2.parquet:1", "four"),
        ("guide.md", "Guide\n\nfive"),
        ("linked.txt", "# Guide\n\nfive"),
        ("notes/README.md", "six"),
    ]
    assert "left out because they describe the data files beside them: README.md" in notes
    assert "not read: 4 other files (2 broken links, 1 without ending, 1 .png)" in notes
    (folder / "data" / "part-3.csv").write_text("id,text\nx,again\n")
    with pytest.raises(InvalidInputError, match=r"part-3\.csv:2: column 'id' is 'x', as in .*part-1\.csv:2"):
        build_knowledge_base(folder, tmp_path / "kb", model, options=options)
    link = tmp_path / "link"
    link.symlink_to(folder)
    build = BuildOptions(skip_bad_rows=True)
    assert build_knowledge_base(link, tmp_path / "kb", model, options=options, build=build).passages == 7


def test_a_damaged_shard_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.csv").write_text("id,text\n1,a\n")
    first, second = read_rows(tmp_path)
    assert isinstance(first, InvalidInputError)
    assert "a.parquet:1: not a Parquet file" in first.message
    assert isinstance(second, SourcePassage)


def test_a_data_set_saved_by_hugging_face_is_read_without_its_caches(tmp_path: Path) -> None:
    for split, names in (("test", ["data-00000-of-00001.arrow"]), ("train", ["b.arrow", "cache-1.arrow"])):
        (tmp_path / split).mkdir()
        for name in names:
            table = pa.table({"text": [f"{split} {name}"]})
            with pa.OSFile(str(tmp_path / split / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        state = {"_data_files": [{"filename": names[0]}], "_fingerprint": "x"}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
        (tmp_path / split / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [row.text for row in read_passages(tmp_path)] == ["test data-00000-of-00001.arrow", "train b.arrow"]


def test_a_folder_without_passages_says_what_is_looked_for(model: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.docx").touch()
    (tmp_path / "docs" / "b.json").touch()
    with pytest.raises(InvalidInputError) as caught:
        build_knowledge_base(tmp_path / "docs", tmp_path / "kb", model)
    for words in ("holds no passages: looked in it", ".jsonl, ", ".parquet, ", ".html, ", ".pdf", "1 .docx, 1 .json"):
        assert words in caught.value.message
    with pytest.raises(InvalidInputError, match=r"b\.json:1: not a JSON array of objects: .*--format jsonl"):
        list(read_rows(tmp_path / "docs" / "b.json"))


def test_a_folder_without_files_to_read_names_no_number_of_them(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    notes: list[str] = []
    assert list(read_rows(tmp_path, notify=notes.append)) == []
    assert notes == ["not read: 1 other file (1 .png)"]
