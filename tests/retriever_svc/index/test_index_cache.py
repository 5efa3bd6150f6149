"""Index files: what an interrupted build, a full disk or another process may do to them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from retriever_svc.index import FaissIndex, IndexCache, IndexSpec, SearchOptions
from tests.retriever_svc.index.sources import ArraySource, clustered

SOURCE = ArraySource(clustered(400, 8))
SPEC = IndexSpec("HNSW16", device="cpu", build_threads=1)
ROOT = Path(__file__).resolve().parents[3]

# Stores an index and is killed in the middle of it, at the moment named.
VICTIM = """
import os, signal, sys
from pathlib import Path
import faiss
from retriever_svc.index import FaissIndex, IndexCache, IndexSpec
from tests.retriever_svc.index.test_index_cache import SOURCE, SPEC

def die():
    os.kill(os.getpid(), signal.SIGKILL)

moment, write, replace = sys.argv[2], faiss.write_index, Path.replace

def half_written(index, path):
    write(index, path)
    os.truncate(path, os.path.getsize(path) // 2)
    die()

def replaced(self, target):
    if moment == "before it has its name":
        die()
    replace(self, target)
    die()

if moment == "half written":
    faiss.write_index = half_written
else:
    Path.replace = replaced
IndexCache(Path(sys.argv[1])).load_or_build("1", SPEC, lambda: FaissIndex.build(SOURCE, SPEC))
"""


def load(directory: Path, content: str = "1", spec: IndexSpec = SPEC, **limits: int) -> bool:
    """Whether the index had to be built; it must search right either way."""
    built = []

    def build() -> FaissIndex:
        built.append(True)
        return FaissIndex.build(SOURCE, spec)

    index = IndexCache(directory, **limits).load_or_build(content, spec, build)
    _, positions = index.search(SOURCE.array[:20], 1, SearchOptions(ef_search=200))
    assert (positions[:, 0] == np.argmax(SOURCE.array[:20] @ SOURCE.array.T, axis=1)).all()
    return bool(built)


@pytest.mark.parametrize("moment", ["half written", "before it has its name", "before its checksum"])
def test_a_build_that_was_killed_leaves_nothing_that_is_trusted(tmp_path: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path), moment], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir())
    assert load(tmp_path)
    assert not load(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".faiss", ".sha256"]


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    holder = (
        "import sys; from pathlib import Path; from retriever_svc.index.cache import _temporary_file\n"
        "with _temporary_file(Path(sys.argv[1])) as path:\n    print(path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        temporary = Path(process.stdout.readline().strip())
        assert load(tmp_path)
        assert temporary.exists()
        process.kill()
    assert load(tmp_path, "2")
    assert not temporary.exists()


def test_the_indexes_used_last_are_kept(tmp_path: Path) -> None:
    for age, content in enumerate(["1", "2", "3"]):
        assert load(tmp_path, content, max_indexes=3)
        os.utime(IndexCache(tmp_path).path_of(content, SPEC), (age, age))
    assert not load(tmp_path, "1", max_indexes=3)  # now the one used last
    assert load(tmp_path, "4", max_indexes=3)
    assert len(list(tmp_path.glob("*.faiss"))) == len(list(tmp_path.glob("*.sha256"))) == 3
    assert not load(tmp_path, "1", max_indexes=3)
    assert not load(tmp_path, "3", max_indexes=3)
    assert load(tmp_path, "2", max_indexes=3)


def test_a_wrong_checksum_is_data_loss_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path)
    (path,) = tmp_path.glob("*.faiss")
    path.write_bytes(path.read_bytes()[:-1])
    assert load(tmp_path)
    assert "DATA_LOSS" in caplog.text


def test_a_sound_file_that_faiss_cannot_read_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_nonsense(_index: object, path: str) -> None:
        Path(path).write_bytes(b"no index")

    monkeypatch.setattr(faiss, "write_index", write_nonsense)
    assert load(tmp_path)
    monkeypatch.undo()
    assert load(tmp_path)
    assert "cannot be read" in caplog.text
    assert not load(tmp_path)


def test_a_deleted_cache_is_filled_again(tmp_path: Path) -> None:
    directory = tmp_path / "indexes"
    assert load(directory)
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    assert load(directory)
    assert not load(directory)


def test_a_full_disk_means_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with pytest.raises(RuntimeError):
        FaissIndex.build(SOURCE, SPEC).write(full)  # as FAISS reports it
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import sys; from pathlib import Path; from tests.retriever_svc.index import test_index_cache as test\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); print(test.load(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert "index not cached" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_does_not_bring_the_search_parameters_it_was_written_with(tmp_path: Path) -> None:
    ivf = IndexSpec("IVF16,Flat", search_parameters="nprobe=16", device="cpu", build_threads=1)
    plain = IndexSpec("IVF16,Flat", device="cpu", build_threads=1)
    cache = IndexCache(tmp_path)
    assert cache.path_of("1", ivf) == cache.path_of("1", plain)
    cache.load_or_build("1", ivf, lambda: FaissIndex.build(SOURCE, ivf))
    cached = cache.load_or_build("1", plain, lambda: pytest.fail("it is in the cache"))
    fresh = FaissIndex.build(SOURCE, plain)
    np.testing.assert_array_equal(cached.search(SOURCE.array, 50)[1], fresh.search(SOURCE.array, 50)[1])


def test_precision_is_part_of_the_key(tmp_path: Path) -> None:
    half = IndexSpec("HNSW16", precision="float16")
    assert IndexCache(tmp_path).path_of("1", half) != IndexCache(tmp_path).path_of("1", SPEC)


def test_the_log_says_where_an_index_came_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load(tmp_path)
    assert "loaded from cache" not in caplog.text
    load(tmp_path)
    assert "loaded from cache" in caplog.text
