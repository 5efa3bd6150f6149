"""CSV whose columns end at another character than a comma, empty fields, and ids made of files' names."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.build.reading import MadeId, ReadOptions
from retriever_svc.build.sources import SourcePassage, read_rows
from tests.retriever_svc.sources import read_passages


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", 'id;text;price\n1;"one; two";1,50\n', "has no comma, so columns end at a semicolon"),
        ("a.csv", '"id";"text";"price"\n1;"one; two";1,50\n', "has no comma, so columns end at a semicolon"),
        ("a.csv", "id\ttext\tprice\n1\tone; two\t1,50\n", "has no comma, so columns end at a tab"),
        ("a.csv", "id|text|price\n1|one; two|1,50\n", "has no comma, so columns end at a vertical bar"),
        ("a.tsv", 'id,text,price\n1,one; two,"1,50"\n', "has no tab, so columns end at a comma"),
        ("a.csv", 'id,text,price\n1,one; two,"1,50"\n', ""),
    ],
)
def test_the_first_line_says_what_separates_the_columns(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    notes: list[str] = []
    (row,) = read_passages(tmp_path / name, notify=notes.append)
    assert (row.id, row.text, row.metadata_json) == ("1", "one; two", '{"price": "1,50"}')
    assert notes == ([f"{tmp_path / name}: its first line {said}"] if said else [])


def test_a_name_of_one_column_may_hold_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one;two\nx;y\n")
    (row,) = read_passages(tmp_path / "a.csv", options=ReadOptions(text_column="one;two"))
    assert row.text == "x;y"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_an_empty_field_makes_no_entry(name: str, tmp_path: Path) -> None:
    lines = ["id,text,lang,year", "1,one,,1999", "2,two,en,", "3,three,,"]
    (tmp_path / name).write_text("\n".join(lines).replace(",", "\t" if name == "a.tsv" else ",") + "\n")
    found = [row.metadata_json for row in read_passages(tmp_path / name)]
    assert found == ['{"year": "1999"}', '{"lang": "en"}', ""]


def test_what_is_not_json_is_named_by_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n\n {x}\n')
    _, error = read_rows(tmp_path / "bad.jsonl")
    assert isinstance(error, InvalidInputError)
    said = "not JSON: Expecting property name enclosed in double quotes"
    assert error.message == f"{tmp_path}/bad.jsonl:3, column 3: {said}"


def test_how_ids_are_made_is_said_only_of_rows_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("name,price\nx,1\n")
    notes: list[str] = []
    with pytest.raises(InvalidInputError, match="column 'text' is missing"):
        list(read_passages(tmp_path / "prices.csv", notify=notes.append))
    assert notes == []


def test_a_prefix_begins_only_ids_that_are_made(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "b.csv").write_text("id,text\n1,two\n")
    (tmp_path / "c.txt").write_text("three")
    options = ReadOptions(id_prefix="old/")
    found = [row for row in read_rows(tmp_path, options=options) if isinstance(row, SourcePassage)]
    assert [(row.id, isinstance(row.id, MadeId)) for row in found] == [
        ("old/a.csv:2", True),
        ("1", False),
        ("old/c.txt", True),
    ]
    notes: list[str] = []
    list(read_passages(tmp_path / "b.csv", options=options, notify=notes.append))
    assert notes == ["no id begins with 'old/' (--id-prefix): all rows have ids of their own"]
    with pytest.raises(InvalidInputError, match="id_prefix is 'a\\\\n'; ids hold no control characters"):
        ReadOptions(id_prefix="a\n").check()
