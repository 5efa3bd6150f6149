"""What is said of errors of libraries: real ones, where they can be had."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from ragserve.files import parse_json
from ragserve.reasons import MOST_CHARACTERS, reason_of


def raised_by(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


PACKED = gzip.compress(b"text" * 100)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: json.loads("1" * 5000), "a number has more than 4,300 digits"),
        (lambda: json.loads("[" * 10**6), "it is nested too deeply"),
        (lambda: json.loads("{"), "Expecting property name enclosed in double quotes at character 2"),
        (lambda: timedelta(days=10**9), "a time is out of range"),
        (lambda: timedelta(days=10**10), "a number or time is out of range"),
        (lambda: datetime(9999, 12, 31) + timedelta(days=1), "a time is out of range"),
        (lambda: datetime(20000, 1, 1), "a time is out of range"),
        (
            lambda: list(csv.reader(['"a"b\tc'], delimiter="\t", strict=True)),
            "something follows the quote that ends a text",
        ),
        (lambda: list(csv.reader(['"a'], strict=True)), "a quote has no end"),
        (lambda: gzip.decompress(b"text"), "its name ends in .gz, and it is not gzipped"),
        (lambda: gzip.decompress(PACKED[:-9]), "it ends early"),
        (lambda: gzip.decompress(PACKED[:-8] + bytes(8)), "its compressed data are damaged"),
        (lambda: zlib.decompress(b"text"), "its compressed data are damaged"),
        (lambda: {}["x"], "it is damaged"),
        (lambda: None.x, "it is damaged"),  # type: ignore[attr-defined]
        (lambda: io.StringIO(3), "initial_value must be str or None, not int"),  # type: ignore[arg-type]
        (lambda: json.dumps({(1,): 2}), "keys must be str, int, float, bool or None, not tuple"),
    ],
)
def test_errors_of_pythons_own_libraries(call: Callable[[], Any], said: str) -> None:
    assert reason_of(raised_by(call)) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "LanceError(IO): Not found: kb/x.manifest, /root/.cargo/git/lance-1/rust/lance-io/src/object_store.rs:12:5",
            "Not found: kb/x.manifest",
        ),
        ("Not found: kb, rust/lance/src/dataset.rs:7: and more", "Not found: kb: and more"),
        ("Error in void faiss::f(int) at /a b/faiss/Index.cpp:39: Error: 'd > 0' failed", "'d > 0' failed"),
        ("two\n  lines\t", "two lines"),
        ("", "it is damaged"),
        ("x" * 1000, "x" * MOST_CHARACTERS + "…"),
    ],
)
def test_places_in_the_source_of_a_library_are_left_out(text: str, said: str) -> None:
    assert reason_of(RuntimeError(text)) == said


def test_json_of_anybody() -> None:
    assert parse_json('{"a": 1}') == {"a": 1}
    for text, said in (("1" * 5000, "4,300 digits"), ("[" * 10**6, "nested too deeply"), ("{", "Expecting property")):
        with pytest.raises(ValueError, match=said):
            parse_json(text)
