from __future__ import annotations

import asyncio
import errno
import fnmatch
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from ragserve.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from ragserve.serving.metrics import Metrics
from ragserve.v1 import retriever_pb2
from retriever_svc.encoder import TextEncoder
from retriever_svc.engine import EngineOptions, Retrieval, RetrieverEngine
from retriever_svc.filters import Condition, Filter
from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.kinds import LookupOptions, SearchKind
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.loading import RetrievalOptions
from retriever_svc.requests import RequestLimits
from retriever_svc.rows import MemoryRows
from retriever_svc.search import search_offline
from retriever_svc.servicer import RetrieverServicer
from retriever_svc.types import Passage, Query
from tests.retriever_svc.models import DIMENSION, write_model
from tests.serving.conftest import until

LIMITS = RequestLimits(max_k=50, max_batch_queries=8, max_query_characters=200)


def make_engine(model: Path, knowledge_base: Path, options: RetrievalOptions, max_waiting: int = 64) -> RetrieverEngine:
    chosen = EngineOptions(retrieval=options, limits=LIMITS, max_waiting=max_waiting)
    return RetrieverEngine(model, knowledge_base, options=chosen, metrics=Metrics())


@pytest_asyncio.fixture
async def engine(model: Path, knowledge_base: Path, options: RetrievalOptions) -> AsyncIterator[RetrieverEngine]:
    engine = make_engine(model, knowledge_base, options)
    await engine.start()
    yield engine
    await engine.stop()


def ids(retrieval: Retrieval) -> list[list[str]]:
    return [[hit.passage.id for hit in result.hits] for result in retrieval.results]


async def test_finds_what_brute_force_finds(
    engine: RetrieverEngine, encoder: TextEncoder, rows: MemoryRows, passages: list
) -> None:
    questions = ["who built the great tower?", "river of the north", passages[7].text]
    retrieval = await engine.retrieve([Query(text) for text in questions], k=5)
    every = rows.vectors(np.arange(rows.size))
    for question, result in zip(questions, retrieval.results, strict=True):
        scores = every.astype(np.float64) @ encoder.encode_queries([question])[0].astype(np.float64)
        order = np.argsort(-scores, kind="stable")[:5]
        assert [hit.passage.id for hit in result.hits] == [passages[i].id for i in order]
        assert [hit.passage.text for hit in result.hits] == [passages[i].text for i in order]
        np.testing.assert_allclose([hit.score for hit in result.hits], scores[order], rtol=1e-5)
        prior = np.exp(0.5 * (scores[order] - scores[order][0]))
        np.testing.assert_allclose([hit.log_prior for hit in result.hits], np.log(prior / prior.sum()), atol=1e-4)
    assert retrieval.knowledge_version == 1


async def test_a_vector_finds_what_its_text_finds(engine: RetrieverEngine, encoder: TextEncoder) -> None:
    text = "the king of spain"
    (by_text,) = (await engine.retrieve([Query(text)], k=7)).results
    (by_vector,) = (await engine.retrieve([Query(vector=encoder.encode_queries([text])[0])], k=7)).results
    assert by_text.hits == by_vector.hits
    assert by_text.decoded_query
    assert by_vector.decoded_query == ""


async def test_a_request_alone_equals_the_request_among_others(engine: RetrieverEngine, passages: list) -> None:
    questions = [passage.text[:60] for passage in passages[:16]]
    alone = [await engine.retrieve([Query(question)], k=1 + i % 5) for i, question in enumerate(questions)]
    calls = (engine.retrieve([Query(question)], k=1 + i % 5) for i, question in enumerate(questions))
    for one, other in zip(alone, await asyncio.gather(*calls), strict=True):
        assert ids(one) == ids(other)
        np.testing.assert_allclose(
            [hit.log_prior for hit in one.results[0].hits], [hit.log_prior for hit in other.results[0].hits], atol=1e-5
        )


async def test_batches_run_two_at_a_time_and_are_searched_one_at_a_time(
    model: Path, knowledge_base: Path, options: RetrievalOptions, passages: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work: dict[str, int] = {"encode": 0, "search": 0}
    most = dict(at_work)

    def watched(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            at_work[stage] += 1
            most[stage] = max(most[stage], at_work[stage])
            time.sleep(0.002)
            try:
                return call(*args, **options)
            finally:
                at_work[stage] -= 1

        return run

    monkeypatch.setattr(TextEncoder, "encode_tokens", watched("encode", TextEncoder.encode_tokens))
    monkeypatch.setattr(FaissIndex, "search", watched("search", FaissIndex.search))
    engine = make_engine(model, knowledge_base, replace(options, threads=2))
    await engine.start()
    texts = [passage.text[:60] for passage in passages[:48]]
    calls = (engine.retrieve([Query(text)] * (1 + number % 3), k=3) for number, text in enumerate(texts))
    for text, together in zip(texts, await asyncio.gather(*calls), strict=True):
        alone = await engine.retrieve([Query(text)], k=3)
        assert all(found == ids(alone)[0] for found in ids(together))
    await engine.stop()
    assert most == {"encode": 2, "search": 1}


async def test_stages_are_timed_and_add_up(engine: RetrieverEngine) -> None:
    started = asyncio.get_running_loop().time()
    retrieval = await engine.retrieve([Query("lake")] * 8, k=5)
    whole = asyncio.get_running_loop().time() - started
    assert [timing.stage for timing in retrieval.timings] == ["queue", "encode", "search", "fetch"]
    assert 0 < sum(timing.seconds for timing in retrieval.timings) <= whole


@pytest.mark.parametrize(
    ("queries", "k", "field", "message"),
    [
        ([], 1, "queries", "empty"),
        ([Query("a")] * 9, 1, "queries", "9 entries"),
        ([Query("a"), Query("")], 1, "queries[1].text", "is empty"),
        ([Query(" \n\t")], 1, "queries[0].text", "is empty"),
        ([Query("a" * 201)], 1, "queries[0].text", "201 characters"),
        ([Query(vector=np.ones(3, np.float32))], 1, "queries[0].vector", "3 values"),
        ([Query(vector=np.full(DIMENSION, np.nan, np.float32))], 1, "queries[0].vector", "not finite"),
        ([Query(vector=np.full(DIMENSION, np.inf, np.float32))], 1, "queries[0].vector", "not finite"),
        ([Query(vector=np.full(DIMENSION, -1.1e15, np.float32))], 1, "queries[0].vector", r"beyond 1e\+15"),
        ([Query("a")], 0, "k", "k is 0; it must be between 1 and 50: the retriever"),
        ([Query("a")], 51, "k", "max_k"),
    ],
)
async def test_bad_requests_name_the_field(
    engine: RetrieverEngine, queries: list, k: int, field: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        await engine.retrieve(queries, k)
    assert caught.value.field == field


async def test_k_above_the_number_of_passages_is_refused(
    model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    chosen = EngineOptions(retrieval=options, limits=RequestLimits(max_k=1000))
    engine = RetrieverEngine(model, knowledge_base, options=chosen, metrics=Metrics())
    await engine.start()
    assert len((await engine.retrieve([Query("a")], k=120)).results[0].hits) == 120
    with pytest.raises(
        InvalidInputError, match="k is 121; it must be between 1 and 120: the knowledge base has 120 passages"
    ):
        await engine.retrieve([Query("a")], k=121)
    found = await engine.retrieve([Query("a")], k=121, allow_fewer=True)
    assert len(found.results[0].hits) == 120
    assert found.warnings == ("The knowledge base has 120 passages; this request uses 120 instead of 121.",)
    assert (await engine.retrieve([Query("a")], k=120, allow_fewer=True)).warnings == ()
    await engine.stop()


async def test_an_unknown_version_lists_the_loaded_ones(engine: RetrieverEngine) -> None:
    assert (await engine.retrieve([Query("a")], 1, knowledge_version=1)).knowledge_version == 1
    with pytest.raises(NotFoundError, match=r"loaded: 1 .*keep_versions .*rollback") as caught:
        await engine.retrieve([Query("a")], 1, knowledge_version=9)
    assert caught.value.field == "knowledge_version"


async def test_a_full_queue_refuses_and_a_stopped_engine_too(
    model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    engine = make_engine(model, knowledge_base, options, max_waiting=2)
    with pytest.raises(UnavailableError, match="loading"):
        await engine.retrieve([Query("a")], 1)
    await engine.start()
    results = await asyncio.gather(*(engine.retrieve([Query("a")], 1) for _ in range(20)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, ResourceExhaustedError)]
    assert 0 < len(refused) < 20
    assert all(error.retry_after_seconds for error in refused)
    await engine.stop()
    with pytest.raises(UnavailableError):
        await engine.retrieve([Query("a")], 1)


async def test_passages_on_disk_answer_like_passages_in_memory(
    engine: RetrieverEngine, model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    on_disk = make_engine(model, knowledge_base, replace(options, max_memory_bytes=0))
    await on_disk.start()
    queries = [Query("song of the sea"), Query("iron castle")]
    assert (await on_disk.retrieve(queries, 9)).results == (await engine.retrieve(queries, 9)).results
    await on_disk.stop()


async def test_an_index_is_cached_outside_a_knowledge_base(
    model: Path, knowledge_base: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    changed = replace(
        options, index=IndexSpec("HNSW16", device="cpu", build_threads=1), index_cache_dir=tmp_path, score_scale=2.0
    )
    for _ in range(2):
        engine = make_engine(model, knowledge_base, changed)
        await engine.start()
        assert engine.info().score_scale == 2.0
        assert engine.info().index_factory == "HNSW16"
        assert len((await engine.retrieve([Query("a")], 5)).results[0].hits) == 5
        await engine.stop()
    assert len(fnmatch.filter(os.listdir(tmp_path), "*.faiss")) == 1
    assert "indexes" not in os.listdir(knowledge_base)


async def test_a_knowledge_base_of_another_encoder_is_refused(
    knowledge_base: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", seed=5)
    with pytest.raises(FailedPreconditionError, match="embedded by another passage encoder"):
        await make_engine(other, knowledge_base, options).start()


def test_offline_search_equals_the_service(
    model: Path, knowledge_base: Path, passages: list, options: RetrievalOptions
) -> None:
    hits, warnings = search_offline(model, knowledge_base, passages[3].text, 4, options)
    assert (len(hits), warnings) == (4, ())
    assert len(search_offline(model, knowledge_base, "a", None, options)[0]) == 5
    assert abs(sum(np.exp(hit.log_prior) for hit in hits) - 1) < 1e-5
    with pytest.raises(InvalidInputError, match="between 1 and 120: the knowledge base has 120 passages"):
        search_offline(model, knowledge_base, "a", 121, options)
    with pytest.raises(InvalidInputError, match="empty"):
        search_offline(model, knowledge_base, " ", 1, options)


def test_offline_search_blames_what_it_found_nothing_for(
    model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    words, bm25 = replace(options, lexical=True), LookupOptions(kind=SearchKind.BM25)
    filtered = replace(bm25, filter=Filter((Condition("number", equals="none"),)))
    for query, lookup, field in (
        ("xylophone", bm25, "options.kind"),
        ("the", bm25, "query"),
        ("xylophone", filtered, "options.filter"),
    ):
        with pytest.raises(NotFoundError) as caught:
            search_offline(model, knowledge_base, query, 1, words, lookup)
        assert caught.value.field == field


async def test_a_cached_answer_is_the_one_that_would_be_found_again(
    engine: RetrieverEngine, model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    metrics = Metrics()
    chosen = EngineOptions(retrieval=options, limits=LIMITS, query_cache_entries=2)
    caching = RetrieverEngine(model, knowledge_base, options=chosen, metrics=metrics)
    await caching.start()

    def hits() -> float:
        return metrics.registry.get_sample_value("ragserve_query_cache_hits_total") or 0.0

    first = await caching.retrieve([Query("the king of spain"), Query("old castle")], 3)
    assert hits() == 0
    assert (await caching.retrieve([Query("The  KING of spain")], 3)).results == first.results[:1]  # the same tokens
    assert hits() == 1
    assert (await caching.retrieve([Query("the king of spain")], 4)).results[0].hits[:3] != first.results[0].hits
    assert hits() == 1  # the prior is over four
    mixed = [Query("iron tower"), Query("the king of spain")]
    assert (await caching.retrieve(mixed, 4)).results == (await engine.retrieve(mixed, 4)).results
    assert hits() == 2
    await caching.stop()


async def test_a_replica_goes_on_looking_after_a_file_system_did_not_answer(
    model: Path, knowledge_base: Path, options: RetrievalOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(knowledge_base, tmp_path / "kb"))
    chosen = EngineOptions(retrieval=options, refresh_seconds=0.04)
    engine = RetrieverEngine(model, copy, options=chosen, metrics=Metrics())
    await engine.start()
    looks = 0

    def not_answering(path: Path) -> bool:
        nonlocal looks
        looks += 1
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "is_dir", not_answering)
        await until(lambda: looks > 4)
    other = KnowledgeWriter(copy, KnowledgeBase.open(copy).encoder)
    other.upsert([Passage("new", "", "text")], np.ones((1, DIMENSION), np.float32))
    await until(lambda: engine.info().knowledge_version == 2)
    await engine.stop()


async def test_a_bug_met_on_a_stream_is_told_by_an_id_and_ends_no_other_request(
    engine: RetrieverEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = engine.retrieve

    async def failing(queries: list[Query], k: int, *given: Any, **options: Any) -> Retrieval:
        if k == 3:
            raise RuntimeError("a secret")
        return await whole(queries, k, *given, **options)

    monkeypatch.setattr(engine, "retrieve", failing)

    async def requests() -> AsyncIterator[retriever_pb2.RetrieveStreamRequest]:
        for k in (2, 3, 4):
            request = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[retriever_pb2.Query(text="who?")], k=k)
            yield retriever_pb2.RetrieveStreamRequest(id=k, request=request)

    answers = {each.id: each async for each in RetrieverServicer(engine).RetrieveStream(requests(), None)}
    assert [len(answers[k].response.results[0].passages) for k in (2, 4)] == [2, 4]
    assert answers[3].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in answers[3].error.message
    assert answers[3].error.message.split()[-1] in str(caplog.records[-1].__dict__)
    assert "a secret" in caplog.text
