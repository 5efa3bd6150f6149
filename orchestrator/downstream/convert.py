"""Between the dataclasses of the search and the messages of retriever and generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.downstream.prefixes import Prefixes
from orchestrator.pipeline import SessionSpec
from orchestrator.requests import Evidence, GenerationOptions, GeneratorInfo, Mode, Passage, Truncation
from orchestrator.search.beam import EarlyStopping
from orchestrator.search.inference import Control, Extension, Floats, Rendered, Step, TargetScore
from orchestrator.truncation import ContextLength, Reading
from ragserve.errors import InternalError, NotFoundError
from ragserve.filters import SearchOptions
from ragserve.nothing_found import FilterKeys, Names, NothingFound, explanation
from ragserve.serving.convert import nothing_found_from_proto, rules_from_proto
from ragserve.token_rules import TokenRules
from ragserve.v1 import common_pb2, retriever_pb2
from ragserve.v1 import generator_pb2 as pb

MODES = {Mode.TOKEN: common_pb2.MODE_TOKEN, Mode.SEQUENCE: common_pb2.MODE_SEQUENCE}
TRUNCATIONS = {Truncation.PASSAGE: pb.TRUNCATION_PASSAGE, Truncation.RIGHT: pb.TRUNCATION_RIGHT}
# As Hugging Face's generation_config.json has it.
EARLY_STOPPINGS = {
    "false": EarlyStopping.HEURISTIC,
    "true": EarlyStopping.FIRST,
    "never": EarlyStopping.NEVER,
}
NAMES = Names("question", "search.filter", "search.kind")
INT32, FLOAT32 = np.dtype("<i4"), np.dtype("<f4")
DEFAULT_OPTIONS = (
    *("num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens"),
    *("length_penalty", "no_repeat_ngram_size", "repetition_penalty"),
)


def evidence_from_proto(response: retriever_pb2.RetrieverServiceRetrieveResponse, search: SearchOptions) -> Evidence:
    """The passages of the one query that was asked.

    Raises:
        NotFoundError: there are none; the message says why.
    """
    (result,) = response.results
    if not result.passages:
        # A retriever of an older version does not say why.
        likely = NothingFound.FILTER if search.filter else NothingFound.WORDS
        reason = nothing_found_from_proto(result.nothing_found) or likely
        keys = FilterKeys(
            *map(tuple, (result.unknown_keys, result.metadata_keys, result.nested_keys, result.number_keys))
        )
        message = explanation(reason, response.knowledge_version, NAMES.filter, NAMES.kind, keys)
        raise NotFoundError(message, field=NAMES.blamed(reason))
    return Evidence(
        passages=tuple(
            Passage(p.passage.id, p.passage.title, p.passage.text, p.passage.metadata_json) for p in result.passages
        ),
        scores=tuple(p.score for p in result.passages),
        log_prior=np.array([p.log_prior for p in result.passages], np.float64),
        knowledge_version=response.knowledge_version,
        decoded_question=result.decoded_query,
        warnings=tuple(warning.replace("queries[0].text", "The question") for warning in response.warnings),
        query_encoder=response.query_encoder,
    )


def reading_from_proto(opened: pb.OpenResult) -> Reading:
    """What the generator reads of documents and question. Replicas of an older version do not say what they cut."""
    cut = opened.truncated_tokens or [0] * len(opened.context_tokens)
    whole = opened.document_tokens or [0] * len(opened.context_tokens)
    unknown = opened.unknown_tokens or [""] * len(opened.context_tokens)
    lengths = tuple(ContextLength(*one) for one in zip(opened.context_tokens, cut, whole, unknown, strict=True))
    return Reading(lengths, opened.question_characters, opened.question_unknown_characters)


def info_from_proto(info: pb.GeneratorServiceGetInfoResponse) -> GeneratorInfo:
    """What the generator has loaded."""
    defaults = info.defaults
    token_rules = rules_from_proto(info.token_rules) if info.HasField("token_rules") else _older_rules(info)
    sequence = rules_from_proto(info.sequence_rules) if info.HasField("sequence_rules") else token_rules
    modes = {value: mode for mode, value in MODES.items()}
    return GeneratorInfo(
        trained_mode=modes.get(info.trained_mode),
        vocab_size=info.vocab_size,
        token_rules=token_rules,
        sequence_rules=sequence,
        bos_token_id=info.bos_token_id if info.HasField("bos_token_id") else None,
        max_target_tokens=info.max_target_tokens,
        max_context_tokens=info.max_context_tokens,
        max_documents=info.max_documents,
        max_hypotheses=info.max_hypotheses,
        defaults=_defaults_from_proto(defaults),
        default_n_docs=defaults.n_docs if defaults.HasField("n_docs") else None,
        warnings=tuple(info.warnings),
        query_encoder=info.query_encoder,
        max_rows=info.max_rows,
    )


def _older_rules(info: pb.GeneratorServiceGetInfoResponse) -> TokenRules:
    """From a generator of an earlier version, which sends the rules one by one."""
    defaults = info.defaults
    return TokenRules(
        decoder_start_token_id=info.decoder_start_token_id,
        eos_token_id=tuple(info.eos_token_ids),
        forced_bos_token_id=defaults.forced_bos_token_id if defaults.HasField("forced_bos_token_id") else None,
        forced_eos_token_id=(defaults.forced_eos_token_id,) if defaults.HasField("forced_eos_token_id") else (),
    )


def _defaults_from_proto(defaults: pb.GenerationDefaults) -> GenerationOptions:
    numbers = {field.name: value for field, value in defaults.ListFields() if field.name in DEFAULT_OPTIONS}
    return GenerationOptions(
        early_stopping=EARLY_STOPPINGS.get(defaults.early_stopping.lower()),
        bad_words=tuple(tuple(words.token_ids) for words in defaults.bad_words) or None,
        **numbers,
    )


def open_to_proto(spec: SessionSpec, prefixes: Prefixes | None) -> pb.DecodeRequest:
    """The first request of a session: at `prefixes`, or, when None, without a step."""
    evidence = spec.evidence
    request = pb.OpenRequest(
        question=spec.question,
        documents=[
            pb.Document(title=passage.title, text=passage.text, log_prior=prior)
            for passage, prior in zip(evidence.passages, evidence.log_prior.tolist(), strict=True)
        ],
        mode=MODES[spec.mode],
        max_context_tokens=spec.context.max_tokens,
        truncation=TRUNCATIONS[spec.context.truncation],
        encode_only=prefixes is None,
        skip_unknown_tokens=spec.retrieved,
    )
    if prefixes is not None:
        request.max_hypotheses, request.max_new_tokens = spec.max_hypotheses, spec.max_new_tokens
        request.independent_hypotheses = spec.independent_hypotheses
        request.candidates = prefixes.candidates
        if any(one.tokens for one in prefixes.hypotheses):
            request.prefixes.extend(
                pb.Prefix(token_ids=one.tokens, document=one.document, control=_control(one.control))
                for one in prefixes.hypotheses
            )
        else:
            request.control.CopyFrom(_control(prefixes.hypotheses[0].control))
    return pb.DecodeRequest(open=request)


def advance_to_proto(
    extensions: Sequence[Extension], candidates: int, *, position: int = 0, max_drafts: int = 0
) -> pb.DecodeRequest:
    """The next step; `position` is the row of the generator's step that is row 0 of the search's."""
    hypotheses = [
        pb.NextHypothesis(parent=position + one.parent, token=one.token, control=_control(one.control))
        for one in extensions
    ]
    advance = pb.AdvanceRequest(hypotheses=hypotheses, candidates=candidates, max_drafts=max_drafts)
    return pb.DecodeRequest(advance=advance)


def widen_to_proto(rows: Sequence[int], candidates: int) -> pb.DecodeRequest:
    """More candidates."""
    return pb.DecodeRequest(widen=pb.WidenRequest(hypotheses=rows, candidates=candidates))


def score_to_proto(targets: Sequence[Sequence[int] | str]) -> pb.DecodeRequest:
    """Targets as tokens, or as text."""
    messages = [
        pb.Target(text=one) if isinstance(one, str) else pb.Target(tokens=pb.TokenSequence(token_ids=one))
        for one in targets
    ]
    return pb.DecodeRequest(score=pb.ScoreRequest(targets=messages))


def render_to_proto(sequences: Sequence[Sequence[int]]) -> pb.DecodeRequest:
    """Sequences to be written as text."""
    return pb.DecodeRequest(render=pb.RenderRequest(sequences=[pb.TokenSequence(token_ids=one) for one in sequences]))


def _control(control: Control) -> pb.StepControl:
    return pb.StepControl(banned=control.banned, requested=control.requested)


def step_from_proto(step: pb.StepResult, n_docs: int, requested: Sequence[int]) -> Step:
    """A step of `len(requested)` hypotheses, the i-th with `requested[i]` requested tokens."""
    rows, width = len(requested), step.candidates
    return Step(
        token_ids=np.frombuffer(_sized(step.token_ids, rows * width), INT32).reshape(rows, width).astype(np.int64),
        log_probs=_floats(step.log_probs, rows * n_docs * width).reshape(rows, n_docs, width),
        requested_log_probs=_requested(step.requested_log_probs, n_docs, requested),
        allowed_log_mass=_floats(step.allowed_log_mass, rows),
        log_normalizers=_floats(step.log_normalizers, rows * n_docs).reshape(rows, n_docs),
    )


def _requested(data: bytes, n_docs: int, counts: Sequence[int]) -> tuple[Floats, ...]:
    """For each hypothesis `[n_docs, count]`."""
    shown = _floats(data, n_docs * sum(counts))
    if not shown.size:
        return (shown.reshape(n_docs, 0),) * len(counts)
    ends = np.cumsum([n_docs * count for count in counts]).tolist()
    return tuple(
        shown[end - n_docs * count : end].reshape(n_docs, count) for end, count in zip(ends, counts, strict=True)
    )


def scores_from_proto(result: pb.ScoreResult, n_docs: int) -> list[TargetScore]:
    """Scored targets."""
    return [
        TargetScore(
            tuple(one.token_ids),
            _floats(one.log_probs, n_docs * len(one.token_ids)).reshape(n_docs, len(one.token_ids)),
        )
        for one in result.scores
    ]


def rendered_from_proto(result: pb.RenderResult) -> list[Rendered]:
    """Text of sequences."""
    return [Rendered(one.text, tuple(one.pieces)) for one in result.sequences]


def _floats(data: bytes, count: int) -> Floats:
    return np.frombuffer(_sized(data, count), FLOAT32).astype(np.float32, copy=False)


def _sized(data: bytes, count: int) -> bytes:
    """The bytes of `count` values of 4 bytes. Raises InternalError for another number."""
    if len(data) != 4 * count:
        raise InternalError(f"the generator sent an array of {len(data)} bytes where {4 * count} were expected")
    return data
