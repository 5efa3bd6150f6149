"""Replicas of the generator that have no room for a session, over real gRPC."""

from __future__ import annotations

import asyncio
import time

import grpc.aio
import pytest

from ragserve.errors import RagserveError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import common_pb2
from ragserve.v1 import orchestrator_pb2 as pb
from tests.orchestrator.toy import Toy
from tests.orchestrator.toy_services import Faults, World, world

TOY = Toy("disagree", vocab=60, seed=3)
BEAMS = pb.GenerateRequest(
    question="Who?", options=pb.GenerationOptions(mode=common_pb2.MODE_TOKEN, num_beams=3, num_return_sequences=2)
)


async def fill(running: World, *full: int) -> Faults:
    """Replicas without room from now on; the orchestrator is connected to all."""
    faults = running.faults
    while len(set(faults.opened)) < len(running.generators):
        await running.stub.Generate(BEAMS)
    faults.full, faults.opened, faults.requests = frozenset(full), [], 0
    return faults


async def refused(running: World, seconds: float | None = None) -> RagserveError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Generate(BEAMS, timeout=seconds)
    return error_from_rpc(caught.value)


def passed_over(running: World) -> float:
    return running.metric("ragserve_full_replicas_total")


async def test_a_full_replica_is_passed_over() -> None:
    async with world(TOY, replicas=2) as running:
        expected = await running.stub.Generate(BEAMS)
        faults = await fill(running, 0)
        for _ in range(6):
            answer = await running.stub.Generate(BEAMS)
            assert list(answer.hypotheses) == list(expected.hypotheses)
            await running.stub.Score(pb.RagServiceScoreRequest(question="Who?", answer="t5 t6"))
        assert passed_over(running) == faults.opened.count(0) > 0
        assert faults.opened.count(1) == 12


async def test_many_at_once_all_pass_it_over() -> None:
    async with world(TOY, replicas=2) as running:
        faults = await fill(running, 1)
        answers = await asyncio.gather(*(running.stub.Generate(BEAMS) for _ in range(60)))
        assert len({answer.hypotheses[0].text for answer in answers}) == 1
        assert passed_over(running) == faults.opened.count(1) > 0


async def test_all_are_full() -> None:
    """Each is asked once, and the caller is told when to come back."""
    async with world(TOY, replicas=3) as running:
        faults = await fill(running, 0, 1, 2)
        error = await refused(running)
        assert (type(error).__name__, error.retry_after_seconds) == ("ResourceExhaustedError", 0.5)
        assert sorted(faults.opened) == [0, 1, 2]
        assert passed_over(running) == 2
        assert running.metric("ragserve_failovers_total") == 0


async def test_replicas_that_refuse_before_they_are_asked_are_full_too() -> None:
    async with world(TOY, replicas=3) as running:
        faults = await fill(running, 0)
        faults.full_at_once, faults.slow_seconds = frozenset((1, 2)), 0.05
        for _ in range(6):
            error = await refused(running)
            assert (type(error).__name__, error.retry_after_seconds) == ("ResourceExhaustedError", 0.5)
        assert running.metric("ragserve_failovers_total") == 0


@pytest.mark.parametrize(("max_attempts", "retry_after_seconds"), [(1, 0.5), (3, None)], ids=["one try", "too large"])
async def test_nothing_is_tried_again(max_attempts: int, retry_after_seconds: float | None) -> None:
    """Where one try is all, or the request is too large for any replica: then nobody says when to come back."""
    async with world(TOY, replicas=2, max_attempts=max_attempts) as running:
        faults = await fill(running, 0, 1)
        faults.retry_after_seconds = retry_after_seconds
        error = await refused(running)
        assert (type(error).__name__, error.retry_after_seconds) == ("ResourceExhaustedError", retry_after_seconds)
        assert len(faults.opened) == 1


async def test_the_deadline_holds_while_replicas_are_tried() -> None:
    async with world(TOY, replicas=3) as running:
        faults = await fill(running, 0, 1, 2)
        faults.slow_seconds = 0.4
        begin = time.monotonic()
        error = await refused(running, seconds=0.6)
        assert type(error).__name__ == "DeadlineExceededError"
        assert time.monotonic() - begin < 1.0
        assert len(faults.opened) < 3


@pytest.mark.parametrize("kill_at", [2, 3, 4, 5])
async def test_a_session_of_a_dying_replica_passes_over_a_full_one(kill_at: int) -> None:
    async with world(TOY, replicas=3) as running:
        expected = await running.stub.Generate(BEAMS)
        faults = await fill(running, 0)
        faults.kill_at = kill_at
        answer = await running.stub.Generate(BEAMS)
        assert faults.killed == 1
        assert list(answer.hypotheses) == list(expected.hypotheses)
