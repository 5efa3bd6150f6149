"""docs/client.md names every field of every result, and no other."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import ragserve

PAGE = Path(__file__).parents[2] / "docs/client.md"
# What callers give to the clients.
GIVEN = {
    *("Condition", "Document", "GenerationOptions", "Lookup", "NewPassage", "NoneOf", "Range", "Sampling", "Split"),
}


def test_the_page_has_the_fields_of_all_results() -> None:
    assert _documented() == {name: _fields(kind) for name, kind in _results().items()}


def _results() -> dict[str, type]:
    found = {name: getattr(ragserve, name) for name in ragserve.__all__ if name not in GIVEN}
    return {name: kind for name, kind in found.items() if dataclasses.is_dataclass(kind)}


def _fields(kind: type) -> set[str]:
    properties = {name for name, value in vars(kind).items() if isinstance(value, property | cached_property)}
    return {field.name for field in dataclasses.fields(kind)} | properties


def _documented() -> dict[str, set[str]]:
    table = PAGE.read_text(encoding="utf-8").partition("| result | field |")[2].partition("\n\n")[0]
    found: dict[str, set[str]] = defaultdict(set)
    result = ""
    for row in table.splitlines()[2:]:
        _, name, fields, *_ = row.split("|")
        result = name.strip().strip("`") or result
        new = set(re.findall(r"`(\w+)`", fields))
        assert not new & found[result], f"{result} has {new & found[result]} twice"
        found[result] |= new
    return found
