"""What every model family offers the engine, and how its rows read the documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from generator_svc.kernels import native
from generator_svc.kernels.program import DocumentPlaces, PathPlaces
from generator_svc.models.numerics import FLOAT32, Numerics

PositionBias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes that the cache and the limits depend on; a maximum is None where the model has no own limit."""

    vocab_size: int
    n_layers: int  # of the decoder
    n_heads: int  # of the decoder
    head_dim: int
    scale: float  # of the products of queries and keys
    max_source_tokens: int | None
    max_target_tokens: int | None
    numerics: Numerics = FLOAT32

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.n_heads * self.head_dim

    @property
    def bytes_per_document_token(self) -> int:
        """Bytes of the cross-attention keys and values of one token in all layers."""
        return self.n_layers * 2 * self.inner * self.numerics.documents.itemsize

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of the self-attention keys and values of one decoder token in all layers."""
        return self.n_layers * 2 * self.inner * self.numerics.activations.itemsize


@dataclass(frozen=True)
class DocumentState:
    """Cross-attention keys and values of one document, shared by all its hypotheses.

    `layers[i]` is [2, n_heads, n_tokens, head_dim]: keys, then values.
    """

    layers: tuple[torch.Tensor, ...]

    @cached_property
    def addresses(self) -> native.Addresses:
        """Where each layer is in memory."""
        return np.array([layer.data_ptr() for layer in self.layers], dtype=np.int64)

    @cached_property
    def place(self) -> tuple[int, int]:
        """Where the first layer is in memory, and the number of tokens."""
        return self.layers[0].data_ptr(), self.layers[0].shape[2]


class CrossAttention(Protocol):
    """How rows see the documents: each row reads one."""

    @property
    def places(self) -> DocumentPlaces | None:
        """Where the documents are, for the kernels; None where these cannot read them."""

    def attend(self, layer: int, query: torch.Tensor, /) -> torch.Tensor:
        """Query [n_rows, inner] -> [n_rows, inner]."""


@dataclass(frozen=True)
class EncodePass:
    """What one pass of the encoder gave, and how many token positions it computed, padding included."""

    documents: list[DocumentState]
    positions: int


@dataclass(frozen=True)
class Rows:
    """Decoder inputs of one pass: one token per row."""

    tokens: torch.Tensor  # int64 [n_rows]
    positions: torch.Tensor  # int64 [n_rows]
    documents: CrossAttention


class SelfAttention(Protocol):
    """How rows see their own past: through the cache, or through a tree of tokens in the same pass."""

    @property
    def places(self) -> PathPlaces | None:
        """Where the past is, for the kernels, after `start`; None where these cannot read it."""

    def start(self, position_bias: PositionBias | None) -> None:
        """Prepare the bias of this pass; `position_bias` maps distances [...] to biases [..., n_heads]."""

    def attend(self, layer: int, qkv: torch.Tensor, /) -> torch.Tensor:
        """Qkv [n_rows, 3 * inner] -> [n_rows, inner]."""


class Seq2SeqModel(Protocol):
    """An encoder-decoder whose decoder works on rows."""

    shape: Shape

    def encode(self, contexts: Sequence[Sequence[int]]) -> EncodePass:
        """Encode documents packed one after the other, without padding."""

    def decode(self, rows: Rows, attention: SelfAttention) -> torch.Tensor:
        """Hidden states [n_rows, d_model] after the last decoder layer."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n_rows, d_model] -> float32 [n_rows, vocab_size]."""


@dataclass(frozen=True)
class GroupedDocuments:
    """Rows of one document stand together, and are stacked: its keys and values are read once, never expanded.

    `groups` gives, in row order, each document and its number of rows; `scale` is that of the products of queries and
    keys.
    """

    groups: tuple[tuple[DocumentState, int], ...]
    scale: float

    @cached_property
    def _starts(self) -> native.Addresses:
        """The first row of each group, and the number of rows."""
        return np.cumsum([0, *(count for _, count in self.groups)], dtype=np.int64)

    @cached_property
    def _tokens(self) -> native.Addresses:
        """Tokens of the document of each group."""
        return np.array([state.layers[0].shape[2] for state, _ in self.groups], dtype=np.int64)

    @cached_property
    def _addresses(self) -> native.Addresses:
        """Where the document of each group is in memory, [n_layers, n_groups]."""
        return np.ascontiguousarray(np.stack([state.addresses for state, _ in self.groups], axis=1))

    @property
    def places(self) -> DocumentPlaces | None:
        """See `CrossAttention`."""
        documents = self.groups[0][0].layers[0]
        if not native.usable(documents.shape[3], documents):
            return None
        return DocumentPlaces(self._addresses, self._tokens, self._starts, documents.dtype == torch.float16)

    def attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        """See `CrossAttention`."""
        documents = self.groups[0][0].layers[layer]
        dim = documents.shape[3]
        if query.dtype == torch.float32 and native.usable(dim, query, documents):
            half = documents.dtype == torch.float16
            where = (self._addresses[layer], self._tokens, self._starts)
            return native.cross_attention(query, *where, dim, self.scale, half=half)
        outputs = []
        for (state, _), own in zip(self.groups, torch.split(query, [count for _, count in self.groups]), strict=True):
            keys, values = state.layers[layer].to(query.dtype).unbind(0)  # [n_heads, n_tokens, head_dim]
            stacked = own.view(-1, keys.shape[0], dim).transpose(0, 1)
            attended = F.scaled_dot_product_attention(stacked[None], keys[None], values[None], scale=self.scale)
            outputs.append(attended[0].transpose(0, 1).reshape(own.shape))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
