"""Builds of long texts: split by default, refused by name where they are too large, and told where they are cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.settings import OrchestratorSettings
from ragserve.errors import InvalidInputError
from ragserve.passage_rules import MAX_PASSAGE_BYTES, passage_problem
from ragserve.serving.settings import ServerSettings
from retriever_svc.build import BuildOptions, build_knowledge_base
from retriever_svc.build.fingerprint import fingerprint
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.loading import RetrievalOptions
from retriever_svc.rows import MemoryRows
from retriever_svc.search import search_offline
from retriever_svc.settings import RetrieverSettings
from tests.retriever_svc.sources import without_counts

LONG = "The old city lies on a river. " * 30


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(out: Path) -> list[str]:
    rows = MemoryRows.read(KnowledgeBase.open(out).dataset)
    return [passage.id for passage in rows.passages(np.arange(rows.size))]


def test_long_texts_are_split_by_default_and_told_when_they_are_not(
    model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", {"id": "short", "text": "a river"}, {"id": "long", "text": LONG})
    told: list[str] = []
    build_knowledge_base(source, tmp_path / "kb", model, options=options, build=BuildOptions(notify=told.append))
    found = ids(tmp_path / "kb")
    assert found == ["short", *(f"long#{number}" for number in range(len(found) - 1))]
    assert (len(found) > 4, without_counts(told)) == (True, [])
    whole = BuildOptions(split="none", shard_passages=1, notify=told.append)
    build_knowledge_base(source, tmp_path / "whole", model, options=options, build=whole)
    assert ids(tmp_path / "whole") == ["short", "long"]
    (line,) = without_counts(told)
    assert line.startswith("1 passage is longer than the passage encoder reads, beginning with ")
    assert f"{source}:2 ('long')" in line


def test_a_row_with_a_large_column_is_refused_by_name(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    rows = [{"id": str(number), "text": "a river", "html": "x" * (600_000 if number else 10)} for number in range(3)]
    source, out = write(tmp_path / "a.jsonl", *rows), tmp_path / "kb"
    with pytest.raises(InvalidInputError, match=r"a\.jsonl:2: column 'metadata' has 600012 bytes; .* may have 524288"):
        build_knowledge_base(source, out, model, options=options)
    told: list[str] = []
    skip = BuildOptions(skip_bad_rows=True, notify=told.append)
    build_knowledge_base(source, out, model, options=options, build=skip)
    assert ids(out) == ["0"]
    assert told[0].startswith("skipped 2 of 3 rows:\n  ")
    raised = BuildOptions(max_passage_bytes=10**6)
    build_knowledge_base(source, tmp_path / "larger", model, options=options, build=raised)
    assert ids(tmp_path / "larger") == ["0", "1", "2"]


def test_the_way_of_splitting_makes_another_build(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"id": "a", "text": LONG})
    ways = [(None, {}), (None, {"split": "none"}), (100, {}), (None, {"split_tokens": 20})]
    found = [
        json.dumps(fingerprint(source, "jsonl", (), model, words, "float32", BuildOptions(**build)))
        for words, build in ways
    ]
    assert len(set(found)) == len(found)


def test_the_largest_k_of_the_largest_passages_fits_into_a_message() -> None:
    message = ServerSettings(port=0, metrics_port=0).max_message_bytes
    for settings, largest in ((RetrieverSettings, "max_k"), (OrchestratorSettings, "max_n_docs")):
        fields = settings.model_fields
        assert fields["max_passage_bytes"].default == MAX_PASSAGE_BYTES
        assert fields[largest].default * (MAX_PASSAGE_BYTES + 1000) < message


@pytest.mark.parametrize(
    ("passage", "column", "reason"),
    [
        (("", "", "x"), "id", "is empty"),
        ((" ", "", "x"), "id", "is empty"),
        (("a", "", " \n"), "text", "is empty"),
        (("a\x1b[2J", "", "x"), "id", "holds the control character U+001B at position 1: remove it"),
        (("a\u2028", "", "x"), "id", "holds the control character U+2028 at position 1: remove it"),
        (("a", "t\0", "x"), "title", "holds the control character U+0000 at position 1: remove it"),
        (("a", "", "\udc80"), "text", "holds half a surrogate pair, which is no text"),
        (("a", "", "x", "[]"), "metadata_json", "is []; it must be a JSON object"),
        (("a", "", "x", '{"a": NaN}'), "metadata_json", "is not JSON: NaN is no JSON value"),
        (("a", "", "x", '{"a": 1e999}'), "metadata_json", "has inf under 'a', which JSON does not have"),
        (("a", "", "x", '{"a": ' + "[" * 64 + "]" * 64 + "}"), "metadata_json", "is nested more than 64 levels deep"),
        (
            ("a", "", "x", json.dumps({str(n): n for n in range(1001)})),
            "metadata_json",
            "has 1001 keys; it may have 1000",
        ),
    ],
)
def test_what_a_passage_may_not_hold(passage: tuple[str, ...], column: str, reason: str) -> None:
    assert passage_problem(*passage) == (column, reason)


def test_what_a_passage_may_hold() -> None:
    assert passage_problem("a b/ü#1", "t\tt", "form\ffeed\x1b and\nlines", '{"a": {"b": [1, null, "\\n"]}}') is None
    assert passage_problem("a", "", "x" * (MAX_PASSAGE_BYTES - 1)) is None
    assert passage_problem("a", "", "x" * MAX_PASSAGE_BYTES) is not None


def test_a_search_without_a_service_tells_of_a_long_query(
    model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    _, warnings = search_offline(model, knowledge_base, LONG, 2, options)
    assert [warning.split(" has ")[0] for warning in warnings] == ["QUERY"]
    assert search_offline(model, knowledge_base, "who?", 2, options)[1] == ()
