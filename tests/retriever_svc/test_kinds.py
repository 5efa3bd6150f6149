"""Search by words and hybrid search, over a knowledge base that changes."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from ragserve.errors import FailedPreconditionError, InvalidInputError
from ragserve.serving.metrics import Metrics
from retriever_svc.encoder import TextEncoder
from retriever_svc.engine import EngineOptions, RetrieverEngine
from retriever_svc.filters import Condition, Filter
from retriever_svc.kinds import LookupOptions, SearchKind
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.lexical import BM25_SCALE, Bm25Index, indexed_text
from retriever_svc.live.follower import FollowOptions
from retriever_svc.loading import RetrievalOptions
from retriever_svc.ranking import log_priors
from retriever_svc.rows import MemoryRows
from retriever_svc.types import NewPassage, Passage, Query

QUESTION = "who built the great castle of the old king near the northern river?"
BM25, WEIGHTED, RRF = (LookupOptions(kind=kind) for kind in (SearchKind.BM25, SearchKind.WEIGHTED, SearchKind.RRF))


@pytest_asyncio.fixture
async def engine(
    model: Path, knowledge_base: Path, options: RetrievalOptions, tmp_path: Path
) -> AsyncIterator[RetrieverEngine]:
    """With an index of words, over a copy that has changed: replaced, added and deleted passages, not rebuilt."""
    copy = Path(shutil.copytree(knowledge_base, tmp_path / "kb"))
    chosen = EngineOptions(retrieval=replace(options, lexical=True), follow=FollowOptions(rebuild_min_rows=10_000))
    engine = RetrieverEngine(model, copy, options=chosen, metrics=Metrics())
    await engine.start()
    rows = MemoryRows.read(KnowledgeBase.open(copy).dataset)
    old = [passage.id for passage in rows.passages(np.arange(30))]
    texts = [f"the castle of king number {number} stands by the river" for number in range(12)]
    new = [Passage(identifier, "Castles", text) for identifier, text in zip([*old[:6], *"uvwxyz"], texts, strict=True)]
    await engine.editor.upsert(
        [NewPassage(replace(new[0], metadata_json='{"era": "old"}')), *map(NewPassage, new[1:])], engine.clock()
    )
    await engine.editor.delete(old[20:], engine.clock())
    yield engine
    await engine.stop()


def fresh(engine: RetrieverEngine) -> tuple[Bm25Index, dict[int, Passage], MemoryRows]:
    """An index made from nothing but the rows of the newest version."""
    rows = MemoryRows.read(KnowledgeBase.open(engine.knowledge).dataset)
    passages = dict(zip(rows.keys.row_ids.tolist(), rows.passages(np.arange(rows.size)), strict=True))
    texts = [indexed_text(passage.title, passage.text) for passage in passages.values()]
    return Bm25Index.build([(rows.keys.row_ids, texts)]), passages, rows


async def hits(engine: RetrieverEngine, options: LookupOptions, k: int = 7) -> list:
    return list((await engine.retrieve([Query(QUESTION)], k, options=options)).results[0].hits)


async def test_bm25_finds_what_an_index_of_the_same_rows_finds(engine: RetrieverEngine) -> None:
    words, passages, _ = fresh(engine)
    row_ids, scores = words.search(QUESTION, 7)
    found = await hits(engine, BM25)
    assert [hit.passage for hit in found] == [passages[row_id] for row_id in row_ids.tolist()]
    np.testing.assert_array_equal([np.float32(hit.score) for hit in found], scores)
    np.testing.assert_allclose([hit.log_prior for hit in found], log_priors(scores, BM25_SCALE), atol=1e-6)


async def test_a_weight_of_nought_is_dense_and_of_one_is_bm25(engine: RetrieverEngine) -> None:
    dense, words = await hits(engine, LookupOptions()), await hits(engine, BM25)
    for weight, alone in ((0.0, dense), (1.0, words)):
        mixed = await hits(engine, replace(WEIGHTED, lexical_weight=weight))
        assert [hit.passage.id for hit in mixed] == [hit.passage.id for hit in alone]
        np.testing.assert_allclose([hit.log_prior for hit in mixed], [hit.log_prior for hit in alone], atol=1e-4)


async def test_a_weighted_sum_is_exact_over_all_passages(engine: RetrieverEngine, encoder: TextEncoder) -> None:
    words, passages, rows = fresh(engine)
    vectors = rows.vectors(np.arange(rows.size)).astype(np.float64)
    dense = 0.5 * (vectors @ encoder.encode_queries([QUESTION])[0].astype(np.float64))
    total = 0.7 * dense + 0.3 * BM25_SCALE * words.scores(QUESTION, rows.keys.row_ids)
    best = np.argsort(-total)[:7]
    found = await hits(engine, replace(WEIGHTED, lexical_weight=0.3))
    assert [hit.passage for hit in found] == [passages[int(rows.keys.row_ids[row])] for row in best]
    np.testing.assert_allclose([hit.score for hit in found], total[best], rtol=1e-4)


async def test_rank_fusion_likes_what_both_find(engine: RetrieverEngine) -> None:
    dense, words = await hits(engine, LookupOptions(), 100), await hits(engine, BM25, 100)
    scores: dict[str, float] = {}
    for ranking in (dense, words):
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.passage.id] = scores.get(hit.passage.id, 0.0) + 1 / (60 + rank)
    found = await hits(engine, RRF)
    np.testing.assert_allclose([hit.score for hit in found], sorted(scores.values(), reverse=True)[:7], rtol=1e-5)
    assert all(abs(scores[hit.passage.id] - hit.score) < 1e-6 for hit in found)


@pytest.mark.parametrize("kind", [BM25, WEIGHTED, RRF])
async def test_a_filter_holds_for_every_kind(engine: RetrieverEngine, kind: LookupOptions) -> None:
    old = Filter((Condition("era", equals="old"),))
    assert [hit.passage.title for hit in await hits(engine, replace(kind, filter=old))] == ["Castles"]
    none = Filter((Condition("era", equals="new"),))
    assert await hits(engine, replace(kind, filter=none)) == []


async def test_the_index_of_words_survives_a_rebuild_and_a_rollback(engine: RetrieverEngine) -> None:
    version = engine.info().knowledge_version
    before = await hits(engine, BM25)
    await engine.editor.delete([before[0].passage.id], engine.clock())
    assert (await hits(engine, BM25))[0] != before[0]
    await engine.editor.rollback(version, engine.clock())
    assert await hits(engine, BM25) == before


async def test_what_cannot_be_is_refused(
    engine: RetrieverEngine, model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    vector = Query(vector=np.ones(engine.dimension, np.float32))
    with pytest.raises(InvalidInputError, match="has no words") as caught:
        await engine.retrieve([Query("a"), vector], 1, options=BM25)
    assert caught.value.field == "queries[1].vector"
    with pytest.raises(InvalidInputError, match="between 0 and 1") as caught:
        await engine.retrieve([Query("a")], 1, options=replace(WEIGHTED, lexical_weight=1.5))
    assert caught.value.field == "options.lexical_weight"
    without = RetrieverEngine(model, knowledge_base, options=EngineOptions(retrieval=options), metrics=Metrics())
    await without.start()
    with pytest.raises(FailedPreconditionError, match="start it with --lexical"):
        await without.retrieve([Query("a")], 1, options=BM25)
    await without.stop()
