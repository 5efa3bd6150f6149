"""Checks commands before any work is done; errors name the field as the protocol spells it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from generator_svc.commands import (
    AdvanceCommand,
    OpenCommand,
    RenderCommand,
    ScoreCommand,
    StepControl,
    WidenCommand,
)
from ragserve.arguments import check_range
from ragserve.errors import InvalidInputError
from ragserve.passage_rules import CONTEXT_LIMIT, MIN_CONTEXT_TOKENS, PassageLimits, size_problem


@dataclass(frozen=True)
class Limits:
    """What one session may ask for."""

    vocab_size: int
    max_context_tokens: int
    max_target_tokens: int  # decoder start token included
    max_documents: int
    max_hypotheses: int
    max_targets: int
    max_question_characters: int
    max_passage_bytes: int
    max_drafts: int  # beyond it nothing is guessed; asking for more is no error
    max_answer_bytes: int  # of the arrays of a step's answer


def check_open(command: OpenCommand, limits: Limits) -> None:
    """Raises InvalidInputError for an Open that cannot be done."""
    if not command.question.strip():
        raise InvalidInputError("open.question", "the question is empty")
    _at_most(
        "open.question", len(command.question), limits.max_question_characters, "characters", "max_question_characters"
    )
    if command.max_context_tokens:
        most, asked = limits.max_context_tokens, command.max_context_tokens
        check_range("open.max_context_tokens", asked, MIN_CONTEXT_TOKENS, most, why=CONTEXT_LIMIT)
    _check_documents(command, limits)
    _check_prefixes(command, limits)
    _check_control("open.control", command.control, limits)
    _at_most("open.max_hypotheses", command.max_hypotheses, limits.max_hypotheses, "hypotheses", "max_hypotheses")
    most = limits.max_target_tokens - 1
    _at_most("open.max_new_tokens", command.max_new_tokens, most, "tokens", "max_target_tokens less the start token")
    if command.encode_only:
        return
    shared, n_docs = command.mode == "token", len(command.documents)
    controls = [prefix.control for prefix in command.prefixes] or [command.control] * (1 if shared else n_docs)
    check_range("open.candidates", command.candidates, 1)
    _check_answer("open.candidates", command.candidates, controls, n_docs if shared else 1, limits)


def check_advance(command: AdvanceCommand, lengths: Sequence[int], n_docs: int, limits: Limits) -> None:
    """Raises InvalidInputError; `lengths` are the tokens of the present hypotheses, start token included.

    `n_docs` is the number of documents that a hypothesis has a row for.
    """
    name = "advance.hypotheses"
    if not command.hypotheses:
        raise InvalidInputError(name, "at least one hypothesis is needed")
    _at_most(name, len(command.hypotheses), limits.max_hypotheses, "hypotheses", "max_hypotheses")
    for i, hypothesis in enumerate(command.hypotheses):
        _check_index(f"{name}[{i}].parent", hypothesis.parent, len(lengths), "hypotheses in the previous step")
        _check_token(f"{name}[{i}].token", hypothesis.token, limits)
        if lengths[hypothesis.parent] >= limits.max_target_tokens:
            raise InvalidInputError(
                f"{name}[{i}].token", f"the sequence already has {limits.max_target_tokens} tokens, the most it may"
            )
        _check_control(f"{name}[{i}].control", hypothesis.control, limits)
    check_range("advance.candidates", command.candidates, 1)
    controls = [hypothesis.control for hypothesis in command.hypotheses]
    _check_answer("advance.candidates", command.candidates, controls, n_docs, limits)


def check_widen(command: WidenCommand, controls: Sequence[StepControl], n_docs: int, limits: Limits) -> None:
    """Raises InvalidInputError; `controls` are those of the present hypotheses, `n_docs` as for an Advance."""
    if not command.hypotheses:
        raise InvalidInputError("widen.hypotheses", "at least one hypothesis is needed")
    seen = set[int]()
    for i, index in enumerate(command.hypotheses):
        _check_index(f"widen.hypotheses[{i}]", index, len(controls), "hypotheses in this step")
        if index in seen:
            raise InvalidInputError(f"widen.hypotheses[{i}]", f"index {index} is named twice")
        seen.add(index)
    check_range("widen.candidates", command.candidates, 1)
    wanted = [controls[index] for index in command.hypotheses]
    _check_answer("widen.hypotheses", command.candidates, wanted, n_docs, limits)


def check_score(command: ScoreCommand, limits: Limits) -> None:
    """Raises InvalidInputError; text targets are checked again once tokenized."""
    if not command.targets:
        raise InvalidInputError("score.targets", "at least one target is needed")
    _at_most("score.targets", len(command.targets), limits.max_targets, "targets", "max_targets")
    for i, target in enumerate(command.targets):
        if isinstance(target, str):
            _at_most(
                f"score.targets[{i}].text",
                len(target),
                limits.max_question_characters,
                "characters",
                "max_question_characters",
            )
        else:
            check_target(f"score.targets[{i}].tokens", target, limits)


def check_scores(targets: Sequence[Sequence[int]], n_docs: int, limits: Limits) -> None:
    """Raises InvalidInputError for targets, all tokenized, whose scores are too many to be sent."""
    size = 4 * sum(map(len, targets)) * (n_docs + 2)  # an id takes three bytes at most, and a target a few
    if size > limits.max_answer_bytes:
        raise _too_large("score.targets", size, limits, "targets")


def check_target(name: str, token_ids: Sequence[int], limits: Limits) -> None:
    """Raises InvalidInputError for a target that is empty, too long or not of this vocabulary."""
    if not token_ids:
        raise InvalidInputError(name, "the target is empty")
    _at_most(name, len(token_ids), limits.max_target_tokens, "tokens", "max_target_tokens")
    for i, token in enumerate(token_ids):
        _check_token(f"{name}.token_ids[{i}]", token, limits)


def check_render(command: RenderCommand, limits: Limits) -> None:
    """Raises InvalidInputError for sequences that are too many, too long or not of this vocabulary."""
    _at_most("render.sequences", len(command.sequences), limits.max_hypotheses, "sequences", "max_hypotheses")
    for i, sequence in enumerate(command.sequences):
        name = f"render.sequences[{i}]"
        _at_most(f"{name}.token_ids", len(sequence), limits.max_target_tokens, "tokens", "max_target_tokens")
        for j, token in enumerate(sequence):
            _check_token(f"{name}.token_ids[{j}]", token, limits)


def _check_documents(command: OpenCommand, limits: Limits) -> None:
    if not command.documents:
        raise InvalidInputError("open.documents", "at least one document is needed")
    _at_most("open.documents", len(command.documents), limits.max_documents, "documents", "max_documents")
    for i, document in enumerate(command.documents):
        if not math.isfinite(document.log_prior):
            raise InvalidInputError(f"open.documents[{i}].log_prior", f"{document.log_prior} is not a finite number")
        problem = size_problem("", document.title, document.text, "", PassageLimits(limits.max_passage_bytes))
        if problem is not None:
            field = f"open.documents[{i}].{problem.column}"
            raise InvalidInputError(field, f"{field} {problem.reason}")


def _check_prefixes(command: OpenCommand, limits: Limits) -> None:
    implied = len(command.documents) if command.mode == "sequence" else 1
    count = len(command.prefixes) or implied
    _at_most("open.prefixes", count, limits.max_hypotheses, "hypotheses", "max_hypotheses")
    for i, prefix in enumerate(command.prefixes):
        name = f"open.prefixes[{i}]"
        if command.mode == "sequence":
            _check_index(f"{name}.document", prefix.document, len(command.documents), "documents")
        length, limit = len(prefix.token_ids), limits.max_target_tokens - 1
        _at_most(f"{name}.token_ids", length, limit, "tokens", "max_target_tokens less the start token")
        for j, token in enumerate(prefix.token_ids):
            _check_token(f"{name}.token_ids[{j}]", token, limits)
        _check_control(f"{name}.control", prefix.control, limits)


def _check_control(name: str, control: StepControl, limits: Limits) -> None:
    for kind, tokens in (("banned", control.banned), ("requested", control.requested)):
        _at_most(f"{name}.{kind}", len(tokens), limits.vocab_size, "tokens", "the vocabulary")
        for i, token in enumerate(tokens):
            _check_token(f"{name}.{kind}[{i}]", token, limits)


def _check_token(name: str, token: int, limits: Limits) -> None:
    if not 0 <= token < limits.vocab_size:
        raise InvalidInputError(name, f"token {token} is not in the vocabulary of {limits.vocab_size}")


def _check_index(name: str, index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise InvalidInputError(name, f"index {index} is out of range: there are {count} {what}")


def _check_answer(name: str, candidates: int, controls: Sequence[StepControl], n_docs: int, limits: Limits) -> None:
    """Before it is computed: an answer that is too large to be sent takes memory and time all the same."""
    shown = sum(min(candidates, limits.vocab_size) + len(control.requested) for control in controls)
    size = 4 * (shown * (n_docs + 1) + len(controls) * (n_docs + 1))
    if size > limits.max_answer_bytes:
        raise _too_large(name, size, limits, "hypotheses or candidates")


def most_rows(candidates: int, control: StepControl, n_docs: int, limits: Limits) -> int:
    """Hypotheses under one control whose answer can be sent."""
    each = 4 * (min(candidates, limits.vocab_size) + len(control.requested) + 1) * (n_docs + 1)
    return limits.max_answer_bytes // each


def _too_large(name: str, size: int, limits: Limits, what: str) -> InvalidInputError:
    limit = f"the limit of {limits.max_answer_bytes} (server.max_message_bytes)"
    return InvalidInputError(name, f"the answer would have {size} bytes, over {limit}: ask for fewer {what} at a time")


def _at_most(name: str, size: int, limit: int, unit: str, setting: str) -> None:
    if size > limit:
        raise InvalidInputError(name, f"{size} {unit} are over the limit of {limit} ({setting})")
