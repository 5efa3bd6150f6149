"""Builds that are killed: real processes, real SIGKILL, and what the next build does with what they left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from ragserve.errors import FailedPreconditionError, NotFoundError
from retriever_svc.build import BuildOptions, Progress, build_knowledge_base
from retriever_svc.knowledge import KnowledgeBase, describe
from retriever_svc.loading import RetrievalOptions
from tests.retriever_svc.sources import WHOLE, without_counts
from tests.tiny import tiny_passages, write_jsonl

N_PASSAGES, SHARD = 400, 50

# Builds, says on stdout what is done, and stands still once `stop` passages are.
BUILD = """
import sys, time
from pathlib import Path
from retriever_svc.build import BuildOptions, build_knowledge_base
from retriever_svc.loading import RetrievalOptions

source, out, model = map(Path, sys.argv[1:4])
stop, shard = int(sys.argv[4]), int(sys.argv[5])

def report(progress):
    print(progress.done, flush=True)
    if progress.done >= stop:
        time.sleep(100)

build_knowledge_base(
    source, out, model, replace=True, progress=report, options=RetrievalOptions(device="cpu", threads=1),
    build=BuildOptions(split="none", shard_passages=shard, notify=lambda message: print(message, flush=True)),
)
"""


@contextmanager
def building(source: Path, out: Path, model: Path, stop: int, shard: int = SHARD) -> Iterator[list[str]]:
    """A build that has embedded `stop` passages and stands still; killed when the block ends. Gives what it said."""
    command = [sys.executable, "-c", BUILD, *map(str, (source, out, model, stop, shard))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        said: list[str] = []
        while not said or not said[-1].isdigit() or int(said[-1]) < stop:
            said.append(process.stdout.readline().strip())
            assert said[-1], "the build ended early"
        try:
            yield said
        finally:
            process.send_signal(signal.SIGKILL)


def rows(out: Path) -> pa.Table:
    return KnowledgeBase.open(out).dataset.to_table(scan_in_order=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("source") / "passages.jsonl", tiny_passages(N_PASSAGES, seed=9))


@pytest.fixture(scope="module")
def uninterrupted(
    source: Path, model: Path, options: RetrievalOptions, tmp_path_factory: pytest.TempPathFactory
) -> pa.Table:
    out = tmp_path_factory.mktemp("whole") / "kb"
    build_knowledge_base(source, out, model, options=options, build=BuildOptions(split="none", shard_passages=SHARD))
    return rows(out)


class Told:
    """Collects what a build in this process says."""

    def __init__(self, **build: Any) -> None:
        self.messages: list[str] = []
        self.done: list[int] = []
        self.build = BuildOptions(split="none", **{"shard_passages": SHARD, **build}, notify=self.note)

    def note(self, message: str) -> None:
        """What is said; that tiny encoders read little is another test's."""
        if "longer than the passage encoder reads" not in message:
            self.messages.append(message)

    def progress(self, progress: Progress) -> None:
        self.done.append(progress.done)


def test_a_killed_build_goes_on_after_its_last_finished_shard(
    source: Path, model: Path, options: RetrievalOptions, uninterrupted: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "kb"
    for stop, finished in ((130, 2), (270, 5)):  # killed twice, in the middle of a shard
        with building(source, out, model, stop):
            pass
        assert not out.exists()
        journal = sorted((tmp_path / ".kb.building" / "shards").glob("*.json"))
        assert len(journal) == finished
    with pytest.raises(NotFoundError):
        describe(out)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in journal}
    files = {name for _, body in before.values() for name in json.loads(body)["files"]}

    told = Told()
    info = build_knowledge_base(source, out, model, progress=told.progress, options=options, build=told.build)
    assert without_counts(told.messages) == [
        "going on with an earlier build, which finished 5 of 8 shards (250 of 400 passages)"
    ]
    assert told.done[0] == 250
    assert told.done == sorted(told.done)
    assert told.done[-1] == N_PASSAGES
    kept = {path.name for path in (out / "passages.lance" / "data").iterdir()}
    assert files < kept
    assert len(kept) == 8  # nothing of the killed builds' unfinished shards
    assert (info.version, info.passages) == (1, N_PASSAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["kb"]
    assert rows(out).equals(uninterrupted)


def test_a_build_that_names_no_shards_repeats_little_after_a_kill(
    model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source, out = write_jsonl(tmp_path / "passages.jsonl", tiny_passages(2500, seed=3)), tmp_path / "kb"
    with building(source, out, model, 2200, shard=0):
        pass
    told = Told(shard_passages=0)
    build_knowledge_base(source, out, model, progress=told.progress, options=options, build=told.build)
    assert without_counts(told.messages) == [
        "going on with an earlier build, which finished 2 of 3 shards (2,048 of 2,500 passages)"
    ]


@pytest.mark.parametrize(
    ("build", "passages", "size"),
    [
        ({}, 10, 1024),
        ({}, 21_015_324, 21_016),
        ({}, 2**31, 2**20),
        ({"embeddings": (Path("vectors.npy"),)}, 1_000_000, 8192),
        ({"shard_passages": 7}, 1_000_000, 7),
    ],
)
def test_how_many_passages_are_finished_together(build: dict[str, Any], passages: int, size: int) -> None:
    assert BuildOptions(split="none", **build).shard_size(passages) == size


def test_another_source_or_option_starts_over(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    out = tmp_path / "kb"
    with building(source, out, model, 130):
        pass
    told = Told(shard_passages=100)
    build_knowledge_base(source, out, model, progress=told.progress, options=options, build=told.build)
    assert (without_counts(told.messages), told.done[0]) == ([], 0)

    other = write_jsonl(tmp_path / "passages.jsonl", tiny_passages(N_PASSAGES, seed=9))
    with building(other, out, model, 130):
        pass
    changed = write_jsonl(other, tiny_passages(N_PASSAGES, seed=8))
    told = Told()
    build_knowledge_base(changed, out, model, replace=True, progress=told.progress, options=options, build=told.build)
    assert (without_counts(told.messages), told.done[0]) == ([], 0)
    assert rows(out).column("text")[0].as_py() == tiny_passages(1, seed=8)[0].text


@pytest.mark.long
def test_a_source_that_was_only_touched_is_the_same(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    with building(source, tmp_path / "kb", model, 130):
        pass
    os.utime(source)
    told = Told()
    build_knowledge_base(source, tmp_path / "kb", model, progress=told.progress, options=options, build=told.build)
    assert told.done[0] == 100


def test_a_damaged_shard_is_made_again(
    source: Path, model: Path, options: RetrievalOptions, uninterrupted: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "kb"
    with building(source, out, model, 130):
        pass
    (name,) = json.loads((tmp_path / ".kb.building" / "shards" / "00000001.json").read_text())["files"]
    damaged = tmp_path / ".kb.building" / "kb" / "passages.lance" / "data" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    told = Told()
    build_knowledge_base(source, out, model, progress=told.progress, options=options, build=told.build)
    assert without_counts(told.messages) == [
        "going on with an earlier build, which finished 1 of 8 shards (50 of 400 passages)"
    ]
    assert rows(out).equals(uninterrupted)


@pytest.mark.parametrize("pattern", ["staged/staged.json", "staged/dropped.npy", "staged/*/data/*", "shards/*1.json"])
def test_damaged_work_of_a_killed_build_is_named(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path, pattern: str
) -> None:
    with building(source, tmp_path / "kb", model, 130):
        pass
    (damaged,) = (tmp_path / ".kb.building").glob(pattern)
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(FailedPreconditionError, match=r"is damaged: remove it and build again") as caught:
        build_knowledge_base(source, tmp_path / "kb", model, options=options, build=Told().build)
    shutil.rmtree(caught.value.field)
    assert build_knowledge_base(source, tmp_path / "kb", model, options=options, build=Told().build).passages == 400


def test_a_killed_replacement_goes_on_and_old_versions_stay(
    source: Path, model: Path, options: RetrievalOptions, uninterrupted: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "kb"
    old = write_jsonl(tmp_path / "old.jsonl", tiny_passages(60, seed=1))
    build_knowledge_base(old, out, model, options=options, build=WHOLE)
    first = rows(out)
    with building(source, out, model, 130):
        assert rows(out).equals(first)
    assert (describe(out).version, describe(out).passages) == (1, 60)
    told = Told()
    info = build_knowledge_base(
        source, out, model, replace=True, progress=told.progress, options=options, build=told.build
    )
    assert told.done[0] == 100
    assert (info.version, info.versions, info.passages) == (2, (1, 2), N_PASSAGES)
    assert rows(out).equals(uninterrupted)
    assert KnowledgeBase.open(out, 1).dataset.to_table(scan_in_order=True).equals(first)
    assert not (tmp_path / ".kb.building").exists()


def test_two_builds_of_one_name_are_refused(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    out = tmp_path / "kb"
    with (
        building(source, out, model, 130),
        pytest.raises(FailedPreconditionError, match="is being built by another process"),
    ):
        build_knowledge_base(source, out, model, options=options, build=WHOLE)
    told = Told()
    build_knowledge_base(source, out, model, progress=told.progress, options=options, build=told.build)
    assert told.done[0] == 100


def test_the_commit_is_one_version_that_knows_its_key(uninterrupted: pa.Table, knowledge_base: Path) -> None:
    dataset = lance.dataset(str(knowledge_base / "passages.lance"))
    assert len(dataset.versions()) == 1
    assert dataset.has_stable_row_ids
    assert dataset.schema.field("id").metadata == {b"lance-schema:unenforced-primary-key": b"true"}
    assert len(uninterrupted) == N_PASSAGES
