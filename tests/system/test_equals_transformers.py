"""The three real services against `transformers`, token for token."""

from __future__ import annotations

import math

import pytest

from ragserve.v1 import orchestrator_pb2
from tests.system.cases import Case, sequence_cases, token_cases
from tests.system.harness import SEQUENCE, TOKEN, Stack, documents_of, read_docs, request_of
from tests.system.oracle import Oracle

TOKEN_CASES = token_cases(220)
SEQUENCE_CASES = sequence_cases(110)
TOLERANCE = 1e-4  # of log-probabilities


def close(value: float) -> object:
    return pytest.approx(value, abs=TOLERANCE, rel=1e-5)


@pytest.mark.parametrize("case", TOKEN_CASES, ids=str)
def test_rag_token(case: Case, stack: Stack, oracles: dict[str, Oracle]) -> None:
    response = stack.generate(case.family, request_of(case, TOKEN))
    docs = read_docs(case, response)
    oracle = oracles[case.family]
    expected = oracle.generate_token(oracle.contexts(case.question, docs), case.search)
    best = response.hypotheses[0]
    assert tuple(best.token_ids) == expected.token_ids
    assert best.score == close(expected.score)
    assert best.log_prob == close(expected.log_prob)
    assert len(docs) == case.n_docs


@pytest.mark.parametrize("case", SEQUENCE_CASES, ids=str)
def test_rag_sequence_thorough(case: Case, stack: Stack, oracles: dict[str, Oracle]) -> None:
    response = stack.generate(case.family, request_of(case, SEQUENCE))
    docs = read_docs(case, response)
    oracle = oracles[case.family]
    expected = oracle.generate_sequence(oracle.contexts(case.question, docs), case.search)
    assert tuple(response.hypotheses[0].token_ids) == expected.token_ids
    assert response.hypotheses[0].log_prob == close(expected.log_prob)


@pytest.mark.parametrize("case", TOKEN_CASES[::7], ids=str)
def test_score_is_the_negative_log_likelihood(case: Case, stack: Stack, oracles: dict[str, Oracle]) -> None:
    oracle, answer = oracles[case.family], "north Castle of the river"
    for mode, log_prob in ((TOKEN, oracle.log_prob_token), (SEQUENCE, oracle.log_prob_sequence)):
        request = orchestrator_pb2.RagServiceScoreRequest(
            question=case.question,
            answer=answer,
            n_docs=None if case.docs else case.n_docs,
            documents=documents_of(case.docs),
            mode=mode,
        )
        response = stack.stubs[case.family].Score(request, timeout=60)
        ids = oracle.tokenizer(answer)["input_ids"]
        assert list(response.token_ids) == ids
        expected = log_prob(oracle.contexts(case.question, read_docs(case, response)), ids)
        assert response.log_prob == close(expected)
        assert math.fsum(response.token_log_probs) == close(expected)


def test_the_cases_cover_what_they_should() -> None:
    searches = [case.search for case in TOKEN_CASES]
    assert len(TOKEN_CASES) >= 200
    assert len(SEQUENCE_CASES) >= 100
    assert {search.num_beams for search in searches} == {1, 2, 3, 4}
    assert {search.early_stopping for search in searches} == {False, True, "never"}
    assert len({search.length_penalty for search in searches}) >= 3
    assert {case.n_docs for case in TOKEN_CASES} == set(range(1, 9))
    assert sum(not case.docs for case in TOKEN_CASES) > len(TOKEN_CASES) / 2
