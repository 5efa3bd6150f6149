"""T5 (Raffel et al., arXiv 1910.10683), 1.0 and 1.1/flan: pre-RMS-norm, relative position bias, no linear biases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from generator_svc.kernels.program import Attend
from generator_svc.models.base import EncodePass, Rows, SelfAttention, Shape
from generator_svc.models.layers import DecoderLayers
from generator_svc.models.linear import Linear, check_activation, fuse, make_linear
from generator_svc.models.numerics import FLOAT32, Numerics
from generator_svc.models.packing import pack
from generator_svc.weights import WeightMap

TIED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
IGNORED = (
    *TIED,
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
SCALE = 1.0  # T5 does not scale the products of queries and keys


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm: no mean, no bias."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, d_model] -> [rows, d_model]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class FeedForward:
    """Norm, expansion (gated in 1.1), projection, residual."""

    norm: Norm
    up: Linear
    gate: Linear | None
    down: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, d_model] -> [rows, d_model]."""
        normed = self.norm(x)
        expanded = self.up(normed)
        if self.gate is not None:
            expanded = expanded * self.gate(normed)
        return self.down(expanded, residual=x)


@dataclass(frozen=True)
class Attention:
    """Norm and projections of one self-attention."""

    norm: Norm
    qkv: Linear
    out: Linear


@dataclass(frozen=True)
class CrossAttention:
    """Norm and projections of one cross-attention; `kv` runs once per document."""

    norm: Norm
    query: Linear
    kv: Linear
    out: Linear


class RelativeBias:
    """Bias by bucketed distance; beyond `max_distance` every distance is in the last bucket.

    The table holds one row of [n_heads] for each relative position (key minus query) in [-reach, reach].
    """

    def __init__(self, weight: torch.Tensor, *, bidirectional: bool, max_distance: int) -> None:
        self._reach = max_distance
        relative = torch.arange(-max_distance, max_distance + 1)
        buckets = relative_bucket(relative, weight.shape[0], max_distance, bidirectional=bidirectional)
        self._table = weight[buckets.to(weight.device)]

    def __call__(self, relative: torch.Tensor) -> torch.Tensor:
        """Relative positions [...] -> biases [..., n_heads]."""
        return F.embedding(relative.clamp(-self._reach, self._reach) + self._reach, self._table)


def relative_bucket(relative: torch.Tensor, n_buckets: int, max_distance: int, *, bidirectional: bool) -> torch.Tensor:
    """Bucket of each relative position: exact for small distances, logarithmic up to `max_distance`."""
    offset = torch.zeros_like(relative)
    if bidirectional:
        n_buckets //= 2
        offset = (relative > 0).long() * n_buckets
        distance = relative.abs()
    else:
        distance = -torch.clamp(relative, max=0)
    exact = n_buckets // 2
    logarithmic = torch.log(distance.float() / exact) / math.log(max_distance / exact) * (n_buckets - exact)
    large = (exact + logarithmic.clamp(min=0).long()).clamp(max=n_buckets - 1)
    return offset + torch.where(distance < exact, distance, large)


class T5:
    """The model; see `Seq2SeqModel`."""

    def __init__(self, config: Any, weights: WeightMap, device: torch.device, numerics: Numerics = FLOAT32) -> None:
        load = _Loader(config, weights, device, numerics)
        self._device = device
        self._numerics = numerics
        self.shape = Shape(
            vocab_size=config.vocab_size,
            n_layers=config.num_decoder_layers,
            n_heads=config.num_heads,
            head_dim=config.d_kv,
            scale=SCALE,
            max_source_tokens=None,
            max_target_tokens=None,
            numerics=numerics,
        )
        self._output_scale: float = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self._head = load.head()
        self._encoder_words, self._decoder_words = load.words("encoder"), load.words("decoder")
        weights.forget_shared()
        self._encoder_bias, self._decoder_bias = load.bias("encoder"), load.bias("decoder")
        self._encoder = [
            (load.attention(f"encoder.block.{i}.layer.0"), load.feed_forward(f"encoder.block.{i}.layer.1"))
            for i in range(config.num_layers)
        ]
        self._decoder = [
            (
                load.attention(f"decoder.block.{i}.layer.0"),
                load.cross_attention(f"decoder.block.{i}.layer.1"),
                load.feed_forward(f"decoder.block.{i}.layer.2"),
            )
            for i in range(config.num_decoder_layers)
        ]
        self._decoder_layers = DecoderLayers(self._decode_layers, config.d_model, self.shape)
        self._encoder_norm = load.norm("encoder.final_layer_norm")
        self._decoder_norm = load.norm("decoder.final_layer_norm")
        weights.finish(IGNORED)

    def encode(self, contexts: Sequence[Sequence[int]]) -> EncodePass:
        """See `Seq2SeqModel`."""
        packed = pack(contexts, self._device)
        positions = torch.arange(max(packed.lengths), device=self._device)
        bias = self._encoder_bias(positions[None, :] - positions[:, None]).permute(2, 0, 1).contiguous()
        x = F.embedding(packed.tokens, self._encoder_words).to(self._numerics.activations)
        for attention, feed_forward in self._encoder:
            qkv = attention.qkv(attention.norm(x))
            x = attention.out(packed.attend(qkv, self.shape.n_heads, SCALE, bias), residual=x)
            x = feed_forward(x)
        x = self._encoder_norm(x)
        return EncodePass(packed.split([cross.kv(x) for _, cross, _ in self._decoder], self.shape), x.shape[0])

    def decode(self, rows: Rows, attention: SelfAttention) -> torch.Tensor:
        """See `Seq2SeqModel`."""
        attention.start(lambda distances: self._decoder_bias(-distances))
        x = F.embedding(rows.tokens, self._decoder_words).to(self._numerics.activations)
        return self._decoder_norm(self._decoder_layers(x, attention, rows.documents))

    def _decode_layers(self, x: torch.Tensor, attention: Attend, documents: Attend) -> torch.Tensor:
        for i, (own, cross, feed_forward) in enumerate(self._decoder):
            x = own.out(attention.attend(i, own.qkv(own.norm(x))), residual=x)
            attended = documents.attend(i, cross.query(cross.norm(x)))
            x = feed_forward(cross.out(attended, residual=x))
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Seq2SeqModel`."""
        return self._head(hidden * self._output_scale).float()


class _Loader:
    """Builds the layers from the checkpoint's tensors, by their Hugging Face names."""

    def __init__(self, config: Any, weights: WeightMap, device: torch.device, numerics: Numerics) -> None:
        self._config = config
        self._weights = weights
        self._device = device
        self._numerics = numerics
        self._width: int = config.d_model
        self._inner: int = config.num_heads * config.d_kv
        self._activation = check_activation(config.dense_act_fn)

    def _take(self, name: str, *shape: int) -> torch.Tensor:
        return self._weights.take(name, shape).to(self._device, self._numerics.activations)

    def _linear(self, names: Sequence[str], out: int, width: int, activation: str = "none") -> Linear:
        return make_linear(
            fuse(*[self._take(f"{name}.weight", out, width) for name in names]), None, activation, self._numerics
        )

    def words(self, part: str) -> torch.Tensor:
        """The word embedding of `encoder` or `decoder`."""
        names = (f"{part}.embed_tokens.weight", *TIED)
        size = (self._config.vocab_size, self._width)
        return self._weights.take_first(names, size, self._device, self._numerics.embeddings)

    def head(self) -> Linear:
        """The output projection: its own weight where the checkpoint has one, else the word embedding."""
        names = ("lm_head.weight", *TIED)
        size = (self._config.vocab_size, self._width)
        weight = self._weights.take_first(names, size, self._device, self._numerics.activations)
        return make_linear(weight, numerics=self._numerics, fine=True)

    def norm(self, name: str) -> Norm:
        """One RMS norm."""
        return Norm(self._take(f"{name}.weight", self._width), self._config.layer_norm_epsilon)

    def bias(self, part: str) -> RelativeBias:
        """The relative position bias of `encoder` or `decoder`, shared by its layers."""
        name = f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weight = self._take(name, self._config.relative_attention_num_buckets, self._config.num_heads)
        max_distance = self._config.relative_attention_max_distance
        return RelativeBias(weight, bidirectional=part == "encoder", max_distance=max_distance)

    def attention(self, name: str) -> Attention:
        """One self-attention."""
        own = f"{name}.SelfAttention"
        return Attention(
            norm=self.norm(f"{name}.layer_norm"),
            qkv=self._linear([f"{own}.q", f"{own}.k", f"{own}.v"], self._inner, self._width),
            out=self._linear([f"{own}.o"], self._width, self._inner),
        )

    def cross_attention(self, name: str) -> CrossAttention:
        """One cross-attention."""
        cross = f"{name}.EncDecAttention"
        return CrossAttention(
            norm=self.norm(f"{name}.layer_norm"),
            query=self._linear([f"{cross}.q"], self._inner, self._width),
            kv=self._linear([f"{cross}.k", f"{cross}.v"], self._inner, self._width),
            out=self._linear([f"{cross}.o"], self._width, self._inner),
        )

    def feed_forward(self, name: str) -> FeedForward:
        """One feed-forward block; 1.1 gates the expansion with a second projection."""
        dense, gated = f"{name}.DenseReluDense", self._config.is_gated_act
        first = f"{dense}.wi_0" if gated else f"{dense}.wi"
        return FeedForward(
            norm=self.norm(f"{name}.layer_norm"),
            up=self._linear([first], self._config.d_ff, self._width, self._activation),
            gate=self._linear([f"{dense}.wi_1"], self._config.d_ff, self._width) if gated else None,
            down=self._linear([f"{dense}.wo"], self._width, self._config.d_ff),
        )
