"""Names of files that are no ids, and values that a library cannot read: what is said names what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.build import build_knowledge_base
from retriever_svc.build.sources import SourcePassage, read_rows

WITHOUT_IDS = {
    "jsonl": '{"text": "one"}\n',
    "csv": "text,lang\none,en\n",
    "txt": "one",
    "md": "one",
    "html": "<p>one</p>",
}
NAMES = [
    (b"a\x1bb", "holds the control character U+001B"),
    (b"a\nb", "holds the control character U+000A"),
    (b"a\xffb", "is not UTF-8"),
]


def named(folder: Path, stem: bytes, ending: str, content: str) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + stem + b"." + ending.encode()))
    path.write_text(content)
    return path


@pytest.mark.parametrize("ending", WITHOUT_IDS)
@pytest.mark.parametrize(("stem", "why"), NAMES)
def test_a_name_of_a_file_that_can_be_no_id_is_named_as_the_fault(
    stem: bytes, why: str, ending: str, tmp_path: Path
) -> None:
    path = named(tmp_path, stem, ending, WITHOUT_IDS[ending])
    (found,) = read_rows(tmp_path)
    assert isinstance(found, InvalidInputError)
    assert found.message.endswith(f": the file's name {why}, and ids are made of it: rename the file")
    found.message.encode()
    assert str(path).encode("utf-8", "backslashreplace").decode() in found.message


@pytest.mark.parametrize(("stem", "why"), NAMES)
def test_rows_with_ids_need_no_other_name(stem: bytes, why: str, model: Path, tmp_path: Path) -> None:
    path = named(tmp_path, stem, "jsonl", '{"id": "1", "text": "one"}\n')
    (row,) = read_rows(path)
    assert isinstance(row, SourcePassage)
    assert build_knowledge_base(path, tmp_path / "kb", model).passages == 1


def test_a_time_that_is_out_of_range_is_said_without_pythons_words(tmp_path: Path) -> None:
    days = pa.array([10**18], pa.duration("s"))
    pq.write_table(pa.table({"id": ["1"], "text": ["one"], "d": days}), tmp_path / "a.parquet")
    (found,) = read_rows(tmp_path / "a.parquet")
    assert isinstance(found, InvalidInputError)
    assert found.message.endswith(
        "column 'd' cannot be read: a number or time is out of range: leave the column out (--without-column d)"
    )


def test_a_number_of_too_many_digits_is_said_without_pythons_words(tmp_path: Path) -> None:
    number = "1" * 5000
    (tmp_path / "a.jsonl").write_text(f'{{"id": "1", "text": "one", "n": {number}}}\n')
    (tmp_path / "b.json").write_text(f'[{{"id": "1", "text": "one", "n": {number}}}]')
    (tmp_path / "c.csv").write_text(f'id,text,metadata\n1,one,"{{""n"": {number}}}"\n')
    found = [row.message for row in read_rows(tmp_path) if isinstance(row, InvalidInputError)]
    assert [message.partition(": ")[2] for message in found] == [
        "not JSON: a number has more than 4,300 digits",
        "not JSON: a number has more than 4,300 digits, in the object that begins, on line 1",
        "column 'metadata' is not JSON: a number has more than 4,300 digits",
    ]


def test_a_badly_quoted_text_is_said_without_raw_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"one"two\n')
    (found,) = read_rows(tmp_path / "a.tsv")
    assert isinstance(found, InvalidInputError)
    assert ": badly quoted: something follows the quote that ends a text; if quotes" in found.message
    assert "\t" not in found.message
