"""What a caller may ask for. Everything left at None is decided by the checkpoint, then by the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from ragserve.filters import Filter

Mode = Literal["token", "sequence"]
Decoding = Literal["thorough", "fast"]
QuestionForm = Literal["raw", "decoded"]
Truncation = Literal["passage", "right"]
EarlyStopping = Literal[False, True, "never"]


@dataclass(frozen=True)
class Document:
    """A document to answer from instead of retrieving; log-priors are normalized by the service.

    text: must be given; it may be empty, as the title may.
    """

    title: str = ""
    text: str | None = None
    log_prior: float = 0.0


@dataclass(frozen=True)
class Sampling:
    """Sampling instead of search (token mode).

    temperature: divides the marginal log-probabilities, above 0; default 1.
    top_k: keeps the k most probable tokens; 0 for no limit; default 0.
    top_p: keeps the smallest set of tokens with at least this probability; default 1.
    seed: the same seed gives the same answer on the same versions; default: drawn by the service.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class GenerationOptions:
    """Settings of one generation; lengths are in tokens.

    mode: RAG-token or RAG-sequence (arXiv 2005.11401, section 2.1).
    decoding: how RAG-sequence ranks its candidates (section 2.5).
    beams: 1 is greedy.
    num_return_sequences: answers returned, at most `beams` unless sampling.
    max_length, min_length: of the whole sequence, decoder start token included.
    max_new_tokens: of the generated part; replaces max_length.
    min_new_tokens: of the generated part; replaces min_length in sequence mode. In token mode both apply.
    length_penalty: a finished score is its log-probability / length^length_penalty.
    early_stopping: when beam search stops, as in transformers.
    no_repeat_ngram_size: no n-gram of this size occurs twice; 0 for no block.
    bad_words: token sequences that may not be generated; replaces the checkpoint's list, also when empty.
    repetition_penalty: above 1 makes tokens already generated less likely.
    sampling: its presence turns sampling on.
    question_form: the question as asked, or as the query encoder's tokens decode, like transformers.
    truncation: what to drop from contexts that are too long.
    max_context_tokens: longest context; 0: the checkpoint's.
    """

    mode: Mode | None = None
    decoding: Decoding | None = None
    beams: int | None = None
    num_return_sequences: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    no_repeat_ngram_size: int | None = None
    bad_words: Sequence[Sequence[int]] | None = None
    repetition_penalty: float | None = None
    sampling: Sampling | None = None
    question_form: QuestionForm | None = None
    truncation: Truncation | None = None
    max_context_tokens: int | None = None


class RetrieveKeywords(TypedDict, total=False):
    """What is retrieved, and how long the call may take.

    Every value but None is sent, also 0.

    docs: passages to retrieve; default: the checkpoint's, or as many as there are. There are fewer where the filter
        lets fewer through.
    knowledge_version: version of the knowledge base; default, and 0: the newest.
    filter: what the passages' metadata must be, as {"lang": "en", "year": ragserve.between(1990, 2000)}.
    nprobe: cells of an IVF index to visit; default, and 0: the index's.
    ef_search: candidates that an HNSW index keeps; default, and 0: the index's.
    search_kind: what passages are found by: dense, bm25, weighted or rrf; default: the retriever's setting.
    lexical_weight: part of BM25 in a weighted search, 0 to 1; default: the retriever's setting.
    timeout_seconds: deadline of this call, above 0; default: the client's; math.inf: none.
    """

    docs: int | None
    knowledge_version: int | None
    filter: Filter | None
    nprobe: int | None
    ef_search: int | None
    search_kind: str | None
    lexical_weight: float | None
    timeout_seconds: float | None


class SourceKeywords(RetrieveKeywords, total=False):
    """Where the passages come from.

    documents: answer from these instead of retrieving, at least one: `Document`s or mappings of its fields.
    """

    documents: Sequence[Document] | None


class ContextKeywords(TypedDict, total=False):
    """The fields of GenerationOptions that scoring uses too."""

    mode: Mode | None
    question_form: QuestionForm | None
    truncation: Truncation | None
    max_context_tokens: int | None


class GenerationKeywords(ContextKeywords, total=False):
    """The fields of GenerationOptions as keywords; a test keeps the two equal."""

    decoding: Decoding | None
    beams: int | None
    num_return_sequences: int | None
    max_length: int | None
    min_length: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    length_penalty: float | None
    early_stopping: EarlyStopping | None
    no_repeat_ngram_size: int | None
    bad_words: Sequence[Sequence[int]] | None
    repetition_penalty: float | None
    sampling: Sampling | None


class GenerateKeywords(GenerationKeywords, SourceKeywords, total=False):
    """Keywords of `generate` and `generate_stream`.

    token_posteriors: also return the posterior over documents after each token (Figure 2 of the paper).
    """

    token_posteriors: bool


class ScoreKeywords(ContextKeywords, SourceKeywords, total=False):
    """Keywords of `score`."""
