"""From protobuf responses to the client's results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ragserve.errors import InternalError
from ragserve.results import (
    Answer,
    AnswerScore,
    Hypothesis,
    Passage,
    PassagesEvent,
    Retrieval,
    TokenPosterior,
    TokensEvent,
)
from ragserve.v1 import common_pb2, orchestrator_pb2

Event = PassagesEvent | TokensEvent | Answer


def answer(response: orchestrator_pb2.GenerateResponse) -> Answer:
    """The result of Generate. Raises InternalError when the service sent no hypothesis."""
    if not response.hypotheses:
        raise InternalError("the service sent an answer without hypotheses")
    return Answer(
        hypotheses=tuple(Hypothesis(h.text, h.log_prob, h.score, tuple(h.token_ids)) for h in response.hypotheses),
        passages=passages(response.passages),
        token_posteriors=tuple(
            TokenPosterior(token.token_id, token.piece, tuple(token.posterior)) for token in response.token_posteriors
        ),
        knowledge_version=response.knowledge_version,
        timings_seconds=timings_seconds(response.timings),
        warnings=tuple(response.warnings),
    )


def event(response: orchestrator_pb2.GenerateStreamResponse) -> Event:
    """One event of GenerateStream. Raises InternalError for an event without content."""
    if response.HasField("passages"):
        return PassagesEvent(passages(response.passages.passages, answered=False), response.passages.knowledge_version)
    if response.HasField("tokens"):
        return TokensEvent(tuple(response.tokens.token_ids), response.tokens.text)
    if response.HasField("result"):
        return answer(response.result)
    raise InternalError("the service sent an event without content")


def retrieval(response: orchestrator_pb2.RagServiceRetrieveResponse) -> Retrieval:
    """The result of Retrieve."""
    return Retrieval(
        passages(response.passages, answered=False),
        response.knowledge_version,
        timings_seconds(response.timings),
        tuple(response.warnings),
    )


def answer_score(response: orchestrator_pb2.RagServiceScoreResponse) -> AnswerScore:
    """The result of Score."""
    return AnswerScore(
        log_prob=response.log_prob,
        token_ids=tuple(response.token_ids),
        token_log_probs=tuple(response.token_log_probs),
        pieces=tuple(response.pieces),
        passages=passages(response.passages),
        knowledge_version=response.knowledge_version,
        timings_seconds=timings_seconds(response.timings),
        warnings=tuple(response.warnings),
    )


def passages(messages: Iterable[orchestrator_pb2.AnswerPassage], *, answered: bool = True) -> tuple[Passage, ...]:
    """The passages of a response, in their order. Without an answer they have no posterior."""
    return tuple(
        Passage(
            id=message.passage.id,
            title=message.passage.title,
            text=message.passage.text,
            score=message.score,
            prior=message.prior,
            posterior=message.posterior if answered else None,
            metadata=metadata(message.passage.metadata_json),
            truncated_tokens=message.truncated_tokens,
        )
        for message in messages
    )


def timings_seconds(messages: Iterable[common_pb2.StageTiming]) -> dict[str, float]:
    """Seconds by stage."""
    return {message.stage: message.seconds for message in messages}


def metadata(text: str) -> Mapping[str, Any]:
    """The metadata object; empty where there is none or it is no JSON object."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
