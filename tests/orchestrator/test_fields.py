from __future__ import annotations

import re
from pathlib import Path

import generator_svc
from orchestrator.downstream.fields import for_caller
from ragserve.errors import InvalidInputError
from ragserve.v1 import orchestrator_pb2

# Fields that the orchestrator fills in itself, or has checked before.
OWN = {"open.mode", "open.truncation", "open.control", "open.max_context_tokens", "widen.candidates"}


def test_every_field_of_an_open_and_a_step_has_a_name_that_the_caller_knows() -> None:
    sources = [path.read_text() for path in Path(generator_svc.__file__).parent.glob("*.py")]
    named = {field for text in sources for field in re.findall(r'"((?:open|advance|widen)\.\w+)"', text)}
    assert {"open.max_hypotheses", "open.candidates", "advance.hypotheses", "widen.hypotheses"} <= named
    request = orchestrator_pb2.GenerateRequest.DESCRIPTOR.fields_by_name
    options = orchestrator_pb2.GenerationOptions.DESCRIPTOR.fields_by_name
    for field in sorted(named - OWN):
        known = for_caller(InvalidInputError(field, "too much")).field
        assert known in request or known.removeprefix("options.") in options or known == "server.max_message_bytes", (
            field
        )
