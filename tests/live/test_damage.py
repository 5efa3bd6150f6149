"""What may happen to the files of a knowledge base: the retriever says so, and goes on with what it has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench.processes import ServiceProcess, start
from ragserve.errors import DataLossError, FailedPreconditionError, ResourceExhaustedError
from retriever_svc.build import build_knowledge_base
from retriever_svc.loading import RetrievalOptions
from retriever_svc.manifests import file_of
from tests.live.harness import Home, eventually, found, new_passage, refused
from tests.live.test_replicas import far_away, first
from tests.retriever_svc.models import DIMENSION, write_model
from tests.retriever_svc.sources import WHOLE
from tests.tiny import tiny_passages, write_jsonl

ONES = np.ones(DIMENSION, np.float32)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.build(tmp_path)


def started(home: Home, **flags: object) -> ServiceProcess:
    """A retriever that nobody waits for."""
    common = {"model": home.model, "knowledge": home.knowledge, "threads": 1, "device": "cpu"}
    return start("retriever_svc", {**common, **flags}, home.logs)


def refused_start(home: Home, *reasons: str, **flags: object) -> None:
    """Start a retriever that must end with one line that names each reason."""
    process = started(home, **flags)
    assert process.wait(110) == 1
    errors = [line for line in process.log_text().splitlines() if "level=error" in line]
    assert len(errors) == 1
    assert "Traceback" not in process.log_text()
    assert all(reason in errors[0] for reason in reasons), errors


def test_another_encoder_is_refused_at_start_and_while_serving(home: Home, tmp_path: Path) -> None:
    """A knowledge base that is replaced by another encoder's: the version that is loaded goes on answering."""
    replica = home.replica(refresh_seconds=0.4)
    other = write_model(tmp_path / "other", seed=9, own_passage_encoder=False)
    source = write_jsonl(tmp_path / "others.jsonl", tiny_passages(30, seed=8))
    build_knowledge_base(
        source, home.knowledge, other, options=RetrievalOptions(device="cpu", threads=1), replace=True, build=WHOLE
    )
    eventually(lambda: replica.metric("ragserve_knowledge_load_failures_total") > 0)
    assert "embedded by another passage encoder" in replica.process.log_text()
    assert replica.search(ONES, 5).knowledge_version == replica.info().knowledge_version == 1
    assert isinstance(refused(lambda: replica.upsert([new_passage("a", "text")])), FailedPreconditionError)
    assert isinstance(refused(replica.refresh), FailedPreconditionError)
    refused_start(home, "embedded by another passage encoder")
    assert replica.rollback(1) == 3  # what cures it
    assert replica.search(ONES, 5).knowledge_version == 3
    replica.upsert([new_passage("new", "written again", far_away())])
    assert first(replica, far_away()) == "written again"
    replica.stop()


def test_a_read_only_replica_takes_no_writes(home: Home, tmp_path: Path) -> None:
    (tmp_path / "reader.toml").write_text("[retriever]\nwritable = false\n")
    reader = home.replica(config=tmp_path / "reader.toml")
    for call in (
        lambda: reader.upsert([new_passage("a", "text", ONES)]),
        lambda: reader.delete(["0"]),
        lambda: reader.rollback(1),
        lambda: reader.compact(5),
    ):
        error = refused(call)
        assert isinstance(error, FailedPreconditionError), error
        assert "writable" in error.message
    assert not reader.info().writable
    assert reader.search(ONES, 3).knowledge_version == 1
    reader.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    directory = tmp_path / "small"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_disk_that_fills_up_fails_the_write_and_nothing_else(home: Home, small_disk: Path) -> None:
    home = Home(home.model, Path(shutil.copytree(home.knowledge, small_disk / "kb")), home.logs)
    replica, held = home.replica(), {}
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(5 * 2**20))
    failures = []
    for number in range(60):
        text = f"{number} " + os.urandom(50_000).hex()[:99_000]
        try:
            response = replica.upsert([new_passage(f"n{number}", text, far_away(number % DIMENSION))])
        except Exception as error:
            failures.append(refused(lambda error=error: _raise(error)))
            if len(failures) == 3:
                break
        else:
            held[f"n{number}"], version = text, response.knowledge_version
    assert held
    assert len(failures) == 3, "the disk did not fill up"
    assert all(isinstance(error, ResourceExhaustedError) for error in failures), failures
    assert replica.search(ONES, 5).knowledge_version == version
    assert replica.get(list(held)) == held

    ballast.unlink()
    replica.upsert([new_passage("after", "space again", far_away())])
    replica.kill()
    replica = home.replica()
    assert replica.get([*held, "after"]) == {**held, "after": "space again"}
    replica.stop()


def _raise(error: Exception) -> None:
    raise error


def index_files(home: Home) -> list[Path]:
    return sorted((home.knowledge / "indexes").glob("*.faiss"))


@pytest.mark.long
def test_an_index_on_disk_may_go_or_be_altered(home: Home) -> None:
    answers, refusals = [], []
    for damage in (remove, alter, cut, cut):
        replica = home.replica(index_factory="HNSW16")
        answers.append(found(replica.search(ONES, 10)))
        replica.stop()
        refusals.append("wrong checksum" in replica.process.log_text())
        (file,) = index_files(home)
        damage(file)
    assert all(answer == answers[0] for answer in answers)
    assert refusals == [False, False, True, True]


def remove(file: Path) -> None:
    shutil.rmtree(file.parent)


def alter(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-40] + bytes(40))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def test_a_damaged_fragment_ends_the_start_but_not_the_service(home: Home) -> None:
    replica = home.replica(refresh_seconds=0.4)
    before = found(replica.search(ONES, 10))
    fragment = next((home.knowledge / "passages.lance" / "data").iterdir())
    fragment.write_bytes(fragment.read_bytes()[:200])
    assert found(replica.search(ONES, 10)) == before
    assert isinstance(refused(lambda: replica.get(["1"])), DataLossError)
    assert isinstance(refused(lambda: replica.delete(["1"])), DataLossError)
    refused_start(home, "damaged", str(home.knowledge))
    assert found(replica.search(ONES, 10)) == before
    replica.stop()


def test_a_damaged_manifest_costs_its_version_and_no_other(home: Home) -> None:
    """Neither the others, nor a start: it goes on from the index of the version before."""
    replica = home.replica(index_factory="HNSW8", keep_versions=1)
    for number in range(3):
        replica.upsert([new_passage(f"n{number}", "text", far_away(number))])
    damaged = file_of(home.knowledge / "passages.lance", 3)
    damaged.write_bytes(os.urandom(damaged.stat().st_size))
    for _ in range(2):
        assert [(each.version, each.passages) for each in replica.versions()] == [(1, 40), (2, 41), (4, 43)]
        for error in (refused(partial(replica.get, ["1"], 3)), refused(partial(replica.rollback, 3))):
            assert isinstance(error, DataLossError), error
            assert "version 3 is damaged" in error.message
        assert len(replica.get(["n0", "n1", "n2"])) == 3
        assert found(replica.search(far_away(2), 1)) == [("n2", "text")]
        replica.stop()
        replica = home.replica(index_factory="HNSW8", keep_versions=3)
        assert "index of an earlier version found" in replica.process.log_text()
        assert list(replica.info().loaded_versions) == [2, 4]
    assert replica.rollback(2) == 5
    replica.stop()


@pytest.mark.long
def test_a_damaged_fragment_fails_the_searches_that_read_it_from_disk(home: Home) -> None:
    replica = home.replica(passages_in_memory_bytes=0)
    fragment = next((home.knowledge / "passages.lance" / "data").iterdir())
    content = fragment.read_bytes()
    fragment.unlink()
    error = refused(lambda: replica.search(ONES, 3))
    assert isinstance(error, DataLossError), error
    fragment.write_bytes(content)
    assert len(found(replica.search(ONES, 3))) == 3
    replica.stop()


SLOW = {"index_factory": "HNSW256", "rebuild_min_rows": 100, "rebuild_fraction": 1e-6}
SLOW_ROWS = 20_000


@pytest.mark.long
def test_a_start_killed_while_it_builds_an_index_leaves_nothing_that_is_trusted(home: Home) -> None:
    home.grow(SLOW_ROWS)
    process = started(home, **SLOW)
    eventually(lambda: "building the index" in process.log_text())
    process.kill()
    assert not index_files(home)
    replica = home.replica(**SLOW)
    assert "building the index" in replica.process.log_text()
    assert "loaded from cache" not in replica.process.log_text()
    replica.stop()
    replica = home.replica(**SLOW)  # whose index is whole
    assert "loaded from cache" in replica.process.log_text()
    replica.stop()


def test_a_rebuild_at_work_is_given_up_when_told_to_stop(home: Home) -> None:
    """And one that is killed leaves the next start what was committed."""
    replica = home.replica(**SLOW)
    home.grow(SLOW_ROWS)
    replica.refresh()
    eventually(lambda: "rebuilding the index" in replica.process.log_text())
    assert len(found(replica.search(ONES, 10))) == 10
    replica.stop()
    assert "rebuild given up" in replica.process.log_text()
    assert replica.process.process.returncode == 0


@pytest.mark.long
def test_a_retriever_killed_in_a_rebuild_starts_with_all_that_was_committed(home: Home) -> None:
    replica = home.replica(**SLOW)
    home.grow(SLOW_ROWS)
    replica.refresh()
    eventually(lambda: "rebuilding the index" in replica.process.log_text())
    written = replica.upsert([new_passage("new", "in the rebuild", far_away())]).knowledge_version
    replica.kill()
    replica = home.replica()
    assert first(replica, far_away(), written) == "in the rebuild"
    assert replica.info().passages == SLOW_ROWS + 41
    replica.stop()
