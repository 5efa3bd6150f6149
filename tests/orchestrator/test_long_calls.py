"""Calls that last longer than the connection they came on."""

from __future__ import annotations

import asyncio
import time

from ragserve.v1 import common_pb2
from ragserve.v1 import orchestrator_pb2 as pb
from tests.orchestrator.toy import Toy
from tests.orchestrator.toy_services import Faults, world

AGE_SECONDS, STEP_SECONDS = 0.4, 0.3
AGEING = {"max_connection_age_seconds": AGE_SECONDS, "grace_seconds": 0.1}


async def test_answers_outlive_their_connection() -> None:
    toy = Toy("disagree", vocab=60, seed=3)
    options = pb.GenerationOptions(mode=common_pb2.MODE_TOKEN, num_beams=3, min_new_tokens=8)
    request = pb.GenerateRequest(question="Who?", options=options)
    async with world(toy, faults=Faults(slow_seconds=STEP_SECONDS), server=AGEING) as running:

        async def stream() -> pb.GenerateResponse:
            call = running.stub.GenerateStream(pb.GenerateStreamRequest(request=request))
            return [event async for event in call][-1].result

        started = time.monotonic()
        streamed, answer = await asyncio.gather(stream(), running.stub.Generate(request))
        assert time.monotonic() - started > 4 * AGE_SECONDS
        assert list(streamed.hypotheses) == list(answer.hypotheses) != []
