"""JSON files that hold an array of objects: alone, in a folder, large, and broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.build.formats import json_array
from retriever_svc.build.sources import read_rows
from tests.retriever_svc.sources import read_passages, without_counts

ROWS: list[dict[str, Any]] = [
    {"docid": "a", "title": "Canberra", "passage": "The capital.", "lang": "en", "unset": None},
    {"docid": "b", "title": "", "passage": "Grüße \U0001f600", "year": 1913},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_an_array_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, packed: bool) -> None:
    monkeypatch.setattr(json_array, "CHUNK", 3)  # every token is cut somewhere
    raw = b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=indent, ensure_ascii=False).encode() + b"\n"
    file = tmp_path / f"rows.json{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(raw) if packed else raw)
    found = list(read_passages(file))
    assert [(one.id, one.title, one.text) for one in found] == [
        ("a", "Canberra", "The capital."),
        ("b", "", "Grüße \U0001f600"),
    ]
    assert [json.loads(one.metadata_json) for one in found] == [{"lang": "en"}, {"year": 1913}]


def test_ids_are_made_of_the_objects_number(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}]))
    assert [one.id for one in read_passages(tmp_path / "rows.json")] == ["rows.json:1", "rows.json:2"]


def test_only_arrays_of_objects_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    notes: list[str] = []
    assert [one.id for one in read_passages(tmp_path, notify=notes.append)] == ["a", "b"]
    assert "not read: 2 other files (2 .json that is not an array of objects)" in without_counts(notes)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('{"text": "x"}', 1, "not a JSON array of objects: write"),
        ("", 1, "not a JSON array of objects: write"),
        ("[1]", 1, "not a JSON object but '1', on line 1"),
        ('[{"text": "x"},\n\n{"text": x}]', 2, "not JSON: Expecting value, on line 3"),
        ('[{"text": "x"},\n{"text": "y"', 2, "not JSON: Expecting ',' delimiter, on line 2"),
        ('[{"text": "x"}', 2, "the array does not end, on line 1"),
        ('[{"text": "x"},]', 2, "a comma stands before the end of the array, on line 1"),
        ('[{"text": "x"} {"text": "y"}]', 2, "a comma is missing before '{', on line 1"),
        ('[{"text": "x"}] 3', 2, "something stands after the end of the array: '3', on line 1"),
        ('[{"text": "x", "text": "y"}]', 1, "not JSON: the key 'text' is there twice"),
        ('[{"text": "\udcff"}]', 1, "not UTF-8: "),
        ("[" + '{"a":' * 100_000, 1, "not JSON: "),
    ],
)
def test_what_is_no_array_of_objects_is_refused_with_its_place(
    tmp_path: Path, text: str, place: int, said: str
) -> None:
    file = tmp_path / "rows.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidInputError) as caught:
        list(read_rows(file))
    assert caught.value.message.startswith(f"{file}:{place}: {said}")


def test_an_object_over_the_limit_is_one_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"text": "one"}, {"text": "two", "html": 9_000_000 * "x"}, {"text": "three"}]))
    first, second, third = read_rows(file)
    assert isinstance(second, InvalidInputError)
    assert second.message.startswith(f"{file}:2: the object is longer than 7340032 bytes (6 times max_text_bytes and 1")
    assert ". Most of it is the column 'html' (9000000 bytes): shorten it, remove it from the file" in second.message
    assert not isinstance(first, InvalidInputError)
    assert not isinstance(third, InvalidInputError)
    file.write_text(json.dumps([{"text": 70_000_000 * "x"}]))
    with pytest.raises(InvalidInputError, match="the object is longer than 7340032 bytes"):
        list(read_rows(file))


def test_a_bad_object_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": ""}, {"text": "x"}]')
    first, second = read_rows(tmp_path / "rows.json")
    assert isinstance(first, InvalidInputError)
    assert not isinstance(second, InvalidInputError)
