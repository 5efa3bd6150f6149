"""Long texts on files and through a retriever: split in the same way, refused in the same words."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import ragserve
from bench.processes import ServiceProcess, start
from ragserve.errors import InvalidInputError
from ragserve.knowledge import StoredPassage
from ragserve.knowledge_client import KnowledgeClient
from ragserve_cli.adding import Adding, read_source
from retriever_svc.build import build_knowledge_base
from retriever_svc.build.reading import ReadOptions
from retriever_svc.build.spool import Readable
from retriever_svc.knowledge import describe, passage_encoder_directory
from retriever_svc.live.history import read_passages
from retriever_svc.splitting import Split, SplitOptions
from tests.cli.conftest import Assets, Cli

SENTENCE = "The old city lies on a river. "
LONG = SENTENCE * 60
WHOLE = "x " * 300_000  # 600,000 bytes: more than a passage may have


@dataclass(frozen=True)
class Place:
    """A knowledge base and the options of `kb add` that name it."""

    options: list[object]
    knowledge: Path
    cli: Cli

    def stored(self, ids: list[str]) -> dict[str, Any]:
        _, found = read_passages(self.knowledge, ids, describe(self.knowledge).version)
        return {name: (one.title, one.text, one.metadata_json) for name, one in found.items()}


@pytest.fixture(params=["files", "retriever"])
def place(
    request: pytest.FixtureRequest, cli: Cli, assets: Assets, retriever: tuple[ServiceProcess, Path], tmp_path: Path
) -> Place:
    if request.param == "files":
        knowledge = Path(shutil.copytree(assets.knowledge, tmp_path / "kb"))
        return Place([knowledge, "--model", assets.model], knowledge, cli)
    process, knowledge = retriever
    return Place(["--retriever", process.target], knowledge, cli)


def add(place: Place, path: Path, rows: list[dict[str, Any]], *options: object) -> Any:
    """`kb add`: KB comes before SOURCE, options after."""
    knowledge, *named = place.options if place.options[0] != "--retriever" else [None, *place.options]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = [path] if knowledge is None else [knowledge, path]
    return place.cli("kb", "add", *values, *named, *options, "--json")


def chunks(place: Place, name: str) -> list[tuple[str, str, str]]:
    found = place.stored([name, *(f"{name}#{number}" for number in range(2000))])
    assert list(found) == [name] or list(found) == [f"{name}#{number}" for number in range(len(found))]
    return list(found.values())


def test_a_long_text_is_split_and_its_parts_are_replaced_together(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    done = add(place, path, [{"id": "doc", "title": "T", "text": LONG, "n": 1}, {"id": "short", "text": "the river"}])
    assert done.returncode == 0, done.stderr
    first = chunks(place, "doc")
    assert json.loads(done.stdout)["inserted"] == len(first) + 1 > 10
    assert " ".join(text for _, text, _ in first) == LONG.strip()
    assert {(title, metadata) for title, _, metadata in first} == {("T", '{"n": 1}')}
    assert json.loads(done.stdout)["truncated_passages"] == 0
    done = json.loads(add(place, path, [{"id": "doc", "text": SENTENCE * 20}]).stdout)
    second = chunks(place, "doc")
    assert 1 < len(second) < len(first)
    assert (done["updated"], done["inserted"], done["removed_chunks"]) == (len(second), 0, len(first) - len(second))
    done = json.loads(add(place, path, [{"id": "doc", "text": SENTENCE}]).stdout)
    assert chunks(place, "doc") == [("", SENTENCE, "")]
    assert (done["inserted"], done["removed_chunks"]) == (1, len(second))
    done = json.loads(add(place, path, [{"id": "doc", "text": LONG}], "--split-words", 100).stdout)
    assert (done["inserted"], done["removed_chunks"]) == (len(chunks(place, "doc")), 1)
    assert all(len(text.split()) <= 100 for _, text, _ in chunks(place, "doc"))
    options = place.options if place.options[0] == "--retriever" else place.options[:1]
    gone = json.loads(place.cli("kb", "delete", *options, "doc", "--json").stdout)
    assert (gone["deleted"], gone["missing_ids"]) == (done["inserted"], [])
    done = json.loads(add(place, path, [{"id": "doc", "text": LONG}], "--split", "none").stdout)
    assert done["truncated_passages"] == 1
    assert done["truncated"] == [f"{path}:1 ('doc')"]


def test_two_hundred_thousand_characters_are_treated_alike(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    found = add(place, path, [{"id": "big", "text": "word " * 40_000}], "--split", "none")
    assert found.returncode == 0, found.stderr
    assert "1 passage is longer than the passage encoder reads, beginning with" in found.stderr


BAD: list[tuple[dict[str, Any], str, str]] = [
    (
        {"text": WHOLE},
        "none",
        "column 'text' has 600000 bytes; a passage (id, title, text and metadata) may have 524288 (max_passage_bytes)",
    ),
    ({"text": "x", "html": WHOLE}, "sentences", "column 'metadata' has 600012 bytes; a passage (id"),
    ({"text": "x", "title": WHOLE}, "sentences", "column 'title' has 600000 bytes"),
    ({"text": "x", "id": "i" * 3000}, "sentences", "column 'id' has 3000 bytes; an id may have 2048"),
    ({"text": "x", "id": "a\nb"}, "sentences", "column 'id' holds the control character U+000A at position 1"),
    ({"text": "x\0"}, "sentences", "column 'text' holds the control character U+0000 at position 1"),
    ({"text": "x", "y": {"a": "\ud800"}}, "sentences", "column 'metadata' has a text under 'y.a' that holds half a"),
    ({"text": "x" * 1_100_000}, "sentences", "column 'text' has 1100000 bytes; a text may have 1048576"),
    ({"text": "x", "id": "doc#1"}, "sentences", "column 'id' is 'doc#1', which names a part of 'doc'"),
]


@pytest.mark.parametrize("on_files", [True, False], ids=["files", "retriever"])
@pytest.mark.parametrize(("row", "split", "said"), BAD)
def test_what_may_not_be_stored_is_named_or_left_out(
    assets: Assets, tmp_path: Path, on_files: bool, row: dict[str, Any], split: Split, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": "doc", "text": "the river"}, {"id": "bad", **row}, {"id": "last", "text": "the city"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = passage_encoder_directory(assets.model) if on_files else None
    adding = Adding.of(None, ReadOptions(), SplitOptions(split), encoder)
    with pytest.raises(InvalidInputError) as refused:
        read_source(Readable(path), adding)
    assert refused.value.message.startswith(f"{path}:2: {said}")
    source = read_source(Readable(path), replace(adding, skip_bad_rows=True))
    expected = refused.value.message.removesuffix(" (skip_bad_rows leaves such rows out)")
    assert [error.message for error in source.bad_rows] == [expected]
    assert [passage.id for row in source.read() for passage in row] == ["doc", "last"]


REST = "a passage (id, title, text and metadata) may have 524288 (max_passage_bytes) and has 6000"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x" * 1_100_000}, "has 1100000 bytes; a text may have 1048576 (max_text_bytes): divide it or raise"),
        ({"title": WHOLE}, f"has 600000 bytes; {REST}02 without its text: shorten it"),
        ({"metadata": {"a": WHOLE}}, f"has 600009 bytes; {REST}11 without its text: shorten it"),
        ({"id": "i" * 3000}, "has 3000 bytes; an id may have 2048"),
    ],
)
def test_every_way_in_has_the_same_limits_and_words(
    assets: Assets, retriever: tuple[ServiceProcess, Path], tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    path, given = tmp_path / "rows.jsonl", {"id": "ab", "text": "8 bytes.", **row}
    path.write_text(json.dumps(given))
    words: list[str] = []
    for encoder in (passage_encoder_directory(assets.model), None):
        with pytest.raises(InvalidInputError) as added:
            read_source(Readable(path), Adding.of(None, ReadOptions(), SplitOptions(), encoder))
        words.append(added.value.message)
    with pytest.raises(InvalidInputError) as built:
        build_knowledge_base(path, tmp_path / "kb", assets.model)
    with KnowledgeClient(retriever[0].target) as client, pytest.raises(InvalidInputError) as sent:
        client.upsert([given], split=ragserve.Split())
    (column,) = row
    for message in (*words, built.value.message):
        assert message.startswith(f"{path}:1: column '{column}' {said}")
    assert sent.value.message.startswith(f"passages[0].{column} {said}")


@pytest.mark.long
def test_errors_name_the_flag_of_the_command(place: Place, assets: Assets, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": "a", "text": "the river"}, {"id": "b", "text": "the old city"}]
    said = f"{path}:2: column 'text' has 12 bytes; a text may have 10 (--max-text-bytes): divide it or raise the limit"
    refused = add(place, path, rows, "--max-text-bytes", 10)
    assert (refused.returncode, said in refused.stderr) == (2, True)
    done = add(place, path, rows, "--max-text-bytes", 10, "--skip-bad-rows")
    assert (done.returncode, said in done.stderr) == (0, True)
    build = ["kb", "build", path, tmp_path / "made", "--model", assets.model, "--max-text-bytes", 10]
    refused, done = place.cli(*build), place.cli(*build, "--skip-bad-rows")
    assert (refused.returncode, said in refused.stderr) == (2, True)
    assert (done.returncode, said in done.stderr) == (0, True)


@pytest.mark.long
def test_a_bad_row_is_refused_or_skipped_at_the_command_line(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": "one", "text": "the river"}, {"id": "bad", "text": WHOLE}, {"id": "two", "text": "the city"}]
    refused = add(place, path, rows, "--split", "none")
    assert (refused.returncode, f"{path}:2: column 'text' has 600000 bytes" in refused.stderr) == (2, True)
    done = add(place, path, rows, "--split", "none", "--skip-bad-rows")
    assert done.returncode == 0, done.stderr
    assert f"skipped 1 row:\n  {path}:2: column 'text'" in done.stderr
    assert list(place.stored(["one", "bad", "two"])) == ["one", "two"]


def test_a_retriever_with_a_lower_limit_refuses_by_file_and_line(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    knowledge = Path(shutil.copytree(assets.knowledge, tmp_path / "kb"))
    flags = {"model": assets.model, "knowledge": knowledge, "threads": 1, "device": "cpu", "max_passage_bytes": 100}
    process = start("retriever_svc", flags, tmp_path / "logs").wait_healthy()
    place = Place(["--retriever", process.target], knowledge, cli)
    path = tmp_path / "rows.jsonl"
    rows = [{"id": "a", "text": "the river"}, {"id": "b", "title": "t" * 200, "text": "x"}]
    refused = add(place, path, rows)
    assert (refused.returncode, f"{path}:2: column 'title' has 200 bytes" in refused.stderr) == (2, True)
    assert "may have 100 ('max_passage_bytes' of the retriever)" in refused.stderr
    done = add(place, path, rows, "--skip-bad-rows")
    assert (done.returncode, json.loads(done.stdout)["inserted"]) == (0, 1)
    assert f"{path}:2: column 'title' has 200 bytes" in done.stderr
    with KnowledgeClient(process.target) as client:
        assert client.get(["a", "b"]).passages == (StoredPassage("a", "", "the river"),)
    assert process.stop() == 0
