"""Protobuf messages to commands, outputs to protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from generator_svc.commands import (
    AdvanceCommand,
    Command,
    Document,
    Floats,
    Mode,
    NextHypothesis,
    OpenCommand,
    OpenOutput,
    Prefix,
    RenderCommand,
    RenderedSequence,
    Reply,
    ScoreCommand,
    StepControl,
    StepOutput,
    TargetScore,
    Truncation,
    WidenCommand,
)
from generator_svc.engine import GeneratorInfo
from ragserve.errors import InvalidInputError
from ragserve.serving.convert import add_timings, rules_to_proto
from ragserve.token_rules import TokenRules
from ragserve.v1 import common_pb2, generator_pb2

MODES: dict[common_pb2.Mode.ValueType, Mode] = {common_pb2.MODE_TOKEN: "token", common_pb2.MODE_SEQUENCE: "sequence"}
PROTO_MODES = {mode: number for number, mode in MODES.items()}
TRUNCATIONS: dict[generator_pb2.Truncation.ValueType, Truncation] = {
    generator_pb2.TRUNCATION_UNSPECIFIED: "passage",
    generator_pb2.TRUNCATION_PASSAGE: "passage",
    generator_pb2.TRUNCATION_RIGHT: "right",
}
INT32, FLOAT32 = np.dtype("<i4"), np.dtype("<f4")
# Generation parameters of the same name in Hugging Face and in the protocol.
PLAIN_DEFAULTS = (
    *("n_docs", "num_beams", "max_length", "min_length", "length_penalty", "no_repeat_ngram_size"),
    *("max_new_tokens", "min_new_tokens", "repetition_penalty"),
)


def command_from_proto(request: generator_pb2.DecodeRequest) -> Command:
    """The command in a request.

    Raises:
        InvalidInputError: it holds none, or an enum has no meaning here.
    """
    match request.WhichOneof("request"):
        case "open":
            return _open(request.open)
        case "advance":
            return _advance(request.advance)
        case "widen":
            return WidenCommand(tuple(request.widen.hypotheses), request.widen.candidates)
        case "score":
            return ScoreCommand(tuple(_target(i, target) for i, target in enumerate(request.score.targets)))
        case "render":
            return RenderCommand(tuple(tuple(sequence.token_ids) for sequence in request.render.sequences))
    raise InvalidInputError("request", "one of open, advance, widen, score and render must be set")


def reply_to_proto(reply: Reply[Any]) -> generator_pb2.DecodeResponse:
    """The response of the same kind as the output."""
    response = generator_pb2.DecodeResponse()
    add_timings(response.timings, reply.timings)
    match reply.output:
        case OpenOutput() as opened:
            response.open.context_tokens.extend(opened.context_tokens)
            response.open.truncated.extend(tokens > 0 for tokens in opened.truncated_tokens)
            response.open.truncated_tokens.extend(opened.truncated_tokens)
            response.open.document_tokens.extend(opened.document_tokens)
            response.open.question_characters = opened.question_characters
            response.open.question_unknown_characters = opened.question_unknown_characters
            response.open.unknown_tokens.extend(opened.unknown_tokens)
            if opened.step is not None:
                _put_step(response.open.step, opened.step)
        case StepOutput() as step:
            _put_step(response.step, step)
        case (TargetScore(), *_) as scores:
            response.score.scores.extend(_score(score) for score in scores)
        case rendered:
            response.render.sequences.extend(_rendered(sequence) for sequence in rendered)
    return response


def info_to_proto(info: GeneratorInfo) -> generator_pb2.GeneratorServiceGetInfoResponse:
    """The answer to GetInfo."""
    tokens, limits = info.tokens, info.limits
    return generator_pb2.GeneratorServiceGetInfoResponse(
        model_type=info.model_type,
        trained_mode=common_pb2.MODE_UNSPECIFIED if info.trained_mode is None else PROTO_MODES[info.trained_mode],
        vocab_size=limits.vocab_size,
        decoder_start_token_id=tokens.token_rules.decoder_start_token_id,
        eos_token_ids=tokens.token_rules.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        max_context_tokens=limits.max_context_tokens,
        max_target_tokens=limits.max_target_tokens,
        defaults=_defaults(info.defaults, tokens.token_rules),
        max_documents=limits.max_documents,
        max_hypotheses=limits.max_hypotheses,
        device=info.device,
        precision=info.precision,
        token_rules=rules_to_proto(tokens.token_rules),
        sequence_rules=rules_to_proto(tokens.sequence_rules),
        warnings=info.warnings,
        query_encoder=info.query_encoder,
        max_rows=info.max_rows,
    )


def _open(request: generator_pb2.OpenRequest) -> OpenCommand:
    if request.mode not in MODES:
        raise InvalidInputError("open.mode", f"open.mode is {request.mode}; it must be MODE_TOKEN or MODE_SEQUENCE")
    if request.truncation not in TRUNCATIONS:
        raise InvalidInputError("open.truncation", f"{request.truncation} is not a known truncation")
    return OpenCommand(
        question=request.question,
        documents=tuple(Document(d.title, d.text, d.log_prior) for d in request.documents),
        mode=MODES[request.mode],
        candidates=request.candidates,
        max_context_tokens=request.max_context_tokens,
        truncation=TRUNCATIONS[request.truncation],
        prefixes=tuple(Prefix(tuple(p.token_ids), p.document, _control(p.control)) for p in request.prefixes),
        control=_control(request.control),
        encode_only=request.encode_only,
        max_hypotheses=request.max_hypotheses,
        max_new_tokens=request.max_new_tokens,
        independent_hypotheses=request.independent_hypotheses,
        skip_unknown_tokens=request.skip_unknown_tokens,
    )


def _advance(request: generator_pb2.AdvanceRequest) -> AdvanceCommand:
    hypotheses = tuple(NextHypothesis(h.parent, h.token, _control(h.control)) for h in request.hypotheses)
    return AdvanceCommand(hypotheses, request.candidates, request.max_drafts)


def _control(control: generator_pb2.StepControl) -> StepControl:
    return StepControl(tuple(control.banned), tuple(control.requested))


def _target(index: int, target: generator_pb2.Target) -> tuple[int, ...] | str:
    match target.WhichOneof("target"):
        case "tokens":
            return tuple(target.tokens.token_ids)
        case "text":
            return target.text
    raise InvalidInputError(f"score.targets[{index}]", "tokens or text must be set")


def _put_step(message: generator_pb2.StepResult, step: StepOutput) -> None:
    """In place: a message that is given to another one is copied."""
    message.token_ids = step.token_ids.astype(INT32, copy=False).tobytes()
    message.log_probs = _floats(step.log_probs)
    message.requested_log_probs = b"".join(map(_floats, step.requested))
    message.allowed_log_mass = _floats(step.allowed_log_mass)
    message.candidates = step.token_ids.shape[1]
    message.hypotheses = step.token_ids.shape[0]
    message.log_normalizers = _floats(step.log_normalizers)
    message.drafted.extend(step.drafted)


def _floats(values: Floats) -> bytes:
    """Row-major, little-endian."""
    return values.astype(FLOAT32, copy=False).tobytes()


def _score(score: TargetScore) -> generator_pb2.TargetScore:
    return generator_pb2.TargetScore(token_ids=score.token_ids, log_probs=_floats(score.log_probs))


def _rendered(sequence: RenderedSequence) -> generator_pb2.RenderedSequence:
    return generator_pb2.RenderedSequence(text=sequence.text, pieces=sequence.pieces)


def _defaults(defaults: Mapping[str, Any], rules: TokenRules) -> generator_pb2.GenerationDefaults:
    message = generator_pb2.GenerationDefaults(
        bad_words=[generator_pb2.TokenSequence(token_ids=ids) for ids in defaults.get("bad_words_ids", ())],
        forced_bos_token_id=rules.forced_bos_token_id,
        forced_eos_token_id=next(iter(rules.forced_eos_token_id), None),
    )
    for name in PLAIN_DEFAULTS:
        value = defaults.get(name)
        if value is not None:
            setattr(message, name, value)
    if "early_stopping" in defaults:
        message.early_stopping = str(defaults["early_stopping"]).lower()
    return message
