"""Builds the generator's input from a passage and the question (Lewis et al., appendix; `RagRetriever`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from generator_svc.commands import Document, OpenCommand, Truncation
from ragserve.checkpoint import RagSettings
from ragserve.errors import InvalidInputError


class ContextCodec(Protocol):
    """What is needed of the tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids with special tokens, however long."""

    def encode_truncated(self, text: str, max_tokens: int) -> list[int]:
        """Ids cut from the right, special tokens kept."""

    def token_ends(self, text: str) -> list[int]:
        """Where each token ends, in characters."""

    def known_tokens(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens without those that the model does not have."""

    def unknown_token(self, token_ids: Sequence[int]) -> str | None:
        """The first token that the tokenizer has and the model does not."""


@dataclass(frozen=True)
class Context:
    """Token ids of one document's context."""

    token_ids: tuple[int, ...]
    truncated_tokens: int = 0  # cut from the context
    document_tokens: int = 0  # of the document before it was cut; 0 where it was not
    unknown_token: str = ""  # the first that was left out, as the model does not have it

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut from the context."""
        return self.truncated_tokens > 0


def build_contexts(
    command: OpenCommand, rag: RagSettings, codec: ContextCodec, max_tokens: int, most: int = 0
) -> tuple[Context, ...]:
    """One context for each document of the command. `most`: what `max_tokens` may be raised to, for errors.

    Raises:
        InvalidInputError: the question alone is longer than a context may be, or a text holds a token that the model
            does not know (with `skip_unknown_tokens`: the question does).
    """
    contexts = []
    for number, document in enumerate(command.documents):
        context = build_context(document, command.question, rag, codec, max_tokens, command.truncation, most)
        if (token := codec.unknown_token(context.token_ids)) is not None:
            asked = codec.unknown_token(codec.encode(command.question))
            if asked is not None or not command.skip_unknown_tokens:
                raise _unknown(asked or token, command, number)
            context = replace(context, token_ids=codec.known_tokens(context.token_ids), unknown_token=token)
        contexts.append(context)
    return tuple(contexts)


def not_in_model(token: str) -> str:
    """What is wrong with a text that holds a token which the tokenizer has and the model does not."""
    return (
        f"holds {token!r}, a token that the generator's tokenizer has and its model does not: "
        "leave it out or spell it otherwise"
    )


def _unknown(token: str, command: OpenCommand, number: int) -> InvalidInputError:
    """The error for a token without a row in the model, which says where it stands."""
    document, problem = command.documents[number], not_in_model(token)
    if token in command.question:
        return InvalidInputError("open.question", f"open.question {problem}")
    field = f"open.documents[{number}]"
    for part, text in (("title", document.title), ("text", document.text)):
        if token in text:
            titled = f" titled {document.title!r}" if document.title else f" {number}"
            return InvalidInputError(f"{field}.{part}", f"the {part} of the document{titled} {problem}")
    return InvalidInputError(field, f"the context of document {number} {problem}")


def build_context(
    document: Document,
    question: str,
    rag: RagSettings,
    codec: ContextCodec,
    max_tokens: int,
    truncation: Truncation,
    most: int = 0,
) -> Context:
    """The context of one document, of at most `max_tokens` tokens."""
    passage = _passage(document, rag)
    text = context_text(passage, question, rag)
    ids = codec.encode(text)
    if len(ids) <= max_tokens:
        return Context(tuple(ids))
    ends = codec.token_ends(passage)
    if truncation == "right":
        return Context(tuple(codec.encode_truncated(text, max_tokens)), len(ids) - max_tokens, len(ends))
    kept, n_kept = _shorten(passage, ends, question, rag, codec, max_tokens, most)
    return Context(tuple(kept), len(ends) - n_kept, len(ends))


def context_text(passage: str, question: str, rag: RagSettings) -> str:
    """Prefix, passage and question; one pass puts one space for two, as Hugging Face does."""
    return (rag.prefix + passage + rag.doc_sep + question).replace("  ", " ")


def _passage(document: Document, rag: RagSettings) -> str:
    title = document.title.removeprefix('"').removesuffix('"')
    return title + rag.title_sep + document.text


def _shorten(
    passage: str, ends: list[int], question: str, rag: RagSettings, codec: ContextCodec, max_tokens: int, most: int
) -> tuple[list[int], int]:
    """Drop tokens from the end of the passage until the context fits: the most that fit, by bisection."""
    best = codec.encode(context_text("", question, rag))
    if len(best) > max_tokens:
        raised = f", or raise max_context_tokens (this model reads up to {most})" if most > max_tokens else ""
        raise InvalidInputError(
            "open.question",
            f"the question alone takes {len(best)} tokens; question and passage together may have {max_tokens} "
            f"(max_context_tokens). Shorten the question{raised}",
        )
    fits, too_many = 0, len(ends)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        ids = codec.encode(context_text(passage[: ends[middle - 1]], question, rag))
        if len(ids) <= max_tokens:
            fits, best = middle, ids
        else:
            too_many = middle
    return best, fits
