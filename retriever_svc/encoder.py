"""Query and passage encoder: a tokenizer and an ONNX graph that ends with the final vector.

The graph holds pooling, projection and normalization (DPR: the [CLS] vector, arXiv 2005.11401, section 2.2), so that
nothing is computed here but the batching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from ragserve.clean_up import clean_up
from ragserve.errors import FailedPreconditionError, InternalError, InvalidInputError
from ragserve.serving.cores import thread_count
from retriever_svc.device import Device
from retriever_svc.encoder_config import EncoderConfig, load_encoder_config
from retriever_svc.encoder_session import EncoderSession, Precision, graph_path, read
from retriever_svc.types import Float32, Int64, Passage

# Tokens of one forward pass, padding included. A CPU gains nothing from more than its caches hold: 64 passages of
# MiniLM took 1.1 s in passes of 512 tokens and 1.5 s in passes of 4,096.
BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}
# So many tokens of padding cost as much as one pass more: MiniLM on two cores takes 2.0 to 2.4 ms for a pass and 0.12
# (two threads) to 0.22 (one) for each token in it; a larger model takes more for both.
PASS_TOKENS = {"cpu": 12, "cuda": 4096}
PROMPT_MASK = 2  # attended to, and not pooled
BATCHES_AT_A_TIME = 2  # on a CPU with several threads, where the graph is held twice


class QueryTokens(NamedTuple):
    """Token ids of a query as the encoder reads it, and how many more tokens it has."""

    ids: list[int]
    unread: int


class TextEncoder:
    """Turns texts into vectors float32 [n_texts, dim]. A text's vector does not depend on the others in its batch.

    In int8 a difference in a last bit can become one of a whole step of quantization. So a pass in int8 holds texts of
    one length only: no sum inside runs over padding, and what is quantized is the same to the last bit (alone and in a
    batch, the vectors of 600 questions differed by less than 5e-8, as in float32).
    """

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: Tokenizer,
        session: EncoderSession,
        max_batch_tokens: int = 0,
        precision: Precision = "float32",
        beside: EncoderSession | None = None,
    ) -> None:
        """Put an encoder together; `max_batch_tokens` 0 means what suits the device.

        `beside` is the same graph with fewer threads, for batches that are encoded beside another one.
        """
        self.config = config
        self._tokenizer = tokenizer
        self._session = session
        self._beside = session if beside is None else beside
        self.precision = precision
        self._max_batch_tokens = max_batch_tokens or BATCH_TOKENS[self.device]
        self._query_prompt_tokens = self._prompt_tokens(config.query_prompt)
        self._passage_prompt_tokens = self._prompt_tokens(config.passage_prompt)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: Device = "auto",
        threads: int = 0,
        twice: bool = False,
        max_batch_tokens: int = 0,
        precision: Precision = "float32",
    ) -> TextEncoder:
        """Load the graph, `tokenizer.json` and `encoder.json`, and run the graph once.

        `twice`: on a CPU with several threads the graph is held a second time, with half of them, for batches that are
        encoded beside another one: threads that share an operator wait for each other, and for what else wants a core.

        Raises:
            NotFoundError: a file is missing.
            FailedPreconditionError: a file cannot be read, does not fit the others or has not been made (the graph of
                another precision than float32), or CUDA is asked for and absent.
        """
        config = load_encoder_config(directory / "encoder.json")
        tokenizer = load_tokenizer(directory / "tokenizer.json", config)
        session = EncoderSession.load(directory, device, threads, precision)
        share = thread_count(threads) // BATCHES_AT_A_TIME if twice and session.device == "cpu" else 0
        beside = EncoderSession.load(directory, device, share, precision) if share else None
        encoder = cls(config, tokenizer, session, max_batch_tokens, precision, beside)
        warm_up = encoder.tokenize_queries(["warm-up"])
        width = max(encoder._forward(warm_up, each).shape[1] for each in {encoder._session, encoder._beside})
        if width != config.dim:
            path = graph_path(directory, precision)
            raise FailedPreconditionError(
                f"{path} gives vectors of {width} values, encoder.json says {config.dim}", field=str(path)
            )
        return encoder

    @property
    def device(self) -> str:
        """The device in use: cpu or cuda."""
        return self._session.device

    def tokenize_queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each query, prompt and special tokens included, cut to the encoder's longest input.

        Raises:
            InvalidInputError: a query holds a token that the graph does not know.
        """
        return [found.ids for found in self.query_tokens(texts)]

    def query_tokens(self, texts: Sequence[str]) -> list[QueryTokens]:
        """As `tokenize_queries`, and how many tokens of each query are not read."""
        # one by one: no thread pool of its own
        encodings = [self._tokenizer.encode(self.config.query_input(text)) for text in texts]
        for number, encoding in enumerate(encodings):
            if (token := unknown_token(self._tokenizer, encoding.ids, self.config)) is not None:
                field = f"queries[{number}].text"
                raise InvalidInputError(field, f"{field} {holds(token)}")
        return [QueryTokens(encoding.ids, _unread(encoding)) for encoding in encodings]

    def decode_queries(self, texts: Sequence[str], token_ids: Sequence[Sequence[int]]) -> list[str]:
        """What the tokenizer reads of each query, without special tokens (as HF's RagRetriever hands the question on).

        `token_ids` are the queries' own, of `tokenize_queries`. A prompt is the encoder's and no part of the question.
        """
        if self.config.query_prompt:
            token_ids = [self._tokenizer.encode(text).ids for text in texts]
        decoded = [self._tokenizer.decode(list(ids), skip_special_tokens=True) for ids in token_ids]
        return [clean_up(text) for text in decoded] if self.config.cleans_up else decoded

    def encode_queries(self, texts: Sequence[str]) -> Float32:
        """Vectors of queries, [n_texts, dim]."""
        return self.encode_tokens(self.tokenize_queries(texts))

    def encode_passages(self, passages: Sequence[Passage], truncated: Callable[[int], None] | None = None) -> Float32:
        """Vectors of passages, [n_passages, dim]: title and text by the template, or as a token pair (DPR).

        `truncated` is called with the position of each passage that is longer than the encoder reads.

        Raises:
            InvalidInputError: a passage holds a token that the graph does not know.
        """
        inputs = [self.config.passage_input(passage.title, passage.text) for passage in passages]
        encodings = [self._tokenizer.encode(first, second) for first, second in inputs]
        if truncated is not None:
            for row, encoding in enumerate(encodings):
                if encoding.overflowing:
                    truncated(row)
        token_ids = [encoding.ids for encoding in encodings]
        for passage, ids in zip(passages, token_ids, strict=True):
            if (token := unknown_token(self._tokenizer, ids, self.config)) is not None:
                place = f" (passage {passage.id!r}, {'title' if token in passage.title else 'text'})"
                raise InvalidInputError("passages", f"passages {holds(token, place)}")
        return self.encode_tokens(token_ids, prompt_tokens=self._passage_prompt_tokens)

    def encode_tokens(
        self,
        token_ids: Sequence[Sequence[int]],
        max_padding: int | None = None,
        *,
        beside: bool = False,
        prompt_tokens: int | None = None,
    ) -> Float32:
        """Vectors of token sequences, [n_texts, dim], in forward passes of sequences of like length.

        `max_padding` is what `token_batches` takes; None: what suits device and precision. `beside`: another batch is
        encoded at the same time. `prompt_tokens` is how many tokens of each sequence are a prompt that is not pooled;
        None: those of a query.
        """
        prompt_tokens = self._query_prompt_tokens if prompt_tokens is None else prompt_tokens
        vectors = np.empty((len(token_ids), self.config.dim), dtype=np.float32)
        lengths = [len(ids) for ids in token_ids]
        if max_padding is None:
            max_padding = 0 if self.precision == "int8" else PASS_TOKENS[self.device]
        for rows in token_batches(lengths, self._max_batch_tokens, max_padding):
            session = self._beside if beside else self._session
            vectors[rows] = self._forward([token_ids[row] for row in rows], session, prompt_tokens)
        return vectors

    def _prompt_tokens(self, prompt: str) -> int:
        """How many tokens a prompt takes at the start of a text, where the graph does not pool them; else 0.

        The token that begins every text counts, the one that ends it does not (as in sentence-transformers).
        """
        if self.config.pools_prompt or not prompt:
            return 0
        encoded = self._tokenizer.encode(prompt)
        return len(encoded.ids) - int(encoded.special_tokens_mask[-1])

    def _forward(self, token_ids: Sequence[Sequence[int]], session: EncoderSession, prompt_tokens: int = 0) -> Float32:
        """One forward pass; [n_rows, dim]. The mask is 2 for the tokens of a prompt that is not pooled."""
        longest = max(len(ids) for ids in token_ids)
        input_ids = np.full((len(token_ids), longest), self.config.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        if prompt_tokens:
            attention_mask[:, :prompt_tokens] *= PROMPT_MASK
        vectors = session.run(input_ids, attention_mask)
        if not np.isfinite(vectors).all():
            raise InternalError("the encoder gave a vector that is not finite")
        return vectors


def unknown_token(tokenizer: Tokenizer, token_ids: Sequence[int], config: EncoderConfig) -> str | None:
    """The first token that the tokenizer has and the graph does not."""
    if not config.vocab_size:
        return None
    unknown = next((each for each in token_ids if each >= config.vocab_size), None)
    return None if unknown is None else str(tokenizer.id_to_token(unknown))


def holds(token: str, place: str = "") -> str:
    """What is wrong with a text that holds a token which the tokenizer has and the model does not."""
    return (
        f"holds {token!r}{place}, a token that the encoder's tokenizer has and its model does not: "
        "leave it out or spell it otherwise"
    )


def _unread(encoding: Encoding) -> int:
    """Tokens that were cut, special tokens not counted."""
    return sum(mask.count(0) for mask in (part.special_tokens_mask for part in encoding.overflowing))


def token_batches(lengths: Sequence[int], max_tokens: int, max_padding: int) -> list[Int64]:
    """Group rows of like length so that rows x longest row stays within `max_tokens` (a longer row goes alone).

    A longer row joins a group where that costs the rows before it at most `max_padding` tokens of padding together.
    """
    batches: list[Int64] = []
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order):
            n_rows, next_length = end - start, lengths[order[end]]
            added = n_rows * (next_length - lengths[order[end - 1]])
            if added <= max_padding and (n_rows + 1) * next_length <= max_tokens:
                continue
        batches.append(order[start:end])
        start = end
    return batches


def load_tokenizer(path: Path, config: EncoderConfig) -> Tokenizer:
    """The tokenizer, cutting to the encoder's longest input and never padding."""
    tokenizer = read(path, lambda: Tokenizer.from_file(str(path)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.max_length, strategy="longest_first", direction=config.truncation_side)
    return tokenizer
