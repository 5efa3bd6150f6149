"""A build killed before each of its changes to the file system: nothing to trust but the whole, and it can go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from ragserve.errors import NotFoundError
from retriever_svc.build import BuildOptions, build_knowledge_base
from retriever_svc.knowledge import KnowledgeBase, describe
from retriever_svc.loading import RetrievalOptions
from tests.retriever_svc.sources import WHOLE
from tests.tiny import tiny_passages, write_jsonl

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
N_PASSAGES = 12
BUILD = BuildOptions(split="none", shard_passages=4)

# Builds, and is killed by itself before its change number `last` to the file system below `directory`.
KILLED = """
import os, signal, sys
from pathlib import Path
from retriever_svc.build import BuildOptions, build_knowledge_base
from retriever_svc.loading import RetrievalOptions

source, out, model, last = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
changes = 0

def watch(event, arguments):
    global changes
    writes = event == "open" and arguments[1] is not None and set(str(arguments[1])) & set("wax+")
    if not writes and event not in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link"):
        return
    path = str(arguments[0])
    if str(out.parent) not in path and event not in ("os.remove", "os.rmdir"):
        return
    if "/names/" in path:
        return
    changes += 1
    if changes == last:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
build = BuildOptions(split="none", shard_passages=4)
build_knowledge_base(source, out, model, replace=True, options=RetrievalOptions(device="cpu", threads=1), build=build)
print(changes)
"""


def run(source: Path, out: Path, model: Path, last: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, *map(str, (source, out, model, last))]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def rows(out: Path) -> pa.Table:
    return KnowledgeBase.open(out).dataset.to_table(scan_in_order=True)


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacement"])
def test_a_build_killed_anywhere(replacing: bool, model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    old = write_jsonl(tmp_path / "old.jsonl", tiny_passages(5, seed=1))
    source = write_jsonl(tmp_path / "new.jsonl", tiny_passages(N_PASSAGES, seed=2))
    build_knowledge_base(old, tmp_path / "old", model, options=options, build=WHOLE)
    build_knowledge_base(source, tmp_path / "new", model, options=options, build=BUILD)
    before, after = rows(tmp_path / "old"), rows(tmp_path / "new")

    def start(name: str) -> Path:
        out = tmp_path / name / "kb"
        if replacing:
            build_knowledge_base(old, out, model, options=options, build=WHOLE)
        return out

    whole = run(source, start("whole"), model, 0)
    assert whole.returncode == 0, whole.stderr
    changes = int(whole.stdout)
    assert changes > 20
    outcomes = set()
    for last in range(1, changes + 1, 2):
        out = start(f"killed-{last}")
        assert run(source, out, model, last).returncode == -9, last
        try:
            found = describe(out).version and rows(out)
        except NotFoundError:
            found = None
        outcomes.add("new" if after.equals(found) else "old" if before.equals(found) else found)
        info = build_knowledge_base(source, out, model, replace=True, options=options, build=BUILD)
        assert (info.passages, rows(out).equals(after)) == (N_PASSAGES, True), last
        assert [path.name for path in out.parent.iterdir()] == ["kb"], last
        if replacing:
            assert KnowledgeBase.open(out, 1).dataset.to_table(scan_in_order=True).equals(before)
    assert outcomes == ({"old", "new"} if replacing else {None, "new"})
