"""Steps that are larger than a message may be: what fits, and over real gRPC."""

from __future__ import annotations

import grpc.aio
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from generator_svc.commands import StepControl, WidenCommand
from generator_svc.engine import BESIDE_ARRAYS
from generator_svc.validation import Limits, check_widen
from orchestrator.search.room import Room
from ragserve.errors import InvalidInputError, ResourceExhaustedError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import common_pb2, generator_pb2
from ragserve.v1 import orchestrator_pb2 as pb
from tests.orchestrator.toy import Toy
from tests.orchestrator.toy_services import VOCAB, Faults, world

TOY = Toy("flat", VOCAB, seed=2)
N_DOCS = 20
DENSE_ROW = 4 * VOCAB * (1 + N_DOCS)
# Three dense rows; all eight samples are twice as much and more.
MESSAGE = 4 * DENSE_ROW
TOKEN, SEQUENCE = common_pb2.MODE_TOKEN, common_pb2.MODE_SEQUENCE
SAMPLES = pb.GenerationOptions(
    mode=TOKEN, num_return_sequences=8, max_length=8, sampling=pb.Sampling(seed=1, temperature=1.3)
)
TOP_K = pb.GenerationOptions(
    mode=TOKEN, num_return_sequences=8, max_length=8, sampling=pb.Sampling(seed=1, top_k=VOCAB - 5)
)
ONE_SAMPLE = pb.GenerationOptions(mode=TOKEN, max_length=12, min_length=12, sampling=TOP_K.sampling)
BEAMS = pb.GenerationOptions(mode=TOKEN, num_beams=8, max_length=8)
THOROUGH = pb.GenerationOptions(mode=SEQUENCE, num_beams=8, max_length=6)


def asked(options: pb.GenerationOptions) -> pb.GenerateRequest:
    documents = [generator_pb2.Document(title=f"d{i}", text="x", log_prior=0.1 * i) for i in range(N_DOCS)]
    return pb.GenerateRequest(question="Who?", documents=documents, options=options)


def sent_by_the_generator(room: Room, rows: int, candidates: int, requested: int) -> bool:
    limits = Limits(
        vocab_size=10**6,
        max_context_tokens=1,
        max_target_tokens=1,
        max_documents=100,
        max_hypotheses=10**6,
        max_targets=1,
        max_question_characters=1,
        max_passage_bytes=1,
        max_drafts=0,
        max_answer_bytes=room.max_bytes - BESIDE_ARRAYS,
    )
    controls = [StepControl(requested=tuple(range(requested)))] * rows
    try:
        check_widen(WidenCommand(tuple(range(rows)), candidates), controls, room.n_docs, limits)
    except InvalidInputError:
        return False
    return True


@given(
    room=st.builds(Room, max_bytes=st.integers(1024, 400_000), n_docs=st.integers(1, 100)),
    candidates=st.integers(1, 60_000),
    requested=st.integers(0, 60),
    rows=st.integers(1, 50),
)
def test_what_has_room_is_what_the_generator_sends(room: Room, candidates: int, requested: int, rows: int) -> None:
    fitting = room.rows(candidates, requested)
    assume(fitting < 1000)
    assert not fitting or sent_by_the_generator(room, fitting, candidates, requested)
    assert not sent_by_the_generator(room, fitting + 1, candidates, requested)
    try:
        most = room.candidates(rows, requested)
    except ResourceExhaustedError:
        most = 0
    assert not most or sent_by_the_generator(room, rows, most, requested)
    assert not sent_by_the_generator(room, rows, most + 1, requested)


@pytest.mark.parametrize(
    ("options", "shape"),
    [(SAMPLES, "flat"), (TOP_K, "flat"), (BEAMS, "even"), (THOROUGH, "even")],
    ids=["samples", "top_k", "beams", "thorough"],
)
async def test_what_one_message_does_not_hold_comes_in_several(options, shape) -> None:
    toy = Toy(shape, VOCAB, seed=2)
    async with world(toy, sampling_candidates=4) as running:
        expected = await running.stub.Generate(asked(options))
    faults = Faults()
    async with world(toy, sampling_candidates=4, max_message_bytes=MESSAGE, faults=faults) as running:
        answer = await running.stub.Generate(asked(options))
        assert list(answer.hypotheses) == list(expected.hypotheses)
        assert max(faults.widened) < (options.num_return_sequences or options.num_beams * N_DOCS)


@pytest.mark.parametrize("kill_at", range(2, 9))
async def test_a_replica_that_dies_between_the_parts_goes_unnoticed(kill_at: int) -> None:
    async with world(TOY, sampling_candidates=4) as running:
        expected = await running.stub.Generate(asked(SAMPLES))
    faults = Faults(kill_at=kill_at)
    async with world(TOY, replicas=2, sampling_candidates=4, max_message_bytes=MESSAGE, faults=faults) as running:
        answer = await running.stub.Generate(asked(SAMPLES))
        assert faults.killed == 1
        assert list(answer.hypotheses) == list(expected.hypotheses)


async def test_no_more_tokens_are_guessed_than_one_message_holds() -> None:
    async with world(TOY, sampling_candidates=4) as running:
        expected = await running.stub.Generate(asked(ONE_SAMPLE))
    faults = Faults(guesses=tuple(expected.hypotheses[0].token_ids))
    async with world(TOY, sampling_candidates=4, max_message_bytes=MESSAGE - DENSE_ROW, faults=faults) as running:
        answer = await running.stub.Generate(asked(ONE_SAMPLE))
        assert list(answer.hypotheses) == list(expected.hypotheses)
        assert running.metric("ragserve_accepted_tokens_total") > 0


async def test_a_message_without_room_for_one_hypothesis_is_named() -> None:
    async with world(TOY, sampling_candidates=4, max_message_bytes=DENSE_ROW) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Generate(asked(SAMPLES))
        error = error_from_rpc(caught.value)
        assert (type(error).__name__, error.field) == ("ResourceExhaustedError", "server.max_message_bytes")
        assert f"{VOCAB} x {N_DOCS} log-probabilities" in error.message
        assert str(DENSE_ROW) in error.message
