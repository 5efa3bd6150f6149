"""Files of a knowledge base whose bytes change where Lance does not notice."""

from __future__ import annotations

import shutil
from pathlib import Path

import lance
import numpy as np
import pytest

from ragserve.errors import DataLossError
from ragserve_cli.plan import demo_directory
from retriever_svc.checksums import CHECKSUMS_NAME, FileChecks
from retriever_svc.knowledge import DATASET_NAME, KnowledgeBase
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.manifests import file_of
from tests.live.harness import Home, eventually, found, new_passage, refused
from tests.live.test_damage import ONES, refused_start
from tests.live.test_replicas import far_away


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.build(tmp_path)


def data_files(home: Home) -> list[Path]:
    return sorted((home.knowledge / DATASET_NAME / "data").iterdir(), key=lambda file: file.stat().st_mtime_ns)


def checksums(home: Home) -> set[str]:
    return {file.name for file in (home.knowledge / CHECKSUMS_NAME).iterdir()}


def manifests(home: Home, *versions: int) -> set[str]:
    return {file_of(home.knowledge / DATASET_NAME, version).name for version in versions}


def alter(file: Path, knowledge: Path) -> None:
    """Flip a bit so that every row can still be read."""
    content = bytearray(file.read_bytes())
    for place in range(64, len(content), 97):
        content[place] ^= 1
        file.write_bytes(content)
        try:
            if lance.dataset(str(knowledge / DATASET_NAME)).to_table().num_rows:
                return
        except (OSError, ValueError, RuntimeError):
            content[place] ^= 1
    pytest.fail("there is no such bit")


def test_a_flipped_bit_ends_the_start_but_not_the_service(home: Home) -> None:
    replica = home.replica(refresh_seconds=0.4)
    before = found(replica.search(ONES, 10))
    (file,) = data_files(home)
    alter(file, home.knowledge)
    for call in (lambda: replica.get(["1"]), lambda: replica.compact(1, 0)):
        error = refused(call)
        assert isinstance(error, DataLossError)
        assert "wrong checksum" in str(error)
        assert file.name in str(error)
    refused_start(home, "wrong checksum", file.name)
    assert found(replica.search(ONES, 10)) == before
    replica.stop()
    trusting = home.replica(check_files=False)
    assert len(found(trusting.search(ONES, 10))) == 10
    trusting.stop()


def test_what_another_replica_wrote_is_compared_before_it_is_loaded(home: Home) -> None:
    reader = home.replica(refresh_seconds=600)
    writer = home.replica(refresh_seconds=600)
    old = reader.info().knowledge_version
    writer.upsert([new_passage("new", "text", far_away())])
    file = data_files(home)[-1]
    content = file.read_bytes()
    alter(file, home.knowledge)
    assert isinstance(refused(reader.refresh), DataLossError)
    assert reader.search(ONES, 3).knowledge_version == old
    file.write_bytes(content)
    assert reader.refresh() == old + 1
    assert found(reader.search(far_away(), 1))[0][0] == "new"
    reader.stop()
    writer.stop()


def test_every_write_leaves_checksums_and_compaction_takes_them_away(home: Home) -> None:
    replica = home.replica()
    replica.upsert([new_passage(f"a {i}", "text", far_away()) for i in range(3)])
    replica.delete(["a 1", "2"])
    replica.rollback(2)
    deletions = {file.name for file in (home.knowledge / DATASET_NAME / "_deletions").iterdir()}
    assert deletions
    assert checksums(home) == {file.name for file in data_files(home)} | deletions | manifests(home, 1, 2, 3, 4)
    newest = replica.compact(1, 0).knowledge_version
    eventually(lambda: checksums(home) == {file.name for file in data_files(home)} | manifests(home, newest))
    assert len(data_files(home)) == 1
    replica.stop()


def test_a_rollback_to_a_version_whose_files_are_gone_is_refused(home: Home) -> None:
    """As a compaction leaves one that was killed between removing its files and itself."""
    replica = home.replica()
    (file,) = data_files(home)
    ids = KnowledgeBase.open(home.knowledge).dataset.to_table(columns=["id"]).column("id").to_pylist()
    newest = replica.upsert([new_passage(identifier, "text", far_away()) for identifier in ids])
    file.unlink()
    error = refused(lambda: replica.rollback(1))
    assert isinstance(error, DataLossError)
    assert file.name in str(error)
    assert replica.info().knowledge_version == newest.knowledge_version
    assert replica.refresh() == newest.knowledge_version
    replica.stop()


def test_files_without_a_checksum_are_taken_as_they_are_until_the_next_commit(home: Home) -> None:
    (file,) = data_files(home)
    for content in ("", None):
        recorded = home.knowledge / CHECKSUMS_NAME / file.name
        recorded.write_text(content) if content is not None else recorded.unlink()
        replica = home.replica()
        assert len(found(replica.search(ONES, 3))) == 3
        replica.stop()
    home.grow(1)
    assert checksums(home) == {file.name for file in data_files(home)} | manifests(home, 1, 2)


def test_checksums_that_cannot_be_written_are_logged(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(home.knowledge / CHECKSUMS_NAME)
    (home.knowledge / CHECKSUMS_NAME).write_text("no folder")
    home.grow(1)
    assert [record.message for record in caplog.records] == ["checksums not written"]
    assert KnowledgeBase.open(home.knowledge).passages == 41
    KnowledgeWriter(home.knowledge, KnowledgeBase.open(home.knowledge).encoder).rollback(1)
    assert KnowledgeBase.open(home.knowledge).passages == 40


def test_a_file_is_hashed_once_and_again_when_it_changes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    dataset = lance.dataset(str(home.knowledge / DATASET_NAME))
    (file,) = data_files(home)
    right = (home.knowledge / CHECKSUMS_NAME / file.name).read_text().strip()
    (home.knowledge / CHECKSUMS_NAME / file_of(home.knowledge / DATASET_NAME, 1).name).unlink()
    monkeypatch.setattr("retriever_svc.checksums.sha256_of", lambda path: hashed.append(path) or right)
    checks = FileChecks(home.knowledge)
    checks.verify_again(dataset)
    assert hashed == []
    for _ in range(3):
        checks.verify(dataset)
    assert hashed == [file]
    file.touch()
    checks.verify_again(dataset)
    assert hashed == [file, file]
    assert np.all([path == file for path in hashed])


def test_the_demos_files_have_checksums() -> None:
    knowledge = demo_directory() / "kb"
    files = [file.name for folder in ("data", "_versions") for file in (knowledge / DATASET_NAME / folder).iterdir()]
    files.remove("latest_version_hint.json")
    assert {file.name for file in (knowledge / CHECKSUMS_NAME).iterdir()} == set(files)
    checks = FileChecks(knowledge)
    checks.verify(KnowledgeBase.open(knowledge).dataset)
