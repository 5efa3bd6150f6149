"""Between protobuf messages and the dataclasses of the layers below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from orchestrator.requests import (
    Answer,
    ContextOptions,
    Decoding,
    Document,
    Event,
    Evidence,
    GenerateAsk,
    GenerationOptions,
    Mode,
    QuestionForm,
    Retrieved,
    SamplingOptions,
    ScoreAsk,
    ScoredAnswer,
    Sources,
    TokensFinal,
    Truncation,
)
from orchestrator.search.beam import EarlyStopping
from ragserve.errors import InvalidInputError
from ragserve.serving.convert import search_from_proto, timings_to_proto
from ragserve.v1 import common_pb2, generator_pb2
from ragserve.v1 import orchestrator_pb2 as pb

MODES = {common_pb2.MODE_TOKEN: Mode.TOKEN, common_pb2.MODE_SEQUENCE: Mode.SEQUENCE}
DECODINGS = {pb.DECODING_THOROUGH: Decoding.THOROUGH, pb.DECODING_FAST: Decoding.FAST}
EARLY_STOPPINGS = {
    pb.EARLY_STOPPING_HEURISTIC: EarlyStopping.HEURISTIC,
    pb.EARLY_STOPPING_FIRST: EarlyStopping.FIRST,
    pb.EARLY_STOPPING_NEVER: EarlyStopping.NEVER,
}
QUESTION_FORMS = {pb.QUESTION_FORM_RAW: QuestionForm.RAW, pb.QUESTION_FORM_DECODED: QuestionForm.DECODED}
TRUNCATIONS = {
    generator_pb2.TRUNCATION_PASSAGE: Truncation.PASSAGE,
    generator_pb2.TRUNCATION_RIGHT: Truncation.RIGHT,
}

OPTIONAL_OPTIONS = (
    *("num_beams", "num_return_sequences", "max_length", "min_length", "max_new_tokens", "min_new_tokens"),
    *("length_penalty", "no_repeat_ngram_size", "repetition_penalty"),
)

E = TypeVar("E", bound=StrEnum)


def generate_from_proto(request: pb.GenerateRequest) -> GenerateAsk:
    """A request for an answer. Raises InvalidInputError for enum values that are not known here."""
    options = request.options
    return GenerateAsk(
        sources=sources_from_proto(request),
        options=_options(options),
        context=_context(options, "options."),
        token_posteriors=request.token_posteriors,
    )


def score_from_proto(request: pb.RagServiceScoreRequest) -> ScoreAsk:
    """A request for the probability of an answer."""
    return ScoreAsk(
        sources=sources_from_proto(request),
        answer=request.answer,
        mode=_chosen("mode", MODES, request.mode),
        context=_context(request, ""),
    )


def sources_from_proto(
    request: pb.GenerateRequest | pb.RagServiceScoreRequest | pb.RagServiceRetrieveRequest,
) -> Sources:
    """Question and documents, or how to retrieve them."""
    given: Iterable[generator_pb2.Document] = getattr(request, "documents", ())
    return Sources(
        question=request.question,
        n_docs=request.n_docs if request.HasField("n_docs") else None,
        knowledge_version=request.knowledge_version,
        search=search_from_proto(request.search),
        documents=tuple(Document(one.title, one.text, one.log_prior) for one in given),
    )


def _options(options: pb.GenerationOptions) -> GenerationOptions:
    numbers = {field.name: value for field, value in options.ListFields() if field.name in OPTIONAL_OPTIONS}
    bad_words = tuple(tuple(words.token_ids) for words in options.bad_words)
    if bad_words and not options.bad_words_set:
        raise InvalidInputError(
            "options.bad_words_set",
            "options.bad_words_set is false; it must be true, so that bad_words replaces the checkpoint's list",
        )
    return GenerationOptions(
        mode=_chosen("options.mode", MODES, options.mode),
        decoding=_chosen("options.decoding", DECODINGS, options.decoding),
        early_stopping=_chosen("options.early_stopping", EARLY_STOPPINGS, options.early_stopping),
        bad_words=bad_words if options.bad_words_set else None,
        sampling=_sampling(options.sampling) if options.HasField("sampling") else None,
        **numbers,
    )


def _sampling(sampling: pb.Sampling) -> SamplingOptions:
    return SamplingOptions(**{field.name: value for field, value in sampling.ListFields()})


def _context(message: pb.GenerationOptions | pb.RagServiceScoreRequest, prefix: str) -> ContextOptions:
    form = _chosen(f"{prefix}question_form", QUESTION_FORMS, message.question_form)
    truncation = _chosen(f"{prefix}truncation", TRUNCATIONS, message.truncation)
    return ContextOptions(form or QuestionForm.RAW, truncation or Truncation.PASSAGE, message.max_context_tokens)


def _chosen(field: str, known: Mapping[Any, E], value: int) -> E | None:
    """The value of an enum; None for 0, which is not said."""
    if value and value not in known:
        names = ", ".join(f"{number} ({one.value})" for number, one in known.items())
        raise InvalidInputError(field, f"{field} is {value}; it must be one of {names}, or 0 for the default")
    return known.get(value)


def answer_to_proto(answer: Answer) -> pb.GenerateResponse:
    """An answer with its evidence."""
    return pb.GenerateResponse(
        hypotheses=[
            pb.Hypothesis(text=one.text, log_prob=one.log_prob, score=one.score, token_ids=one.token_ids)
            for one in answer.hypotheses
        ],
        passages=passages_to_proto(answer.evidence),
        token_posteriors=[
            pb.TokenPosterior(token_id=one.token_id, piece=one.piece, posterior=one.posterior.astype(np.float32))
            for one in answer.token_posteriors
        ],
        knowledge_version=answer.evidence.knowledge_version,
        timings=timings_to_proto(answer.timings),
        warnings=answer.warnings,
    )


def event_to_proto(event: Event) -> pb.GenerateStreamResponse:
    """One event of a stream."""
    if isinstance(event, Answer):
        return pb.GenerateStreamResponse(result=answer_to_proto(event))
    if isinstance(event, TokensFinal):
        return pb.GenerateStreamResponse(tokens=pb.TokensEvent(token_ids=event.token_ids, text=event.text))
    passages = pb.PassagesEvent(passages=passages_to_proto(event), knowledge_version=event.knowledge_version)
    return pb.GenerateStreamResponse(passages=passages)


def score_to_proto(scored: ScoredAnswer) -> pb.RagServiceScoreResponse:
    """The probability of an answer."""
    return pb.RagServiceScoreResponse(
        log_prob=scored.log_prob,
        token_ids=scored.token_ids,
        token_log_probs=scored.token_log_probs,
        pieces=scored.pieces,
        passages=passages_to_proto(scored.evidence),
        knowledge_version=scored.evidence.knowledge_version,
        timings=timings_to_proto(scored.timings),
        warnings=scored.warnings,
    )


def retrieved_to_proto(retrieved: Retrieved) -> pb.RagServiceRetrieveResponse:
    """The passages of a question."""
    return pb.RagServiceRetrieveResponse(
        passages=passages_to_proto(retrieved.evidence),
        knowledge_version=retrieved.evidence.knowledge_version,
        timings=timings_to_proto(retrieved.timings),
        warnings=retrieved.evidence.warnings,
    )


def passages_to_proto(evidence: Evidence) -> Sequence[pb.AnswerPassage]:
    """Passages with prior and posterior; the posterior is 0 as long as there is none."""
    prior = np.exp(evidence.log_prior)
    posterior = np.zeros_like(prior) if evidence.posterior is None else evidence.posterior
    truncated = evidence.truncated_tokens or (0,) * evidence.n_docs
    return [
        pb.AnswerPassage(
            passage=common_pb2.Passage(id=one.id, title=one.title, text=one.text, metadata_json=one.metadata_json),
            score=score,
            prior=float(p),
            posterior=float(q),
            truncated_tokens=cut,
        )
        for one, score, p, q, cut in zip(evidence.passages, evidence.scores, prior, posterior, truncated, strict=True)
    ]
