"""`ragserve kb add`, `delete`, `versions`, `rollback`, `diff`, `compact`: on files, and through a running retriever."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.processes import ServiceProcess
from ragserve.knowledge_client import KnowledgeClient
from tests.cli.conftest import N_PASSAGES, RAGSERVE, Assets, Cli

ROWS = [
    {"id": f"n{number}", "title": "river", "text": f"the old city number {number}", "year": 1990 + number, "lang": lang}
    for number, lang in enumerate(["en", "de", "en", "fr", "en"])
]
Json = Callable[..., dict[str, Any]]


@pytest.fixture
def files(assets: Assets, tmp_path: Path) -> Path:
    return Path(shutil.copytree(assets.knowledge, tmp_path / "kb"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def as_json(cli: Cli) -> Json:
    def run(*arguments: object) -> dict[str, Any]:
        found = cli("kb", *arguments, "--json")
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    return run


def test_bad_rows_are_refused_or_skipped(cli: Cli, as_json: Json, assets: Assets, files: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.tsv"
    lines = ["id\ttext\ttitle", "n0\tthe old city\triver", 'n1\t"no end of the quote\tx', "n2\t\tempty", "n0\ttwice\tx"]
    rows.write_text("\n".join(lines) + "\n")
    refused = cli("kb", "add", files, rows, "--model", assets.model)
    assert refused.returncode != 0
    assert "rows.tsv:3" in refused.stderr
    rows.write_text("\n".join([lines[0], lines[1], *lines[3:]]) + "\n")
    skipped = cli("kb", "add", files, rows, "--model", assets.model, "--skip-bad-rows", "--json")
    assert skipped.returncode == 0, skipped.stderr
    assert "skipped 2 rows:\n  " in skipped.stderr
    assert "rows.tsv:3" in skipped.stderr
    assert "rows.tsv:4" in skipped.stderr
    done = json.loads(skipped.stdout)
    assert (done["inserted"], done["updated"]) == (1, 0)


def story(as_json: Json, place: list[object], add_options: list[object], source: Path) -> None:
    """Every command once; `place` says where."""
    begin = as_json("versions", *place)["versions"][-1]
    assert begin["passages"] == N_PASSAGES
    added = as_json("add", *place, source, *add_options, "--batch-passages", 2)
    assert (added["inserted"], added["updated"], added["commits"]) == (5, 0, 3)
    assert as_json("add", *place, source, *add_options)["updated"] == 5
    gone = as_json("delete", *place, "n0", "n4", "nowhere")
    assert (gone["deleted"], gone["missing_ids"]) == (2, ["nowhere"])
    diff = as_json("diff", *place, begin["version"])
    assert (diff["added_ids"], diff["changed"], diff["removed"]) == (["n1", "n2", "n3"], 0, 0)
    diff = as_json("diff", *place, added["knowledge_version"], gone["knowledge_version"], "--limit", 1)
    assert (diff["removed_ids"], diff["removed"]) == (["n0"], 2)
    back = as_json("rollback", *place, added["knowledge_version"])["knowledge_version"]
    listed = {version["version"]: version for version in as_json("versions", *place)["versions"]}
    assert (listed[back]["operation"], listed[back]["passages"]) == ("rollback", N_PASSAGES + 5)
    assert ("loaded" in listed[back]) is ("--retriever" in place)
    compacted = as_json("compact", *place, "--keep-versions", 2, "--keep-seconds", 0)
    assert compacted["versions_removed"] > 0
    assert len(as_json("versions", *place)["versions"]) == 2


@pytest.mark.long  # the same story as through a retriever
def test_on_files(as_json: Json, cli: Cli, assets: Assets, files: Path, source: Path) -> None:
    story(as_json, [files], ["--model", assets.model], source)
    offline = ["--knowledge", files, "--model", assets.model, "-k", 5]
    found = as_json("search", "old city", *offline, "--filter", "year>=1991", "--filter", "year<1994")
    assert {row["id"] for row in found["passages"]} == {"n1", "n2", "n3"}
    found = as_json("search", "old city", *offline, "--filter", "lang=fr,de", "--filter", "year<=1992")
    assert [row["id"] for row in found["passages"]] == ["n1"]
    version = cli("kb", "delete", files, "n1", "--json")
    old = json.loads(version.stdout)["knowledge_version"] - 1
    nothing = cli("kb", "search", "old city", *offline, "--filter", "lang=de")
    assert nothing.returncode == 1
    assert nothing.stderr.endswith("matches --filter. Remove a condition.\n")
    found = as_json("search", "old city", *offline, "--filter", "lang=de", "--knowledge-version", old)
    assert [row["id"] for row in found["passages"]] == ["n1"]


def test_through_a_retriever(as_json: Json, retriever: tuple[ServiceProcess, Path], source: Path) -> None:
    process, knowledge = retriever
    story(as_json, ["--retriever", process.target], [], source)
    assert as_json("info", knowledge)["passages"] == N_PASSAGES + 5


@pytest.mark.long
def test_what_a_person_sees(cli: Cli, assets: Assets, files: Path, source: Path) -> None:
    made = cli("kb", "add", files, source, "--model", assets.model)
    assert made.returncode == 0, made.stderr
    assert "version 2, 5 passages added, 0 replaced, in 1 commit" in made.stderr
    assert "build" in (table := cli("kb", "versions", files).stdout)
    assert "upsert" in table
    assert "loaded" not in table
    gone = cli("kb", "delete", files, "n1", "x")
    assert "version 3, 1 passage deleted" in gone.stderr
    assert "warning: not there: x" in gone.stderr
    shown = cli("kb", "diff", files, 1, 3, "--limit", 2).stdout
    assert shown.splitlines()[0] == "version 1 to 3: +4 added, ~0 changed, -0 removed"
    assert shown.splitlines()[1:] == ["+ n0", "+ n2", "+ … and 2 more added"]
    assert "version 4 has the content of version 1" in cli("kb", "rollback", files, 1).stderr
    assert "old versions removed" in cli("kb", "compact", files).stderr


def test_a_bad_source_commits_nothing(cli: Cli, assets: Assets, files: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]))
    found = cli("kb", "add", files, bad, "--model", assets.model, "--batch-passages", 1)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "bad.jsonl:6: column 'id' is 'n0', as in line 1" in found.stderr
    assert cli("kb", "versions", files, "--json").stdout.count("operation") == 1


@pytest.mark.long
def test_two_writers_of_the_same_files(cli: Cli, as_json: Json, assets: Assets, files: Path, source: Path) -> None:
    """One adds passages one by one while the other deletes what is not there yet, or is: neither is refused."""

    def delete(number: int) -> dict[str, Any]:
        return as_json("delete", files, f"n{number}")

    def add() -> dict[str, Any]:
        return as_json("add", files, source, "--model", assets.model, "--batch-passages", 1)

    with ThreadPoolExecutor(2) as pool:
        adding = pool.submit(add)
        gone = [number for number in range(5) if pool.submit(delete, number).result()["deleted"]]
        assert adding.result()["inserted"] == 5
    left = as_json("diff", files, 1)
    assert left["added_ids"] == [f"n{number}" for number in range(5) if number not in gone]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["versions"], 2, "error: KB: name the knowledge base"),
        (["versions", "/nowhere", "x"], 2, "error: 'x' is one value too many"),
        (["rollback", "--retriever", "R:1", "/kb", "2"], 2, "Write: ragserve kb rollback --retriever R:1 2\n"),
        (["diff", "--retriever", "R:1", "/kb", "1", "2"], 2, "Write: ragserve kb diff --retriever R:1 1 2\n"),
        (["versions", "--retriever", "R:1", "/kb"], 2, "leave out KB ('/kb'), as --retriever says where it is\n"),
        (["delete", "/nowhere"], 2, "error: ID is missing"),
        (["diff", "/nowhere"], 2, "error: A is missing. Usage: 'ragserve kb diff KB A [B]', or"),
        (["rollback", "/nowhere", "x"], 2, "error: VERSION: 'x' is not a version"),
        (["diff", "/nowhere", "1", "0"], 2, "error: VERSION: '0' is not a version"),
        (["rollback", "KB", "99"], 1, "has no version 99"),
        (["add", "KB", "/nowhere.jsonl"], 2, "/nowhere.jsonl does not exist"),
        (["delete", "KB", "wh\udcff"], 2, "is not UTF-8 text"),
        (["add", "KB", "SOURCE"], 1, "was embedded by another passage encoder"),
        (["versions", "--retriever", "127.0.0.1:9"], 1, "nothing listens at 127.0.0.1:9"),
        (["search", "q", "--filter", "lang"], 2, "Cannot read the filter 'lang'."),
        (["search", "q", "--filter", "a=1", "--filter", "a=2"], 2, "contradicts another one on 'a'"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                (["compact", "KB", "--keep-versions", "0"], 2, "--keep-versions is 0"),
                (["compact", "/nowhere"], 1, "/nowhere is not a knowledge base"),
                (["add", "KB", "SOURCE", "--model", "/nowhere"], 1, "/nowhere/ragserve.json is missing"),
            )
        ),
    ],
)
@pytest.mark.long
def test_errors_are_one_line(cli: Cli, files: Path, source: Path, arguments: list[str], status: int, said: str) -> None:
    places = {"KB": str(files), "SOURCE": str(source)}
    found = cli("kb", *[places.get(argument, argument) for argument in arguments])
    assert found.returncode == status
    assert said in found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1


def test_a_terminal_sees_what_is_at_work(files: Path, source: Path, assets: Assets) -> None:
    for arguments, seen in (
        (["add", files, source, "--model", assets.model], "committing"),
        (["compact", files, "--keep-seconds", 0], "compacting"),
        (["rollback", files, 1], "rolling back"),
    ):
        master, slave = pty.openpty()
        command = [str(RAGSERVE), "kb", *map(str, arguments)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave) as process:
            os.close(slave)
            shown = b""
            with contextlib.suppress(OSError):  # how a terminal ends that nobody writes to any more
                while part := os.read(master, 4096):
                    shown += part
        os.close(master)
        assert process.returncode == 0, shown
        assert seen in shown.decode()


@pytest.mark.long
def test_files_of_one_name_replace_each_other_with_a_warning(
    cli: Cli, retriever: tuple[ServiceProcess, Path], tmp_path: Path
) -> None:
    process, _ = retriever
    place = ["--retriever", process.target, "--split", "none"]
    for folder, text in (("a", "the old river"), ("b", "the new city")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p2.csv").write_text(f"text\n{text}\n{text} again\n")

    def add(*arguments: object) -> str:
        done = cli("kb", "add", *place, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "warning" not in add(tmp_path / "a" / "p2.csv")
    assert "warning" not in add(tmp_path / "a" / "p2.csv")  # the same content
    said = add(tmp_path / "b" / "p2.csv")
    assert "warning: 2 passages with ids made of the file's name were replaced, beginning with p2.csv:2. " in said
    rollback = re.search(r"roll back with 'ragserve (kb rollback --retriever \S+ \d+)' and add the file with", said)
    assert rollback, said
    assert cli(*rollback[1].split()).returncode == 0
    said = add(tmp_path / "b" / "p2.csv", "--id-prefix", "b/")
    assert ("warning" in said, "2 passages added, 0 replaced" in said) == (False, True)
    with KnowledgeClient(process.target) as client:
        found = client.get(["p2.csv:2", "b/p2.csv:2"]).passages
    assert [one.text for one in found] == ["the old river", "the new city"]
