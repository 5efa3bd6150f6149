"""Embedding on Ray Data: a real local Ray with two workers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc.build import BuildOptions, Progress, build_knowledge_base
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.loading import RetrievalOptions
from tests.retriever_svc.models import DIMENSION
from tests.retriever_svc.sources import WHOLE
from tests.retriever_svc.test_build_resume import building
from tests.tiny import tiny_passages, write_jsonl

N_PASSAGES = 400
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`use_polars` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning"),
    pytest.mark.filterwarnings("ignore:`use_arrow_tensor_v2` is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("source") / "passages.jsonl", tiny_passages(N_PASSAGES, seed=9))


def test_without_ray_the_error_says_what_to_install(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'ragserve\[ray\]'"):
        build_knowledge_base(
            source, tmp_path / "kb", model, options=options, build=BuildOptions(split="none", engine="ray")
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_two_workers_make_the_same_rows_and_go_on_where_a_killed_build_was(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    build_knowledge_base(source, tmp_path / "local", model, options=options, build=WHOLE)
    with building(source, tmp_path / "kb", model, 130):
        pass  # in this process's stead: 2 of 8 shards are finished
    messages: list[str] = []
    done: list[int] = []

    def progress(progress: Progress) -> None:
        done.append(progress.done)

    build = BuildOptions(split="none", engine="ray", workers=2, shard_passages=50, notify=messages.append)
    info = build_knowledge_base(source, tmp_path / "kb", model, progress=progress, options=options, build=build)
    assert "going on with an earlier build, which finished 2 of 8 shards (100 of 400 passages)" in messages
    assert done == [100, 150, 200, 250, 300, 350, 400]
    assert (info.version, info.passages) == (1, N_PASSAGES)
    local, ray = (KnowledgeBase.open(tmp_path / name).dataset.to_table(scan_in_order=True) for name in ("local", "kb"))
    for column in ("id", "title", "text", "metadata"):
        assert ray.column(column).equals(local.column(column))
    vectors = [table.column("embedding").combine_chunks().flatten().to_numpy() for table in (local, ray)]
    assert abs(vectors[0] - vectors[1]).max() < 1e-6


@pytest.mark.long
def test_what_goes_wrong_in_an_actor_is_raised_as_it_was(source: Path, model: Path, tmp_path: Path) -> None:
    vectors = np.ones((N_PASSAGES, DIMENSION), dtype=np.float32)
    vectors[-1] = 1e6
    np.save(tmp_path / "v.npy", vectors)
    build = BuildOptions(split="none", engine="ray", workers=1, shard_passages=100, embeddings=(tmp_path / "v.npy",))
    with pytest.raises(InvalidInputError, match="a vector is too large for float16: store float32") as raised:
        build_knowledge_base(source, tmp_path / "kb", model, precision="float16", build=build)
    assert raised.value.field == "precision"
    assert not (tmp_path / "kb").exists()
    assert len(list((tmp_path / ".kb.building" / "shards").glob("*.json"))) == 3


def _a_first_process_that(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray starts this script in its first process's stead; the file holds the pid of each start."""
    services = importlib.import_module("ray._private.services")
    starts, stub = tmp_path / "starts", tmp_path / "gcs_server"
    stub.write_text(f'#!/bin/sh\necho $$ >> {starts}\n{script}\nexec {services.GCS_SERVER_EXECUTABLE} "$@"\n')
    stub.chmod(0o755)
    monkeypatch.setattr(services, "GCS_SERVER_EXECUTABLE", str(stub))
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "5")
    return starts


@pytest.mark.long
def test_a_ray_that_hangs_at_its_start_is_started_again(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = tmp_path / "starts"
    hangs_once = f"[ $(wc -l < {starts}) = 1 ] && exec sleep 600"
    assert _a_first_process_that(hangs_once, tmp_path, monkeypatch) == starts
    build = BuildOptions(split="none", engine="ray", workers=1, shard_passages=200)
    info = build_knowledge_base(source, tmp_path / "kb", model, options=options, build=build)
    assert info.passages == N_PASSAGES
    assert len(starts.read_text().split()) == 2
    assert not _running(starts)


@pytest.mark.long
def test_a_ray_that_never_starts_is_an_error_that_says_what_to_do(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = _a_first_process_that("exec sleep 600", tmp_path, monkeypatch)
    build = BuildOptions(split="none", engine="ray", workers=1, shard_passages=200)
    with pytest.raises(FailedPreconditionError, match=r"Ray did not start on this machine: .*RAY_ADDRESS") as raised:
        build_knowledge_base(source, tmp_path / "kb", model, options=options, build=build)
    assert raised.value.field == "engine"
    assert len(starts.read_text().split()) == 2
    assert not _running(starts)


def _running(starts: Path) -> list[str]:
    return [pid for pid in starts.read_text().split() if Path("/proc", pid).exists()]


@pytest.mark.long
def test_more_workers_than_there_is_room_for_are_refused(source: Path, model: Path, tmp_path: Path) -> None:
    ray = importlib.import_module("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    build = BuildOptions(split="none", engine="ray", workers=2, shard_passages=100)
    try:
        with pytest.raises(FailedPreconditionError, match=r"Ray has 1 CPU for 2 workers, and each needs one"):
            build_knowledge_base(source, tmp_path / "kb", model, build=build)
        assert ray.is_initialized()  # it is not ours to stop
    finally:
        ray.shutdown()
