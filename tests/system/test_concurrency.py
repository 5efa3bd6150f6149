"""A request alone gives what it gives among others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ragserve.v1 import orchestrator_pb2
from tests.system.cases import FAMILIES, sequence_cases, token_cases
from tests.system.harness import SEQUENCE, TOKEN, Stack, request_of

CONCURRENT = 16


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_and_among_sixteen(family: str, stack: Stack) -> None:
    requests = [
        *(request_of(case, TOKEN, token_posteriors=True) for case in token_cases(60) if case.family == family),
        *(request_of(case, SEQUENCE, token_posteriors=True) for case in sequence_cases(40) if case.family == family),
    ][::3][:CONCURRENT]
    assert len(requests) == CONCURRENT
    alone = [stack.generate(family, request) for request in requests]
    with ThreadPoolExecutor(CONCURRENT) as pool:
        together = list(pool.map(lambda request: stack.generate(family, request), requests))
    for single, shared in zip(alone, together, strict=True):
        assert_same(single, shared)


def assert_same(one: orchestrator_pb2.GenerateResponse, other: orchestrator_pb2.GenerateResponse) -> None:
    assert [list(h.token_ids) for h in one.hypotheses] == [list(h.token_ids) for h in other.hypotheses]
    assert [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses]
    assert [h.log_prob for h in one.hypotheses] == pytest.approx([h.log_prob for h in other.hypotheses], abs=1e-5)
    assert [p.passage.id for p in one.passages] == [p.passage.id for p in other.passages]
    assert [p.posterior for p in one.passages] == pytest.approx([p.posterior for p in other.passages], abs=1e-5)
    for first, second in zip(one.token_posteriors, other.token_posteriors, strict=True):
        assert list(first.posterior) == pytest.approx(list(second.posterior), abs=1e-5)
