"""What the client returns. `to_dict` gives plain types, as `ragserve ask --json` prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ragserve.evidence import texts_with

UNLIKELY = 0.1  # an answer of a smaller probability has a note
SHORT_ANSWER = 60  # characters: a longer answer is a summary more often than a quotation
VERDICTS = ("yes", "no", "true", "false")  # answers that stand in no passage


@dataclass(frozen=True)
class Passage:
    """A passage and the part it played.

    score: inner product with the query; prior: p(z|x); posterior: its part in the best answer y, which is p(z|x,y)
    for RAG-Sequence and the mean of its token posteriors for RAG-Token, None where there is no answer. `id` is empty
    for a document that the caller brought. truncated_tokens: cut from its context, since the generator reads no more.
    """

    id: str
    title: str
    text: str
    score: float
    prior: float
    posterior: float | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    truncated_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain types; posterior, metadata and truncated_tokens only where there are some."""
        plain: dict[str, Any] = {
            "id": self.id,
            "title": self.title,
            "text": self.text,
            "score": self.score,
            "prior": self.prior,
        }
        if self.posterior is not None:
            plain["posterior"] = self.posterior
        if self.truncated_tokens:
            plain["truncated_tokens"] = self.truncated_tokens
        return {**plain, "metadata": dict(self.metadata)} if self.metadata else plain


@dataclass(frozen=True)
class Hypothesis:
    """One answer: log_prob is log p(y|x), score is what the search ranked by."""

    text: str
    log_prob: float
    score: float
    token_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "text": self.text,
            "log_prob": self.log_prob,
            "score": self.score,
            "token_ids": list(self.token_ids),
        }


@dataclass(frozen=True)
class TokenPosterior:
    """At one generated token, one probability for each passage, in their order.

    RAG-Token: p(z_i|x,y_1..i), which document the model relied on for this token (Figure 2 of the paper).
    RAG-Sequence: p(z|x,y_1..i), which document it relied on up to this token.
    """

    token_id: int
    piece: str
    posterior: tuple[float, ...]


@dataclass(frozen=True)
class PassagesEvent:
    """First event of a stream: the passages. Their posteriors are not known yet, and None."""

    passages: tuple[Passage, ...]
    knowledge_version: int

    def to_dict(self) -> dict[str, Any]:
        """Plain types, without posteriors."""
        return {
            "passages": [passage.to_dict() for passage in self.passages],
            "knowledge_version": self.knowledge_version,
        }


@dataclass(frozen=True)
class TokensEvent:
    """Tokens that will not change any more, and the text they add."""

    token_ids: tuple[int, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"token_ids": list(self.token_ids), "text": self.text}


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence; also the last event of a stream.

    hypotheses: best first, at least one; passages: by falling prior; token_posteriors: for the best answer, when
    asked for; timings_seconds: by stage; knowledge_version: 0 when the request brought its own documents.
    """

    hypotheses: tuple[Hypothesis, ...]
    passages: tuple[Passage, ...]
    token_posteriors: tuple[TokenPosterior, ...]
    knowledge_version: int
    timings_seconds: Mapping[str, float]
    warnings: tuple[str, ...]

    @property
    def answer(self) -> str:
        """Text of the best answer."""
        return self.hypotheses[0].text

    @property
    def log_prob(self) -> float:
        """Log p(y|x) of the best answer."""
        return self.hypotheses[0].log_prob

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the best answer, decoder start token not included."""
        return self.hypotheses[0].token_ids

    @property
    def probability(self) -> float:
        """The value of p(y|x) of the best answer."""
        return _probability(self.log_prob)

    @cached_property
    def passages_with_answer(self) -> tuple[int, ...]:
        """Indices of the passages whose title or text contains the best answer.

        Case, accents, punctuation, articles and white space do not count.
        """
        return texts_with(self.answer, [f"{passage.title}\n{passage.text}" for passage in self.passages])

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons to check the best answer: a small probability, or a short answer that no passage contains."""
        notes = []
        text = self.answer.strip()
        quotable = 0 < len(text) <= SHORT_ANSWER and text.rstrip(".").casefold() not in VERDICTS
        if quotable and not self.passages_with_answer:
            notes.append("No passage contains this answer: the model may have made it up.")
        if self.probability < UNLIKELY:
            notes.append(f"The model gives this answer a probability below {UNLIKELY:.0%}: check the passages.")
        return tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; `token_posteriors` is [n_tokens][n_docs] and `token_pieces` names its rows."""
        return {
            "answer": self.answer,
            "log_prob": self.log_prob,
            "probability": self.probability,
            "token_ids": list(self.token_ids),
            "hypotheses": [hypothesis.to_dict() for hypothesis in self.hypotheses],
            "passages": [passage.to_dict() for passage in self.passages],
            "passages_with_answer": list(self.passages_with_answer),
            "token_posteriors": [list(token.posterior) for token in self.token_posteriors],
            "token_pieces": [token.piece for token in self.token_posteriors],
            "timings_seconds": dict(self.timings_seconds),
            "knowledge_version": self.knowledge_version,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Retrieval:
    """The passages that a question retrieves, by falling prior; posteriors are None.

    warnings: what the caller should know, such as fewer passages than the default.
    """

    passages: tuple[Passage, ...]
    knowledge_version: int
    timings_seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, without posteriors."""
        return {
            "passages": [passage.to_dict() for passage in self.passages],
            "knowledge_version": self.knowledge_version,
            "timings_seconds": dict(self.timings_seconds),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class AnswerScore:
    """log p(answer | question), marginalized; token_log_probs is what each token adds under the marginal.

    pieces: what each token adds to the text; empty where the service is of an older version.
    """

    log_prob: float
    token_ids: tuple[int, ...]
    token_log_probs: tuple[float, ...]
    passages: tuple[Passage, ...]
    knowledge_version: int
    timings_seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()

    @property
    def probability(self) -> float:
        """The value of p(y|x)."""
        return _probability(self.log_prob)

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "log_prob": self.log_prob,
            "probability": self.probability,
            "token_ids": list(self.token_ids),
            "token_log_probs": list(self.token_log_probs),
            "token_pieces": list(self.pieces),
            "passages": [passage.to_dict() for passage in self.passages],
            "knowledge_version": self.knowledge_version,
            "timings_seconds": dict(self.timings_seconds),
            "warnings": list(self.warnings),
        }


def _probability(log_prob: float) -> float:
    return math.exp(min(0.0, log_prob))  # rounding can give a log-probability just above 0
