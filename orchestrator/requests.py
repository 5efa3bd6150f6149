"""What passes between the layers: requests as the pipeline gets them, answers as it gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from orchestrator.search.beam import EarlyStopping
from ragserve.filters import SearchOptions
from ragserve.serving.metrics import StageTiming
from ragserve.token_rules import TokenRules


class Mode(StrEnum):
    """RAG-Token or RAG-Sequence."""

    TOKEN = "token"  # noqa: S105
    SEQUENCE = "sequence"


class Decoding(StrEnum):
    """How RAG-Sequence ranks its candidates."""

    THOROUGH = "thorough"
    FAST = "fast"


class QuestionForm(StrEnum):
    """Which form of the question the generator reads."""

    RAW = "raw"
    DECODED = "decoded"


class Truncation(StrEnum):
    """What is dropped from a context that is too long."""

    PASSAGE = "passage"
    RIGHT = "right"


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling as asked for; None is not said."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ContextOptions:
    """How contexts are made of question and passages; `max_tokens` 0 is the checkpoint's."""

    question_form: QuestionForm = QuestionForm.RAW
    truncation: Truncation = Truncation.PASSAGE
    max_tokens: int = 0


@dataclass(frozen=True)
class GenerationOptions:
    """Generation settings as asked for, or as a checkpoint has them; None is not said."""

    mode: Mode | None = None
    decoding: Decoding | None = None
    num_beams: int | None = None
    num_return_sequences: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    no_repeat_ngram_size: int | None = None
    bad_words: tuple[tuple[int, ...], ...] | None = None
    repetition_penalty: float | None = None
    sampling: SamplingOptions | None = None


@dataclass(frozen=True)
class Document:
    """A document that the caller brought. Its log_prior need not be normalized."""

    title: str
    text: str
    log_prior: float


@dataclass(frozen=True)
class Passage:
    """A passage of the knowledge base, or a document of the caller (which has no id)."""

    id: str
    title: str
    text: str
    metadata_json: str = ""


@dataclass(frozen=True)
class Sources:
    """Where the passages come from: a question to retrieve with, or the caller's documents."""

    question: str
    n_docs: int | None = None
    knowledge_version: int = 0
    search: SearchOptions = field(default_factory=SearchOptions)
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True)
class GenerateAsk:
    """A request for an answer."""

    sources: Sources
    options: GenerationOptions = field(default_factory=GenerationOptions)
    context: ContextOptions = field(default_factory=ContextOptions)
    token_posteriors: bool = False


@dataclass(frozen=True)
class ScoreAsk:
    """A request for the probability of an answer."""

    sources: Sources
    answer: str
    mode: Mode | None = None
    context: ContextOptions = field(default_factory=ContextOptions)


@dataclass(frozen=True)
class Evidence:
    """The passages of a request, by falling prior, and which version of the knowledge base gave them."""

    passages: tuple[Passage, ...]
    scores: tuple[float, ...]
    log_prior: npt.NDArray[np.float64]  # [n_docs]
    knowledge_version: int
    decoded_question: str = ""
    posterior: npt.NDArray[np.float64] | None = None  # [n_docs]; None before there is an answer
    truncated_tokens: tuple[int, ...] = ()  # of each context; empty before there is a session
    warnings: tuple[str, ...] = ()  # such as fewer passages than the default
    numbers: tuple[int, ...] = ()  # of the caller's documents, in the request; empty for retrieved passages
    query_encoder: str = ""  # of the retriever's model directory; empty: not known, or the caller's documents

    @property
    def n_docs(self) -> int:
        """Number of passages."""
        return len(self.passages)


@dataclass(frozen=True)
class AnswerText:
    """One answer: `log_prob` is log p(y|x), `score` what it was ranked by."""

    text: str
    log_prob: float
    score: float
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenPosterior:
    """p(z|x,y_1..i) `[n_docs]` after one token."""

    token_id: int
    piece: str
    posterior: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """Answers, best first, with their evidence. As an event it is the last."""

    hypotheses: tuple[AnswerText, ...]
    evidence: Evidence
    token_posteriors: tuple[TokenPosterior, ...]
    timings: tuple[StageTiming, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class TokensFinal:
    """Tokens that will not change any more, and the text they add."""

    token_ids: tuple[int, ...]
    text: str


Event = Evidence | TokensFinal | Answer


@dataclass(frozen=True)
class ScoredAnswer:
    """log p(answer|x) and what each token adds to it."""

    log_prob: float
    token_ids: tuple[int, ...]
    token_log_probs: tuple[float, ...]
    evidence: Evidence
    timings: tuple[StageTiming, ...]
    warnings: tuple[str, ...]
    pieces: tuple[str, ...]  # what each token adds to the text


@dataclass(frozen=True)
class Retrieved:
    """The passages of a question."""

    evidence: Evidence
    timings: tuple[StageTiming, ...]


@dataclass(frozen=True)
class GeneratorInfo:
    """What decoding needs to know of the loaded generator; limits of 0 are none."""

    trained_mode: Mode | None
    vocab_size: int
    token_rules: TokenRules
    sequence_rules: TokenRules
    bos_token_id: int | None
    max_target_tokens: int
    max_context_tokens: int
    max_documents: int
    max_hypotheses: int
    defaults: GenerationOptions
    default_n_docs: int | None
    warnings: tuple[str, ...] = ()
    query_encoder: str = ""  # of the generator's model directory; empty: not known
    max_rows: int = 0  # of all sessions together: a session has hypotheses times documents of them

    def rules(self, mode: Mode) -> TokenRules:
        """Which tokens begin, end and shape an answer."""
        return self.sequence_rules if mode is Mode.SEQUENCE else self.token_rules
