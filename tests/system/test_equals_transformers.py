"""The three real services against `transformers`, token for token. The generators guess tokens ahead."""

from __future__ import annotations

import math
import random

import pytest

from ragserve.v1 import orchestrator_pb2
from tests import tiny
from tests.system.cases import FAMILIES, Case, sequence_cases, token_cases
from tests.system.harness import SEQUENCE, TOKEN, Stack, documents_of, options_of, read_docs, request_of, scrape
from tests.system.oracle import Doc, Oracle, Search

TOKEN_CASES = token_cases(220)
SEQUENCE_CASES = sequence_cases(110)
SHORT = 0.25  # of the cases are in every run, all of them in the long one
TOLERANCE = 1e-4  # of log-probabilities
UNSEEN = -100.0  # log prior of a document that cannot change a marginal, and can be guessed from
GREEDY = Search(num_beams=1, max_length=40, min_length=40)
QUESTIONS = 6


def parametrized(cases: list[Case]) -> list[object]:
    short = round(SHORT * len(cases))
    return [*cases[:short], *(pytest.param(case, marks=pytest.mark.long) for case in cases[short:])]


def close(value: float) -> object:
    return pytest.approx(value, abs=TOLERANCE, rel=1e-5)


@pytest.mark.parametrize("case", parametrized(TOKEN_CASES), ids=str)
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


@pytest.mark.parametrize("case", parametrized(SEQUENCE_CASES), ids=str)
def test_rag_sequence_thorough(case: Case, stack: Stack, oracles: dict[str, Oracle]) -> None:
    response = stack.generate(case.family, request_of(case, SEQUENCE))
    docs = read_docs(case, response)
    oracle = oracles[case.family]
    expected = oracle.generate_sequence(oracle.contexts(case.question, docs), case.search)
    assert tuple(response.hypotheses[0].token_ids) == expected.token_ids
    assert response.hypotheses[0].log_prob == close(expected.log_prob)


@pytest.mark.parametrize("case", parametrized(TOKEN_CASES[::7]), ids=str)
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


def greedy_request(question: str, docs: list[Doc]) -> orchestrator_pb2.GenerateRequest:
    return orchestrator_pb2.GenerateRequest(
        question=question, documents=documents_of(docs), options=options_of(GREEDY, TOKEN)
    )


def accepted(stack: Stack, family: str) -> tuple[float, float]:
    samples = scrape(stack.orchestrators[family])
    return samples["ragserve_drafted_tokens_total"], samples["ragserve_accepted_tokens_total"]


@pytest.mark.parametrize("family", FAMILIES)
def test_right_guesses_give_the_tokens_of_transformers(family: str, stack: Stack, oracles: dict[str, Oracle]) -> None:
    rng = random.Random(family)
    before = accepted(stack, family)
    for _ in range(QUESTIONS):
        question = tiny.tiny_text(6, rng)
        docs = [Doc(tiny.tiny_text(2, rng), tiny.tiny_text(20, rng), -float(i)) for i in range(3)]
        plain = stack.generate(family, greedy_request(question, docs)).hypotheses[0]
        answer = Doc("answer", plain.text, UNSEEN)
        guessed = stack.generate(family, greedy_request(question, [*docs, answer])).hypotheses[0]
        assert guessed.token_ids == plain.token_ids
        assert guessed.log_prob == pytest.approx(plain.log_prob, abs=1e-4)
        oracle = oracles[family]
        expected = oracle.generate_token(oracle.contexts(question, docs), GREEDY)
        assert tuple(guessed.token_ids) == expected.token_ids
    drafted, right = (after - first for after, first in zip(accepted(stack, family), before, strict=True))
    assert drafted > right > QUESTIONS
