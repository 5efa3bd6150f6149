"""Versions that are loaded with other settings, or beside one that cannot be."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc.filters import Filter
from retriever_svc.index import SearchOptions
from retriever_svc.kinds import nearest
from retriever_svc.live.snapshot import View
from retriever_svc.loading import RetrievalOptions
from retriever_svc.types import LARGEST
from tests.retriever_svc.live_home import DIMENSION, Home, as_passages, check


def test_a_version_is_searched_with_the_refine_factor_of_its_settings(tmp_path: Path) -> None:
    def found(refine_factor: float) -> int:
        home = Home(tmp_path / f"kb{refine_factor}", random.Random(11), "PQ4x4")
        home.options = RetrievalOptions(index=replace(home.options.index, refine_factor=refine_factor))
        home.overwrite(home.draw(len(home.ids)))
        snapshot = home.follower().newest
        queries = np.random.default_rng(5).normal(size=(20, DIMENSION)).astype(np.float32)
        plain = nearest(View(snapshot, Filter()), queries, 2)
        vectors = snapshot.vectors(np.arange(snapshot.size)).astype(np.float64)
        return sum(
            len(set(positions.tolist()) & set(np.argsort(-(vectors @ query))[:2].tolist()))
            for (positions, _), query in zip(plain, queries, strict=True)
        )

    assert found(1.0) < found(60.0) == 40


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat"])
def test_the_largest_vectors_that_are_taken_are_found(tmp_path: Path, factory: str) -> None:
    home = Home(tmp_path / "kb", random.Random(3), factory)
    home.upsert(100)
    follower = home.follower()
    ones = np.ones(DIMENSION, np.float32)
    huge = {"up": ("up", LARGEST * ones, {}), "down": ("down", -LARGEST * ones, {})}
    with pytest.raises(InvalidInputError, match="beyond 1e"):
        home.writer.upsert(*as_passages({"up": ("up", 1.01 * LARGEST * ones, {})}))
    home.committed(home.writer.upsert(*as_passages(huge)).version, {**home.rows, **huge})
    view = View(follower.refresh(), Filter())
    for query, best in ((LARGEST * ones, "up"), (ones, "up"), (-ones, "down"), (-LARGEST * ones, "down")):
        ((positions, scores),) = nearest(view, query[None].astype(np.float32), 3)
        assert view.snapshot.passages(positions)[0].id == best
        assert np.isfinite(scores).all()
    follower.close()


def test_an_older_version_that_cannot_be_indexed_does_not_hold_up_the_newest(tmp_path: Path) -> None:
    home = Home(tmp_path / "kb", random.Random(7), "IVF64,Flat")
    home.upsert(100)
    home.upsert(3)
    follower, whole = home.follower(keep_versions=2), max(home.history)
    broken = home.draw(5)
    next(iter(broken.values()))[1][0] = np.nan
    home.overwrite(broken)
    with pytest.raises(FailedPreconditionError, match="not finite"):
        follower.refresh()
    assert follower.newest.version == whole
    home.committed(home.writer.rollback(whole), home.history[whole])
    assert follower.refresh().version == whole + 2
    assert sorted(follower.snapshots) == [whole + 2]
    check(home, follower)
    follower.close()
    restarted = home.follower(keep_versions=2)
    assert sorted(restarted.snapshots) == [whole + 2]
    restarted.close()


def test_too_few_passages_for_the_index_are_searched_one_by_one(tmp_path: Path) -> None:
    """A replica that starts, or follows a version that replaces all, has nothing older to answer from."""
    home = Home(tmp_path / "kb", random.Random(8), "IVF64,Flat")
    home.overwrite(home.draw(5))
    follower = home.follower()
    check(home, follower)
    index = follower.newest.base.index
    assert index.exact
    index.check_options(SearchOptions(nprobe=8))  # as its own index would take it
    assert len(nearest(View(follower.newest, Filter(), nprobe=8), np.ones((1, DIMENSION), np.float32), 3)[0][0]) == 3
    home.overwrite(home.draw(7))
    follower.refresh()
    check(home, follower)
    home.upsert(100)
    follower.refresh()
    follower.wait()
    assert not follower.newest.base.index.exact
    check(home, follower)
    follower.close()
