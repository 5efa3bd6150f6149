"""Documents packed one after the other for the encoder: no linear map sees padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from generator_svc.kernels import native
from generator_svc.models.base import DocumentState, Shape
from generator_svc.models.numerics import Numerics

SHORTEST = 16  # tokens: documents up to this length are attended to together


@dataclass(frozen=True)
class Packed:
    """Token ids and positions [n_tokens] of documents one after the other, and the length of each."""

    tokens: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]

    @cached_property
    def _starts(self) -> native.Addresses:
        """The first token of each document, and the number of tokens."""
        return np.cumsum([0, *self.lengths], dtype=np.int64)

    def attend(self, qkv: torch.Tensor, n_heads: int, scale: float, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Bidirectional self-attention within each document.

        qkv [n_tokens, 3 * inner]; bias [n_heads, longest, longest]. Returns [n_tokens, inner].
        """
        n_tokens, width = qkv.shape
        dim = width // 3 // n_heads
        if qkv.dtype == torch.float32 and native.usable(dim, qkv):
            return native.document_attention(qkv, self._starts, max(self.lengths), dim, scale, bias)
        heads = qkv.view(n_tokens, 3, n_heads, width // 3 // n_heads)
        outputs = []
        for document in torch.split(heads, list(self.lengths)):
            length = document.shape[0]
            query, key, value = document.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
            mask = None if bias is None else bias[None, :, :length, :length]
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
            outputs.append(attended[0].transpose(0, 1).reshape(length, width // 3))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def split(self, kv: Sequence[torch.Tensor], shape: Shape) -> list[DocumentState]:
        """Packed keys and values of each layer, [n_tokens, 2 * inner], as one state per document."""
        per_layer: list[list[torch.Tensor]] = []
        for packed in kv:
            parts = torch.split(packed.view(packed.shape[0], 2, shape.n_heads, -1), list(self.lengths))
            per_layer.append([_laid_out(part.permute(1, 2, 0, 3), shape.numerics) for part in parts])
        return [DocumentState(tuple(layer[i] for layer in per_layer)) for i in range(len(self.lengths))]


def _laid_out(kv: torch.Tensor, numerics: Numerics) -> torch.Tensor:
    """A copy of keys and values [2, n_heads, n_tokens, head_dim] in the type that documents have.

    With a key beyond the range of float16 the kernels' result is NaN. Torch's attention would hide it, so it is given
    NaN as the values of such keys.
    """
    # Converted as they are copied: half the time of one after the other.
    copy = torch.empty(kv.shape, dtype=numerics.documents).copy_(kv)
    ours = numerics.activations == torch.float32 and native.usable(kv.shape[3], copy)
    if copy.dtype == torch.float16 and not ours:
        copy[1].masked_fill_(copy[0].isinf(), torch.nan)
    return copy


@dataclass(frozen=True)
class _Batch:
    """Documents of similar length, padded to one for their attention.

    `places` [n_documents, width] says where in the packed tokens each one is (0 for padding), `hidden` which are
    padding (None: none is), `real` where in the flat batch the tokens are, `tokens` where they go.
    """

    places: torch.Tensor
    hidden: torch.Tensor | None
    real: torch.Tensor
    tokens: torch.Tensor

    def mask(self, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """The bias [1, n_heads, width, width] with padding at -inf."""
        width = self.places.shape[1]
        if bias is not None:
            missing = width - bias.shape[1]
            bias = F.pad(bias, (0, missing, 0, missing))[None] if missing > 0 else bias[None, :, :width, :width]
        if self.hidden is None:
            return bias
        if bias is None:
            bias = torch.zeros(1, 1, width, width, dtype=dtype, device=self.places.device)
        return bias.masked_fill(self.hidden[:, None, None], -torch.inf)


class PackedOnGpu(Packed):
    """The same in few launches: attention over batches of documents of similar length, and one copy per document.

    Lengths of one batch have the same power of two above them, so that padding at most doubles what is attended to.
    """

    @cached_property
    def _batches(self) -> list[_Batch]:
        starts = torch.tensor([0, *self.lengths]).cumsum(0)[:-1]
        lengths = torch.tensor(self.lengths)
        widths = [max(SHORTEST, 1 << (length - 1).bit_length()) for length in self.lengths]
        alike = [torch.tensor([width == own for own in widths]) for width in sorted(set(widths))]
        return [self._batch(starts[chosen], lengths[chosen]) for chosen in alike]

    def _batch(self, starts: torch.Tensor, lengths: torch.Tensor) -> _Batch:
        width, device = -(-int(lengths.max()) // 8) * 8, self.tokens.device  # rows of a mask are aligned
        columns = torch.arange(width)
        hidden = columns[None] >= lengths[:, None]
        places = (starts[:, None] + columns[None]).masked_fill(hidden, 0)
        real = (~hidden).reshape(-1).nonzero()[:, 0]
        return _Batch(
            places=places.to(device),
            hidden=hidden.to(device) if bool(hidden.any()) else None,
            real=real.to(device),
            tokens=places.reshape(-1)[real].to(device),
        )

    def attend(self, qkv: torch.Tensor, n_heads: int, scale: float, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See `Packed`."""
        inner = qkv.shape[1] // 3
        result = qkv.new_empty(qkv.shape[0], inner)
        for batch in self._batches:
            padded = qkv[batch.places].view(*batch.places.shape, 3, n_heads, inner // n_heads)
            query, key, value = padded.permute(2, 0, 3, 1, 4).unbind(0)
            mask = batch.mask(bias, qkv.dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
            result[batch.tokens] = attended.transpose(1, 2).reshape(-1, inner)[batch.real]
        return result

    def split(self, kv: Sequence[torch.Tensor], shape: Shape) -> list[DocumentState]:
        """See `Packed`. All layers of a document are one tensor, so that one address leads to every layer."""
        layers = torch.stack(list(kv)).to(shape.numerics.documents)
        heads = layers.view(*layers.shape[:2], 2, shape.n_heads, shape.head_dim)
        parts = torch.split(heads, list(self.lengths), dim=1)
        return [DocumentState(part.permute(0, 2, 3, 1, 4).contiguous().unbind(0)) for part in parts]


ON_DEVICE: dict[str, type[Packed]] = {"cpu": Packed, "cuda": PackedOnGpu}


def pack(contexts: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Pack documents, each given by its token ids."""
    lengths = tuple(len(context) for context in contexts)
    tokens = torch.tensor([token for context in contexts for token in context], dtype=torch.long)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return ON_DEVICE[device.type](tokens.to(device), positions.to(device), lengths)
