"""Vectors that were computed elsewhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.build import BuildOptions, Progress, build_knowledge_base
from retriever_svc.build.vectors import embedding_files
from retriever_svc.knowledge import KnowledgeBase, describe
from retriever_svc.loading import RetrievalOptions
from retriever_svc.rows import MemoryRows
from tests.retriever_svc.models import DIMENSION
from tests.retriever_svc.sources import WHOLE, without_counts
from tests.tiny import tiny_passages, write_jsonl

N = 40


def vectors(rows: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "passages.jsonl", tiny_passages(N, seed=5))


def stored(out: Path) -> np.ndarray:
    rows = MemoryRows.read(KnowledgeBase.open(out).dataset)
    return rows.vectors(np.arange(rows.size))


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_an_array_is_stored_as_it_is(source: Path, dtype: str, model: Path, tmp_path: Path) -> None:
    given = vectors().astype(dtype)
    build = BuildOptions(embeddings=(save(tmp_path / "v.npy", given),), shard_passages=7)
    info = build_knowledge_base(source, tmp_path / "kb", model, build=build)
    np.testing.assert_array_equal(stored(tmp_path / "kb"), given.astype(np.float32))
    assert info.dimension == DIMENSION


def test_given_vectors_carry_the_encoder_that_made_them(
    source: Path, model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    build_knowledge_base(source, tmp_path / "embedded", model, options=options, build=WHOLE)
    build = BuildOptions(embeddings=(save(tmp_path / "v.npy", stored(tmp_path / "embedded")),))
    build_knowledge_base(source, tmp_path / "given", model, build=build)
    np.testing.assert_array_equal(stored(tmp_path / "given"), stored(tmp_path / "embedded"))
    assert describe(tmp_path / "given").encoder == describe(tmp_path / "embedded").encoder


def with_value(row: int, value: float) -> np.ndarray:
    given = vectors()
    given[row, 3] = value
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (vectors()[:, :-1], "vectors of width 31; the model's encoder makes 32"),
        (vectors(N + 1), f"{N + 1} vectors for the {N} rows"),
        (with_value(17, np.nan), r"v\.npy: row 17 \(passage '17', line 18\) holds NaN, infinity or a value beyond"),
        (with_value(5, np.inf), r"v\.npy: row 5 \(passage '5', line 6\) holds NaN, infinity or a value beyond"),
        (with_value(6, -1e16), r"v\.npy: row 6 \(passage '6', line 7\) holds NaN, infinity or a value beyond 1e\+15"),
        (vectors().reshape(-1), "has shape"),
        (vectors().astype(np.int32), "of int32; it must be"),
        (np.asfortranarray(vectors()), "in Fortran order"),
        (np.array([{}, {}]), "of object; it must be"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    given: np.ndarray, message: str, source: Path, model: Path, tmp_path: Path
) -> None:
    build = BuildOptions(embeddings=(save(tmp_path / "v.npy", given),))
    with pytest.raises(InvalidInputError, match=message):
        build_knowledge_base(source, tmp_path / "kb", model, build=build)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["passages.jsonl", "v.npy"]


def test_an_array_that_is_cut_short_or_none_is_refused(source: Path, model: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "v.npy", vectors())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InvalidInputError, match=r"v\.npy has 5244 bytes, its header says 5248"):
        build_knowledge_base(source, tmp_path / "kb", model, build=BuildOptions(embeddings=(path,)))
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match=r"v\.npy is not a \.npy file"):
        build_knowledge_base(source, tmp_path / "kb", model, build=BuildOptions(embeddings=(path,)))
    with pytest.raises(InvalidInputError, match="does not exist"):
        build_knowledge_base(source, tmp_path / "kb", model, build=BuildOptions(embeddings=(tmp_path / "no.npy",)))


def test_a_value_too_large_for_float16_is_refused(source: Path, model: Path, tmp_path: Path) -> None:
    build = BuildOptions(embeddings=(save(tmp_path / "v.npy", with_value(1, 1e6)),))
    with pytest.raises(InvalidInputError, match="too large for float16"):
        build_knowledge_base(source, tmp_path / "kb", model, precision="float16", build=build)


def test_bad_rows_and_bad_vectors_are_left_out_together(source: Path, model: Path, tmp_path: Path) -> None:
    lines = source.read_text().splitlines()
    lines[2] = "{"  # row 2 cannot be read, row 7 repeats row 6, row 9 has no vector
    lines[7] = lines[6]
    source.write_text("\n".join(lines))
    given = with_value(9, np.nan)
    given[2] = np.nan
    told: list[str] = []
    build = BuildOptions(
        embeddings=(save(tmp_path / "v.npy", given),), skip_bad_rows=True, shard_passages=3, notify=told.append
    )
    info = build_knowledge_base(source, tmp_path / "kb", model, build=build)
    assert info.passages == N - 3
    np.testing.assert_array_equal(stored(tmp_path / "kb"), np.delete(given, [2, 7, 9], axis=0))
    assert told[0].startswith(f"skipped 3 of {N} rows:\n  ")


def write_pickles(directory: Path, given: np.ndarray, prefix: str = "") -> Path:
    """As DPR's generate_dense_embeddings.py: a list of (id, vector) for each part; part 10 comes after part 2."""
    directory.mkdir()
    for part, rows in zip(("0", "2", "10"), np.array_split(np.arange(len(given)), 3), strict=True):
        content: list[tuple[Any, Any]] = [(f"{prefix}{row}", given[row]) for row in rows.tolist()]
        (directory / f"passages_{part}.pkl").write_bytes(pickle.dumps(content))
    return directory


@pytest.mark.parametrize("prefix", ["", "wiki:"])
def test_dpr_pickles_are_read_only_when_allowed(prefix: str, source: Path, model: Path, tmp_path: Path) -> None:
    given = vectors()
    directory = write_pickles(tmp_path / "pickles", given, prefix)
    with pytest.raises(InvalidInputError, match=r"passages_0\.pkl is a pickle, and reading one runs the code in it"):
        build_knowledge_base(source, tmp_path / "kb", model, build=BuildOptions(embeddings=(directory,)))
    build = BuildOptions(embeddings=(directory,), allow_pickle=True, shard_passages=9)
    build_knowledge_base(source, tmp_path / "kb", model, build=build)
    np.testing.assert_array_equal(stored(tmp_path / "kb"), given)


def test_a_pickle_that_is_not_allowed_runs_nothing(source: Path, model: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "v.pkl").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(InvalidInputError, match="allow_pickle"):
        build_knowledge_base(source, tmp_path / "kb", model, build=BuildOptions(embeddings=(tmp_path / "v.pkl",)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([("0", vectors(1)[0]), ("5", vectors(1)[0])], "entry 1 .'5'.: the source has passage '1' there"),
        ([("0", vectors(1)[0][:-1])], r"entry 0 .'0'. has shape \[31\]; it must be \[32\]"),
        ([("0", "text")], "entry 0 .'0'. is not a vector"),
        ({"0": 1}, r"is not a list of \(id, vector\)"),
        ([("0", vectors(1)[0])], f"1 vector for the {N} rows"),
    ],
)
def test_a_pickle_that_does_not_fit_is_refused(
    content: object, message: str, source: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(content))
    build = BuildOptions(embeddings=(tmp_path / "v.pkl",), allow_pickle=True)
    with pytest.raises(InvalidInputError, match=message):
        build_knowledge_base(source, tmp_path / "kb", model, build=build)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name in ("a.npy", "b.pkl", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"must end in \.npy or \.pkl"):
        embedding_files([tmp_path / "c.txt"], allow_pickle=True)
    with pytest.raises(InvalidInputError, match=r"one \.npy file, or pickles only"):
        embedding_files([tmp_path / "a.npy", tmp_path / "b.pkl"], allow_pickle=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=r"no \.pkl or \.pickle files there"):
        embedding_files([tmp_path / "empty"], allow_pickle=True)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_build_goes_on_with_its_own_vectors_wherever_they_are_now(
    pickled: bool, source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, given: np.ndarray) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if not pickled:
            return save(path, given)
        path.write_bytes(pickle.dumps([(str(row), vector) for row, vector in enumerate(given)]))
        return path

    class StoppedError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done >= 14:
            raise StoppedError

    name = "v.pkl" if pickled else "v.npy"
    monkeypatch.chdir(tmp_path)
    first = BuildOptions(
        embeddings=(write(f"first/{name}", vectors()).relative_to(tmp_path),), shard_passages=7, allow_pickle=pickled
    )
    with pytest.raises(StoppedError):
        build_knowledge_base(source, Path("kb"), model, build=first, progress=stop)
    moved = write(f"archive/{name}", vectors())
    write(f"first/{name}", vectors(seed=1))  # of another job
    monkeypatch.chdir(tmp_path / "archive")
    said: list[str] = []
    build = BuildOptions(embeddings=(moved,), shard_passages=7, allow_pickle=pickled, notify=said.append)
    build_knowledge_base(source, tmp_path / "kb", model, build=build)
    assert without_counts(said)[0].startswith("going on with an earlier build")
    np.testing.assert_array_equal(stored(tmp_path / "kb"), vectors())
