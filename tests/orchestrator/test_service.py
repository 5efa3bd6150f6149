"""The orchestrator over real gRPC, with toy services behind it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from ragserve.errors import RagserveError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import common_pb2, generator_pb2
from ragserve.v1 import orchestrator_pb2 as pb
from tests.orchestrator.toy import Toy
from tests.orchestrator.toy_services import PASSAGES, VERSION, Faults, World, world

TOY = Toy("disagree", vocab=60, seed=3)
TOKEN, SEQUENCE = common_pb2.MODE_TOKEN, common_pb2.MODE_SEQUENCE
BEAMS = pb.GenerationOptions(mode=TOKEN, num_beams=3, num_return_sequences=2)
THOROUGH = pb.GenerationOptions(mode=SEQUENCE, num_beams=2, num_return_sequences=2)
FAST = pb.GenerationOptions(mode=SEQUENCE, num_beams=2, decoding=pb.DECODING_FAST)


def asked(options: pb.GenerationOptions | None = None, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(question="Who?", options=options, token_posteriors=True, **fields)


async def error_of(call: Any) -> RagserveError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


@pytest.mark.parametrize("options", [None, BEAMS, THOROUGH, FAST], ids=["greedy", "beams", "thorough", "fast"])
async def test_an_answer_with_its_evidence(options) -> None:
    async with world(TOY) as running:
        answer = await running.stub.Generate(asked(options))
        best = answer.hypotheses[0]
        assert len(answer.hypotheses) == (options.num_return_sequences or 1 if options else 1)
        assert best.text == " ".join(f"t{token}" for token in best.token_ids)
        assert [one.passage.id for one in answer.passages] == ["p0", "p1", "p2", "p3"]
        assert sum(one.prior for one in answer.passages) == pytest.approx(1, abs=1e-6)
        assert sum(one.posterior for one in answer.passages) == pytest.approx(1)
        assert [one.token_id for one in answer.token_posteriors] == list(best.token_ids)
        np.testing.assert_allclose([sum(one.posterior) for one in answer.token_posteriors], 1, rtol=1e-5)
        by_token = np.array([one.posterior for one in answer.token_posteriors])
        expected = by_token[-1] if options and options.mode == SEQUENCE else by_token.mean(0)
        np.testing.assert_allclose([one.posterior for one in answer.passages], expected, atol=1e-6)
        assert answer.knowledge_version == VERSION
        stages = {one.stage for one in answer.timings}
        assert {"encode", "decode_step", "retrieve", "generator", "wire", "marginalize", "request"} <= stages


@pytest.mark.parametrize("mode", [TOKEN, SEQUENCE])
async def test_score_of_the_answer_is_its_log_prob(mode) -> None:
    async with world(TOY) as running:
        best = (await running.stub.Generate(asked(pb.GenerationOptions(mode=mode, num_beams=2)))).hypotheses[0]
        scored = await running.stub.Score(pb.RagServiceScoreRequest(question="Who?", answer=best.text, mode=mode))
        assert scored.log_prob == pytest.approx(best.log_prob, abs=1e-5)
        assert sum(scored.token_log_probs) == pytest.approx(scored.log_prob)
        assert list(scored.token_ids) == list(best.token_ids)
        assert sum(one.posterior for one in scored.passages) == pytest.approx(1)


async def test_fast_counts_no_more_than_thorough() -> None:
    async with world(TOY) as running:
        thorough = await running.stub.Generate(asked(THOROUGH))
        fast = await running.stub.Generate(asked(FAST))
        assert fast.hypotheses[0].log_prob <= thorough.hypotheses[0].log_prob + 1e-6
        assert any(one.posterior == 0 for one in fast.passages)


@pytest.mark.parametrize("options", [None, BEAMS, THOROUGH], ids=["greedy", "beams", "thorough"])
async def test_a_stream_ends_with_the_answer(options) -> None:
    async with world(TOY) as running:
        events = [one async for one in running.stub.GenerateStream(pb.GenerateStreamRequest(request=asked(options)))]
        answer = await running.stub.Generate(asked(options))
        kinds = [one.WhichOneof("event") for one in events]
        assert kinds[0] == "passages"
        assert kinds[-1] == "result"
        assert set(kinds[1:-1]) == {"tokens"}
        tokens = [token for one in events for token in one.tokens.token_ids]
        assert tokens == list(answer.hypotheses[0].token_ids)
        assert "".join(one.tokens.text for one in events) == answer.hypotheses[0].text
        assert list(events[-1].result.hypotheses) == list(answer.hypotheses)
        assert [one.posterior for one in events[0].passages.passages] == [0, 0, 0, 0]


async def test_own_documents() -> None:
    documents = [generator_pb2.Document(title=t, text="x", log_prior=p) for t, p in (("a", 1.0), ("b", 3.0))]
    async with world(TOY) as running:
        answer = await running.stub.Generate(asked(documents=documents))
        assert [one.passage.title for one in answer.passages] == ["b", "a"]
        assert answer.passages[0].prior == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
        assert answer.knowledge_version == 0


@pytest.mark.parametrize("options", [None, THOROUGH], ids=["token", "sequence"])
async def test_priors_as_far_apart_as_float32_reaches(options) -> None:
    async with world(TOY) as running:
        answer = await running.stub.Generate(asked(options, documents=with_priors(-1.7e38, 1.7e38)))
        assert [one.prior for one in answer.passages] == [1, 0]
        alone = await running.stub.Generate(asked(options, documents=with_priors(0.0)))
        assert answer.hypotheses[0].token_ids == alone.hypotheses[0].token_ids


async def test_priors_farther_apart_than_float32_reaches_are_refused() -> None:
    documents = with_priors(3e38, 1.0, -3e38)
    async with world(TOY) as running:
        for call in (
            running.stub.Generate(asked(documents=documents)),
            running.stub.Score(pb.RagServiceScoreRequest(question="Who?", answer="t5", documents=documents)),
        ):
            error = await error_of(call)
            assert (type(error).__name__, error.field) == ("InvalidInputError", "documents[2].log_prior")
            assert "-3e+38, too far below the largest, 3e+38" in error.message


def with_priors(*log_priors: float) -> list[generator_pb2.Document]:
    return [generator_pb2.Document(title=f"d{i}", text="x", log_prior=one) for i, one in enumerate(log_priors)]


async def test_retrieve_alone() -> None:
    async with world(TOY) as running:
        found = await running.stub.Retrieve(pb.RagServiceRetrieveRequest(question="Who?", n_docs=2))
        assert [one.passage.id for one in found.passages] == ["p0", "p1"]
        default = await running.stub.Retrieve(pb.RagServiceRetrieveRequest(question="Who?"))
        assert len(default.passages) == 4


def numbers(*values: int) -> common_pb2.SearchOptions:
    texts = common_pb2.TextList(values=[str(value) for value in values])
    return common_pb2.SearchOptions(filter=[common_pb2.Condition(key="number", any_of=texts)])


@pytest.mark.parametrize("options", [None, BEAMS, THOROUGH, FAST], ids=["greedy", "beams", "thorough", "fast"])
async def test_an_answer_from_the_passages_that_a_filter_leaves(options) -> None:
    async with world(TOY) as running:
        answer = await running.stub.Generate(asked(options, search=numbers(1, 5)))
        assert [one.passage.id for one in answer.passages] == ["p1", "p5"]
        assert sum(one.prior for one in answer.passages) == pytest.approx(1, abs=1e-6)
        assert sum(one.posterior for one in answer.passages) == pytest.approx(1)
        assert all(len(one.posterior) == 2 for one in answer.token_posteriors)
        same = await running.stub.Generate(asked(options, search=numbers(1, 5), n_docs=2))
        assert list(same.hypotheses) == list(answer.hypotheses)
        assert list(same.passages) == list(answer.passages)


async def test_score_and_retrieve_from_the_passages_that_a_filter_leaves() -> None:
    async with world(TOY) as running:
        found = await running.stub.Retrieve(pb.RagServiceRetrieveRequest(question="Who?", search=numbers(3, 0, 9)))
        assert [one.passage.id for one in found.passages] == ["p0", "p3"]
        scored = pb.RagServiceScoreRequest(question="Who?", answer="t5 t6", search=numbers(2))
        assert [one.passage.id for one in (await running.stub.Score(scored)).passages] == ["p2"]
        for method, request in (
            ("Retrieve", pb.RagServiceRetrieveRequest(question="Who?", search=numbers(9))),
            ("Score", pb.RagServiceScoreRequest(question="Who?", answer="t5 t6", search=numbers(9))),
            ("Generate", asked(search=numbers(9))),
        ):
            error = await error_of(getattr(running.stub, method)(request))
            assert (type(error).__name__, error.field) == ("NotFoundError", "search.filter")
            assert f"version {VERSION}" in error.message


async def test_a_seed_gives_the_same_answer_again() -> None:
    sampling = pb.GenerationOptions(sampling=pb.Sampling(temperature=1.3, seed=5), num_return_sequences=3)
    async with world(TOY) as running:
        answers = [await running.stub.Generate(asked(sampling)) for _ in range(2)]
        assert list(answers[0].hypotheses) == list(answers[1].hypotheses)
        log_probs = [one.log_prob for one in answers[0].hypotheses]
        assert log_probs == sorted(log_probs, reverse=True)


async def test_widenings_are_counted() -> None:
    async with world(Toy("even", 60)) as running:
        await running.stub.Generate(asked())
        assert running.metric("ragserve_widenings_total", reason="greedy") > 0


@pytest.mark.parametrize("mode", [TOKEN, SEQUENCE])
async def test_more_beams_than_the_service_allows_are_fewer_where_nobody_chose_them(mode) -> None:
    async with world(TOY, faults=Faults(beams=64), max_beams=3) as running:
        reply = await running.stub.Generate(asked(pb.GenerationOptions(mode=mode)))
        assert list(reply.warnings) == ["The checkpoint asks for 64 beams; this service allows 3 (max_beams)."]
        chosen = await running.stub.Generate(asked(pb.GenerationOptions(mode=mode, num_beams=3)))
        assert not chosen.warnings
        assert chosen.hypotheses == reply.hypotheses
        refused = await error_of(running.stub.Generate(asked(pb.GenerationOptions(mode=mode, num_beams=64))))
        assert refused.field == "options.num_beams"


async def test_the_other_mode_warns() -> None:
    async with world(TOY, trained_mode=SEQUENCE) as running:
        assert not (await running.stub.Generate(asked())).warnings
        (warning,) = (await running.stub.Generate(asked(BEAMS))).warnings
        assert "RAG-Sequence" in warning
        scored = pb.RagServiceScoreRequest(question="Who?", answer="t5 t6", mode=TOKEN)
        assert list((await running.stub.Score(scored)).warnings) == [warning]
        scored.mode = SEQUENCE
        assert not (await running.stub.Score(scored)).warnings


@pytest.mark.parametrize(
    ("code", "field", "request_"),
    [
        ("InvalidInputError", "question", pb.GenerateRequest(question=" ")),
        ("InvalidInputError", "n_docs", asked(n_docs=0)),
        ("InvalidInputError", "n_docs", asked(n_docs=PASSAGES + 1)),
        ("InvalidInputError", "options.num_beams", asked(pb.GenerationOptions(num_beams=0))),
        ("InvalidInputError", "options.num_beams", asked(pb.GenerationOptions(num_beams=1000))),
        ("InvalidInputError", "options.mode", asked(pb.GenerationOptions(mode=9))),  # type: ignore[arg-type]
        ("InvalidInputError", "options.bad_words_set", asked(pb.GenerationOptions(bad_words=[{"token_ids": [3]}]))),
        ("NotFoundError", "knowledge_version", asked(knowledge_version=99)),
        ("InvalidInputError", "search.nprobe", asked(search=common_pb2.SearchOptions(nprobe=3))),
        ("InvalidInputError", "search.filter[0].key", asked(search={"filter": [{"key": "x", "equals": "y"}]})),
        ("InvalidInputError", "search", asked(search={"nprobe": 3}, documents=[{"text": "x"}])),
        ("InvalidInputError", "search.kind", asked(search=common_pb2.SearchOptions(kind=9))),  # type: ignore[arg-type]
    ],
    ids=str,
)
async def test_refused(code, field, request_) -> None:
    async with world(TOY) as running:
        error = await error_of(running.stub.Generate(request_))
        assert (type(error).__name__, error.field) == (code, field)
        assert "options.filter" not in error.message
        assert (await running.stub.Generate(asked())).hypotheses


async def test_an_empty_answer_cannot_be_scored() -> None:
    async with world(TOY) as running:
        error = await error_of(running.stub.Score(pb.RagServiceScoreRequest(question="Who?", answer="")))
        assert error.field == "answer"


@pytest.mark.parametrize("kill_at", [1, 2, 4, 8, 9])
@pytest.mark.parametrize("options", [BEAMS, THOROUGH], ids=["beams", "thorough"])
async def test_a_dying_replica_goes_unnoticed(options, kill_at) -> None:
    async with world(TOY) as running:
        expected = await running.stub.Generate(asked(options))
        total = running.faults.requests
    faults = Faults(kill_at=min(kill_at, total))
    async with world(TOY, replicas=2, faults=faults) as running:
        answer = await running.stub.Generate(asked(options))
        assert faults.killed == 1
        assert list(answer.hypotheses) == list(expected.hypotheses)
        assert running.metric("ragserve_failovers_total") >= 1


LONG = pb.GenerationOptions(mode=TOKEN, max_length=12, min_length=12)
SAMPLED = pb.GenerationOptions(mode=TOKEN, max_length=12, min_length=12, sampling=pb.Sampling(seed=5, temperature=3.0))


@pytest.mark.parametrize("wrong", [(), (0,), (2, 3), (5,)], ids=str)
@pytest.mark.parametrize("options", [LONG, SAMPLED], ids=["greedy", "sampled"])
async def test_guesses_save_steps_and_change_nothing(options, wrong) -> None:
    async with world(TOY, sampling_candidates=4) as running:
        expected = await running.stub.Generate(asked(options))
        steps, widenings = running.faults.requests, widened(running)
        assert widenings or options is LONG
    tokens = list(expected.hypotheses[0].token_ids)
    guesses = tuple(token + 1 if i in wrong else token for i, token in enumerate(tokens))
    async with world(TOY, sampling_candidates=4, faults=Faults(guesses=guesses)) as running:
        answer = await running.stub.Generate(asked(options))
        assert list(answer.hypotheses) == list(expected.hypotheses)
        assert list(answer.token_posteriors) == list(expected.token_posteriors)
        assert widened(running) == widenings
        saved = running.metric("ragserve_accepted_tokens_total")
        assert running.faults.requests == steps - saved
        assert saved >= 3
        assert running.metric("ragserve_drafted_tokens_total") >= saved
    for kill_at in range(2, 6):
        faults = Faults(kill_at=kill_at, guesses=guesses)
        async with world(TOY, sampling_candidates=4, replicas=2, faults=faults) as running:
            answer = await running.stub.Generate(asked(options))
            assert (faults.killed, list(answer.hypotheses)) == (1, list(expected.hypotheses))


def widened(running: World) -> float:
    return sum(running.metric("ragserve_widenings_total", reason=reason) for reason in ("greedy", "sample"))


async def test_without_any_replica_it_is_unavailable() -> None:
    async with world(TOY, faults=Faults(kill_at=2), max_attempts=2) as running:
        error = await error_of(running.stub.Generate(asked()))
        assert type(error).__name__ == "UnavailableError"


async def test_a_deadline_ends_the_session() -> None:
    async with world(TOY, faults=Faults(slow_seconds=0.3)) as running:
        error = await error_of(running.stub.Generate(asked(), timeout=1.0))
        assert type(error).__name__ == "DeadlineExceededError"
        await eventually(lambda: running.faults.ended == ["cancelled"])


async def test_a_caller_that_leaves_frees_the_session() -> None:
    async with world(TOY, faults=Faults(slow_seconds=0.2)) as running:
        call = running.stub.GenerateStream(pb.GenerateStreamRequest(request=asked()))
        await call.read()
        await eventually(lambda: running.faults.requests > 0)
        call.cancel()
        await eventually(lambda: running.faults.ended == ["cancelled"])


async def test_a_session_ends_in_peace() -> None:
    async with world(TOY) as running:
        await running.stub.Generate(asked())
        await eventually(lambda: running.faults.ended == ["done"])


async def test_the_stages_add_up() -> None:
    async with world(TOY) as running:
        for options in (None, BEAMS, THOROUGH):
            await running.stub.Generate(asked(options))
        total = {
            stage: running.metric(f"ragserve_{stage}_seconds_sum")
            for stage in ("request", "retrieve", "generator", "marginalize", "other", "wire", "time_to_first_token")
        }
        parts = total["retrieve"] + total["generator"] + total["marginalize"] + total["other"]
        assert parts == pytest.approx(total["request"], rel=0.02)
        assert 0 < total["wire"] <= total["retrieve"] + total["generator"]
        assert 0 < total["time_to_first_token"] <= total["request"]


async def eventually(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
