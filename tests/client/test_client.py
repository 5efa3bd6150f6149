from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

import ragserve
from tests.client.conftest import Running


def eventually(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_generate(client: ragserve.Client) -> None:
    answer = client.generate("who wrote it", token_posteriors=True)
    assert (answer.answer, answer.log_prob, answer.token_ids) == ("Darwin", -0.5, (5, 2))
    assert [h.text for h in answer.hypotheses] == ["Darwin", "Wallace"]
    assert answer.passages[0] == ragserve.Passage("d1", "Darwin", "He wrote.", 3.0, 0.75, 0.9, {"year": 1859})
    assert answer.token_posteriors[0] == ragserve.TokenPosterior(5, "Darwin", (0.75, 0.25))
    assert answer.timings_seconds == {"search": 0.5, "decode_step": 1.5}
    assert answer.knowledge_version == 7
    assert answer.warnings == ("a warning",)


async def test_async_generate_gives_the_same(client: ragserve.Client, async_client: ragserve.AsyncClient) -> None:
    assert await async_client.generate("q", beams=4) == await asyncio.to_thread(client.generate, "q", beams=4)


def test_stream(client: ragserve.Client, service: Running) -> None:
    passages, tokens, answer = client.generate_stream("q", mode="token")
    assert isinstance(passages, ragserve.PassagesEvent)
    assert [(p.id, p.posterior) for p in passages.passages] == [("d1", None), ("d2", None)]
    assert tokens == ragserve.TokensEvent((5,), "Darwin")
    assert answer == client.generate("q")
    assert service.rag.requests[0].options.mode == 1


async def test_async_stream(async_client: ragserve.AsyncClient) -> None:
    events = [event async for event in async_client.generate_stream("q")]
    assert [type(event).__name__ for event in events] == ["PassagesEvent", "TokensEvent", "Answer"]


def test_leaving_a_stream_cancels_the_call(client: ragserve.Client, service: Running) -> None:
    with_passages = client.generate_stream("slow")
    next(with_passages)
    with_passages.close()
    eventually(lambda: service.rag.ended == ["stream"])


async def test_leaving_an_async_stream_cancels_the_call(async_client: ragserve.AsyncClient, service: Running) -> None:
    events = async_client.generate_stream("slow")
    await anext(events)
    await events.aclose()
    await asyncio.to_thread(eventually, lambda: service.rag.ended == ["stream"])


async def test_cancelling_the_task_cancels_the_call(async_client: ragserve.AsyncClient, service: Running) -> None:
    task = asyncio.create_task(async_client.generate("slow"))
    await asyncio.to_thread(eventually, lambda: service.rag.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(eventually, lambda: service.rag.ended == ["slow"])


def test_retrieve(client: ragserve.Client, service: Running) -> None:
    found = client.retrieve("q", docs=2, knowledge_version=7)
    assert [(p.title, p.posterior) for p in found.passages] == [("Darwin", None), ("Wallace", None)]
    assert (found.knowledge_version, found.timings_seconds) == (7, {"search": 0.5})
    (request,) = service.rag.requests
    assert (request.question, request.n_docs, request.knowledge_version) == ("q", 2, 7)


def test_score(client: ragserve.Client, service: Running) -> None:
    score = client.score("q", "Darwin", mode="sequence", truncation="right", max_context_tokens=64)
    assert (score.log_prob, score.token_ids, score.token_log_probs) == (-1.25, (5, 2), (-1.0, -0.25))
    assert score.pieces == ("Darwin", "</s>")
    (request,) = service.rag.requests
    assert (request.answer, request.mode, request.truncation, request.max_context_tokens) == ("Darwin", 2, 2, 64)


async def test_async_retrieve_and_score(client: ragserve.Client, async_client: ragserve.AsyncClient) -> None:
    assert await async_client.retrieve("q") == await asyncio.to_thread(client.retrieve, "q")
    assert await async_client.score("q", "a") == await asyncio.to_thread(client.score, "q", "a")


def test_errors_are_typed(client: ragserve.Client) -> None:
    with pytest.raises(ragserve.InvalidInputError, match=r"^docs is 0; it must be at least 1$") as invalid:
        client.generate("q", docs=0)
    assert invalid.value.field == "n_docs"
    with pytest.raises(ragserve.ResourceExhaustedError) as full:
        client.generate("full")
    assert full.value.retry_after_seconds == 2.0
    with pytest.raises(ragserve.InternalError):
        client.generate("nothing")


async def test_errors_of_streams_are_typed(client: ragserve.Client, async_client: ragserve.AsyncClient) -> None:
    events = async_client.generate_stream("broken")
    assert isinstance(await anext(events), ragserve.PassagesEvent)
    with pytest.raises(ragserve.UnavailableError):
        await anext(events)
    with pytest.raises(ragserve.UnavailableError):
        await asyncio.to_thread(list, client.generate_stream("broken"))


def test_deadlines(client: ragserve.Client, service: Running) -> None:
    started = time.monotonic()
    with pytest.raises(ragserve.DeadlineExceededError):
        client.generate("slow", timeout_seconds=0.2)
    assert time.monotonic() - started < 25
    eventually(lambda: service.rag.ended == ["slow"])
    with pytest.raises(ragserve.DeadlineExceededError):
        list(client.generate_stream("slow", timeout_seconds=0.2))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_timeouts_that_are_none(seconds: float, client: ragserve.Client) -> None:
    with pytest.raises(ragserve.InvalidInputError, match="above 0"):
        client.generate("q", timeout_seconds=seconds)
    with pytest.raises(ragserve.InvalidInputError, match="above 0"):
        ragserve.Client("localhost:1", timeout_seconds=seconds)


def test_unavailable_is_tried_again(client: ragserve.Client, service: Running) -> None:
    service.rag.failures_left = 2
    assert client.generate("q").answer == "Darwin"
    assert len(service.rag.requests) == 3


def test_attempts_are_limited(service: Running) -> None:
    service.rag.failures_left = 5
    with ragserve.Client(service.target, max_attempts=1) as client, pytest.raises(ragserve.UnavailableError):
        client.generate("q")
    assert len(service.rag.requests) == 1


def test_nobody_listens() -> None:
    with ragserve.Client("127.0.0.1:1", timeout_seconds=5) as client, pytest.raises(ragserve.UnavailableError):
        client.retrieve("q")


def test_threads_may_share_a_client(client: ragserve.Client) -> None:
    async def many() -> list[ragserve.Answer]:
        return await asyncio.gather(*(asyncio.to_thread(client.generate, "q") for _ in range(16)))

    assert len({a.answer for a in asyncio.run(many())}) == 1
