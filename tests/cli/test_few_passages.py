"""`ragserve kb search` on a knowledge base with fewer passages than the default number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from retriever_svc.knowledge import KnowledgeBase
from tests.cli.conftest import Assets, Cli
from tests.tiny import tiny_kb

WARNING = "The knowledge base has 3 passages; this request uses 3 instead of 5."


@pytest.fixture(scope="module")
def three(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kb(tmp_path_factory.mktemp("three"), assets.model, 3)


def test_the_default_adapts_with_a_warning(cli: Cli, assets: Assets, three: Path) -> None:
    place = ["--knowledge", three, "--model", assets.model]
    shown = cli("kb", "search", "old city", *place)
    assert (shown.returncode, shown.stderr) == (0, f"searching {three}\nwarning: {WARNING}\n")
    plain = json.loads(cli("kb", "search", "old city", *place, "--json").stdout)
    assert (len(plain["passages"]), plain["warnings"]) == (3, [WARNING])
    assert {tuple(passage["metadata"]) for passage in plain["passages"]} == {("number",)}
    asked = json.loads(cli("kb", "search", "old city", *place, "--json", "-k", 2).stdout)
    assert (len(asked["passages"]), asked["warnings"]) == (2, [])
    refused = cli("kb", "search", "old city", *place, "-k", 4)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"searching {three}\nerror: --k is 4; it must be between 1 and 3: the knowledge base has 3 passages\n",
    )


@pytest.mark.long
def test_filters_by_number_and_by_exclusion(cli: Cli, assets: Assets, three: Path) -> None:
    place = ["--knowledge", three, "--model", assets.model, "--json"]
    numbers = {
        wanted: {
            passage["id"]
            for passage in json.loads(cli("kb", "search", "old city", *place, "--filter", wanted).stdout)["passages"]
        }
        for wanted in ("number=1", "number=1.0", "number!=1", "number=1e0,2")
    }
    assert numbers["number=1"] == numbers["number=1.0"]
    assert len(numbers["number=1"]) == 1
    assert len(numbers["number!=1"]) == len(numbers["number=1e0,2"]) == 2
    nothing = cli("kb", "search", "old city", *place, "--filter", "number=7")
    assert (nothing.returncode, nothing.stderr) == (
        1,
        f"searching {three}\nerror: No passage of knowledge version 1 matches --filter. Remove a condition.\n",
    )


def test_an_empty_knowledge_base_is_one_clear_error(cli: Cli, assets: Assets, three: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(three, tmp_path / "kb"))
    ids = KnowledgeBase.open(copy).dataset.to_table(columns=["id"]).column("id").to_pylist()
    deleted = cli("kb", "delete", copy, *ids)
    assert deleted.returncode == 0, deleted.stderr
    found = cli("kb", "search", "old city", "--knowledge", copy, "--model", assets.model)
    assert (found.returncode, found.stderr) == (
        1,
        f"searching {copy}\n"
        "error: KB: The knowledge base holds no passages in version 2. Add some with `ragserve kb add`.\n",
    )


@pytest.mark.parametrize("kind", ["dense", "bm25", "weighted", "rrf"])
@pytest.mark.long
def test_the_knowledge_base_stands_first_and_words_can_be_searched(
    cli: Cli, assets: Assets, three: Path, kind: str
) -> None:
    options = ["--model", assets.model, "--search-kind", kind, "--json", "-k", 1]
    found = cli("kb", "search", three, "old city", *options)
    assert (found.returncode, found.stderr) == (0, f"searching {three}\n"), found.stderr
    assert json.loads(found.stdout)["knowledge"] == str(three)
    assert cli("kb", "search", "old city", "--knowledge", three, *options).stdout == found.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["old city", "KB"], "error: KB stands before QUERY: ragserve kb search KB 'old city'"),
        (["KB", "old", "city"], "error: 'city' is one value too many: put QUERY in quotes"),
        (["KB", "old city", "--knowledge", "KB"], "error: KB is given twice, also as --knowledge: leave one out"),
        (["KB", "old city", "--target", "localhost:1"], "error: KB is read on this machine and --target asks"),
        (["KB", " "], "error: QUERY is empty: ask something"),
    ],
)
def test_places_of_a_search_that_cannot_be_meant(
    cli: Cli, assets: Assets, three: Path, words: list[str], said: str
) -> None:
    given = [word.replace("KB", str(three)) for word in words]
    found = cli("kb", "search", *given, "--model", assets.model)
    assert found.returncode == 2
    assert said.replace("search KB", f"search {three}") in found.stderr
