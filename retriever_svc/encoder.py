"""Query and passage encoder: a tokenizer and an ONNX graph that ends with the final vector.

The graph holds pooling, projection and normalization (DPR: the [CLS] vector, arXiv 2005.11401, section 2.2), so that
nothing is computed here but the batching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from ragserve.errors import FailedPreconditionError, InternalError, NotFoundError
from ragserve.serving.cores import thread_count
from retriever_svc.device import CPU_PROVIDER, CUDA_PROVIDER, Device, no_cuda, onnx_providers
from retriever_svc.encoder_config import EncoderConfig, load_encoder_config
from retriever_svc.types import Float32, Int64, Passage

T = TypeVar("T")

OUTPUT_NAME = "query_vector"
# Tokens of one forward pass, padding included. A CPU gains nothing from more than its caches hold: 64 passages of
# MiniLM took 1.1 s in passes of 512 tokens and 1.5 s in passes of 4,096.
BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}


class TextEncoder:
    """Turns texts into vectors float32 [n_texts, dim]. A text's vector does not depend on the others in its batch."""

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: Tokenizer,
        session: onnxruntime.InferenceSession,
        max_batch_tokens: int = 0,
    ) -> None:
        """Put an encoder together; `max_batch_tokens` 0 means what suits the device."""
        self.config = config
        self._tokenizer = tokenizer
        self._session = session
        self._max_batch_tokens = max_batch_tokens or BATCH_TOKENS[self.device]

    @classmethod
    def load(
        cls, directory: Path, *, device: Device = "auto", threads: int = 0, max_batch_tokens: int = 0
    ) -> TextEncoder:
        """Load `model.onnx`, `tokenizer.json` and `encoder.json`, and run the graph once.

        Raises:
            NotFoundError: a file is missing.
            FailedPreconditionError: a file cannot be read, does not fit the others, or CUDA is asked for and absent.
        """
        config = load_encoder_config(directory / "encoder.json")
        tokenizer = _load_tokenizer(directory / "tokenizer.json", config.max_length)
        session = _load_session(directory / "model.onnx", device, threads)
        encoder = cls(config, tokenizer, session, max_batch_tokens)
        width = encoder._forward(encoder.tokenize_queries(["warm-up"])).shape[1]
        if width != config.dim:
            raise FailedPreconditionError(
                f"{directory / 'model.onnx'} gives vectors of {width} values, encoder.json says {config.dim}",
                field=str(directory / "model.onnx"),
            )
        return encoder

    @property
    def device(self) -> str:
        """The device in use: cpu or cuda."""
        return "cuda" if CUDA_PROVIDER in self._session.get_providers() else "cpu"

    def tokenize_queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each query, special tokens included, cut to the encoder's longest input."""
        return [self._tokenizer.encode(text).ids for text in texts]  # one by one: no thread pool of its own

    def decode(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts that token ids stand for, without special tokens (as HF's RagRetriever hands the question on)."""
        return [self._tokenizer.decode(list(ids), skip_special_tokens=True) for ids in token_ids]

    def encode_queries(self, texts: Sequence[str]) -> Float32:
        """Vectors of queries, [n_texts, dim]."""
        return self.encode_tokens(self.tokenize_queries(texts))

    def encode_passages(self, passages: Sequence[Passage]) -> Float32:
        """Vectors of passages, [n_passages, dim]: title and text by the template, or as a token pair (DPR)."""
        inputs = [self.config.passage_input(passage.title, passage.text) for passage in passages]
        return self.encode_tokens([self._tokenizer.encode(first, second).ids for first, second in inputs])

    def encode_tokens(self, token_ids: Sequence[Sequence[int]]) -> Float32:
        """Vectors of token sequences, [n_texts, dim], in forward passes of sequences of like length."""
        vectors = np.empty((len(token_ids), self.config.dim), dtype=np.float32)
        for rows in token_batches([len(ids) for ids in token_ids], self._max_batch_tokens):
            vectors[rows] = self._forward([token_ids[row] for row in rows])
        return vectors

    def _forward(self, token_ids: Sequence[Sequence[int]]) -> Float32:
        """One forward pass; [n_rows, dim]."""
        longest = max(len(ids) for ids in token_ids)
        input_ids = np.full((len(token_ids), longest), self.config.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        (vectors,) = self._session.run([OUTPUT_NAME], {"input_ids": input_ids, "attention_mask": attention_mask})
        if not np.isfinite(vectors).all():
            raise InternalError("the encoder gave a vector that is not finite")
        return np.asarray(vectors, dtype=np.float32)


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[Int64]:
    """Group rows of like length so that rows x longest row stays within `max_tokens` (a longer row goes alone)."""
    batches: list[Int64] = []
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end - start + 1) * lengths[order[end]] > max_tokens:
            batches.append(order[start:end])
            start = end
    return batches


def _load_tokenizer(path: Path, max_length: int) -> Tokenizer:
    """The tokenizer, cutting to `max_length` tokens and never padding."""
    tokenizer = _read(path, lambda: Tokenizer.from_file(str(path)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


def _load_session(path: Path, device: Device, threads: int) -> onnxruntime.InferenceSession:
    """The ONNX graph on a device, with `threads` threads inside an operator and no spinning between calls."""
    providers = onnx_providers(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads sleep: the generator next door wants the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = _read(path, lambda: onnxruntime.InferenceSession(str(path), options, providers=providers))
    if device == "cuda" and session.get_providers()[0] == CPU_PROVIDER:
        raise no_cuda("ONNX Runtime", "its CUDA provider did not start (driver, CUDA or cuDNN libraries)")
    _check_graph(path, session)
    return session


def _check_graph(path: Path, session: onnxruntime.InferenceSession) -> None:
    """Refuse a graph with other inputs or outputs than the ones this encoder feeds and reads."""
    inputs = {tensor.name for tensor in session.get_inputs()}
    outputs = {tensor.name for tensor in session.get_outputs()}
    if inputs != {"input_ids", "attention_mask"} or OUTPUT_NAME not in outputs:
        raise FailedPreconditionError(
            f"{path} takes {sorted(inputs)} and gives {sorted(outputs)}; expected input_ids, attention_mask and "
            f"{OUTPUT_NAME}: import the checkpoint again",
            field=str(path),
        )


def _read(path: Path, load: Callable[[], T]) -> T:
    """Load a file, with its name in the error."""
    if not path.is_file():
        raise NotFoundError(f"{path} is missing: import the checkpoint again", field=str(path))
    try:
        return load()
    except Exception as error:  # both libraries raise bare exceptions of their own kind
        raise FailedPreconditionError(f"{path} cannot be loaded: {error}", field=str(path)) from error
