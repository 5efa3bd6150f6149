from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest

from ragserve.errors import InvalidInputError
from ragserve.serving.metrics import Metrics
from retriever_svc.encoder import TextEncoder
from retriever_svc.loading import RetrievalOptions, load_searcher, load_snapshot
from retriever_svc.query_cache import QueryCache, QueryKey
from retriever_svc.searcher import Lookup
from retriever_svc.types import Query, QueryHits


def counted(metrics: Metrics) -> tuple[float, float]:
    names = ("ragserve_query_cache_hits_total", "ragserve_query_cache_misses_total")
    found = [metrics.registry.get_sample_value(name) for name in names]
    return found[0] or 0.0, found[1] or 0.0


def key(number: int, version: int = 1, k: int = 5, options: object = None) -> QueryKey:
    return QueryKey.of([101, number, 102], version, k, options)


def test_the_least_recently_used_goes_first() -> None:
    metrics = Metrics()
    cache: QueryCache[str] = QueryCache(2, metrics)
    cache.put(key(1), "one")
    cache.put(key(2), "two")
    assert cache.get(key(1)) == "one"
    cache.put(key(3), "three")
    assert [cache.get(key(number)) for number in (1, 2, 3)] == ["one", None, "three"]
    assert len(cache) == 2
    assert counted(metrics) == (3, 1)


def test_a_value_put_again_replaces_the_old_one() -> None:
    cache: QueryCache[str] = QueryCache(2, Metrics())
    cache.put(key(1), "old")
    cache.put(key(2), "two")
    cache.put(key(1), "new")
    cache.put(key(3), "three")
    assert [cache.get(key(number)) for number in (1, 2, 3)] == ["new", None, "three"]


@pytest.mark.parametrize("other", [key(2), key(1, version=2), key(1, k=6), key(1, options=("nprobe", 4))])
def test_everything_that_decides_a_reply_is_in_the_key(other: QueryKey) -> None:
    cache: QueryCache[str] = QueryCache(9, Metrics())
    cache.put(key(1), "one")
    assert cache.get(other) is None
    assert cache.get(key(1)) == "one"


def test_no_entries_means_no_cache_and_no_counts() -> None:
    metrics = Metrics()
    cache: QueryCache[str] = QueryCache(0, metrics)
    cache.put(key(1), "one")
    assert (cache.enabled, len(cache), cache.get(key(1)), counted(metrics)) == (False, 0, None, (0, 0))


def test_a_negative_bound_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError) as caught:
        QueryCache(-1, Metrics())
    assert caught.value.field == "query_cache_entries"


def test_clear_forgets() -> None:
    cache: QueryCache[str] = QueryCache(9, Metrics())
    cache.put(key(1), "one")
    cache.clear()
    assert (len(cache), cache.get(key(1))) == (0, None)


def test_many_threads_see_whole_values_within_the_bound() -> None:
    metrics = Metrics()
    cache: QueryCache[tuple[int, int]] = QueryCache(8, metrics)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(500):
            number = rng.randrange(16)
            found = cache.get(key(number))
            if found is None:
                cache.put(key(number), (number, number))
            elif found != (number, number):
                wrong.append(found)
            if len(cache) > 8:
                wrong.append(len(cache))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(counted(metrics)) == 2000


def test_texts_with_the_same_tokens_have_the_same_reply(
    model: Path, knowledge_base: Path, options: RetrievalOptions
) -> None:
    """The ground on which a hit is exact: case and spaces that the tokenizer ignores change nothing else."""
    searcher = load_searcher(model, options)
    snapshot = load_snapshot(model, knowledge_base, options, searcher.encoder.config.dim)
    texts = ("who was born in the old city?", "WHO  was born\tin the old city ?")
    ids = searcher.encoder.tokenize_queries(texts)
    assert ids[0] == ids[1]
    replies: list[QueryHits] = []
    for text in texts:
        ((found,),) = searcher.run([Lookup((Query(text),), 4, snapshot)], lambda _stage, _seconds: None)
        replies.append(found)
    assert replies[0] == replies[1]
    cache: QueryCache[QueryHits] = QueryCache(4, Metrics())
    cache.put(QueryKey.of(ids[0], snapshot.version, 4), replies[0])
    assert cache.get(QueryKey.of(ids[1], snapshot.version, 4)) == replies[1]


def test_texts_that_only_look_alike_have_keys_of_their_own(encoder: TextEncoder) -> None:
    first, second = encoder.tokenize_queries(["who was born in 1950?", "who was born in 1951?"])
    assert QueryKey.of(first, 1, 5) != QueryKey.of(second, 1, 5)
    assert not np.array_equal(encoder.encode_tokens([first]), encoder.encode_tokens([second]))
