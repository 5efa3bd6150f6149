"""BART (Lewis et al., arXiv 1910.13461): post-layer-norm encoder-decoder with learned positions."""

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

POSITION_OFFSET = 2  # the first two rows of the position table are not positions
NORM_EPS = 1e-5
TIED = ("shared.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
IGNORED = ("encoder.version", "decoder.version", *TIED)


@dataclass(frozen=True)
class Norm:
    """LayerNorm with weight and bias."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, d_model] -> [rows, d_model]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPS)


@dataclass(frozen=True)
class Embedding:
    """Scaled word embedding plus learned position, then LayerNorm."""

    words: torch.Tensor
    positions: torch.Tensor
    norm: Norm
    scale: float

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[rows], [rows] -> [rows, d_model]."""
        words = F.embedding(tokens, self.words).to(self.positions.dtype) * self.scale
        return self.norm(words + F.embedding(positions + POSITION_OFFSET, self.positions))


@dataclass(frozen=True)
class FeedForward:
    """Two linear maps with the activation between, residual and LayerNorm."""

    up: Linear
    down: Linear
    norm: Norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, d_model] -> [rows, d_model]."""
        return self.norm(self.down(self.up(x), residual=x))


@dataclass(frozen=True)
class EncoderLayer:
    """Self-attention and feed-forward."""

    qkv: Linear
    out: Linear
    norm: Norm
    feed_forward: FeedForward


@dataclass(frozen=True)
class DecoderLayer:
    """Self-attention, cross-attention and feed-forward; `cross_kv` runs once per document."""

    qkv: Linear
    out: Linear
    norm: Norm
    cross_query: Linear
    cross_kv: Linear
    cross_out: Linear
    cross_norm: Norm
    feed_forward: FeedForward


class Bart:
    """The model; see `Seq2SeqModel`."""

    def __init__(self, config: Any, weights: WeightMap, device: torch.device, numerics: Numerics = FLOAT32) -> None:
        load = _Loader(config, weights, device, numerics)
        self._device = device
        self.shape = Shape(
            vocab_size=config.vocab_size,
            n_layers=config.decoder_layers,
            n_heads=config.decoder_attention_heads,
            head_dim=config.d_model // config.decoder_attention_heads,
            scale=(config.d_model // config.decoder_attention_heads) ** -0.5,
            max_source_tokens=config.max_position_embeddings,
            max_target_tokens=config.max_position_embeddings,
            numerics=numerics,
        )
        self._encoder_heads: int = config.encoder_attention_heads
        self._encoder_scale = (config.d_model // self._encoder_heads) ** -0.5
        self._head = load.head()
        self._encoder_embedding = load.embedding("encoder")
        self._decoder_embedding = load.embedding("decoder")
        weights.forget_shared()
        self._encoder = [load.encoder_layer(f"encoder.layers.{i}") for i in range(config.encoder_layers)]
        self._decoder = [load.decoder_layer(f"decoder.layers.{i}") for i in range(config.decoder_layers)]
        self._decoder_layers = DecoderLayers(self._decode_layers, config.d_model, self.shape)
        weights.finish(IGNORED)

    def encode(self, contexts: Sequence[Sequence[int]]) -> EncodePass:
        """See `Seq2SeqModel`."""
        packed = pack(contexts, self._device)
        x = self._encoder_embedding(packed.tokens, packed.positions)
        for layer in self._encoder:
            attended = packed.attend(layer.qkv(x), self._encoder_heads, self._encoder_scale)
            x = layer.feed_forward(layer.norm(layer.out(attended, residual=x)))
        return EncodePass(packed.split([layer.cross_kv(x) for layer in self._decoder], self.shape), x.shape[0])

    def decode(self, rows: Rows, attention: SelfAttention) -> torch.Tensor:
        """See `Seq2SeqModel`."""
        attention.start(None)
        x = self._decoder_embedding(rows.tokens, rows.positions)
        return self._decoder_layers(x, attention, rows.documents)

    def _decode_layers(self, x: torch.Tensor, attention: Attend, documents: Attend) -> torch.Tensor:
        for i, layer in enumerate(self._decoder):
            x = layer.norm(layer.out(attention.attend(i, layer.qkv(x)), residual=x))
            attended = documents.attend(i, layer.cross_query(x))
            x = layer.cross_norm(layer.cross_out(attended, residual=x))
            x = layer.feed_forward(x)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Seq2SeqModel`."""
        return self._head(hidden).float()


class _Loader:
    """Builds the layers from the checkpoint's tensors, by their Hugging Face names without `model.`."""

    def __init__(self, config: Any, weights: WeightMap, device: torch.device, numerics: Numerics) -> None:
        self._config = config
        self._weights = weights
        self._device = device
        self._numerics = numerics
        self._width: int = config.d_model
        self._activation = check_activation(config.activation_function)

    def _take(self, name: str, *shape: int) -> torch.Tensor:
        return self._weights.take(name, shape).to(self._device, self._numerics.activations)

    def _norm(self, name: str) -> Norm:
        return Norm(self._take(f"{name}.weight", self._width), self._take(f"{name}.bias", self._width))

    def _linear(self, names: Sequence[str], out: int, width: int, activation: str = "none") -> Linear:
        weight = fuse(*[self._take(f"{name}.weight", out, width) for name in names])
        bias = fuse(*[self._take(f"{name}.bias", out) for name in names])
        return make_linear(weight, bias, activation, self._numerics)

    def _square(self, *names: str) -> Linear:
        return self._linear(names, self._width, self._width)

    def _words(self, dtype: torch.dtype, *names: str) -> torch.Tensor:
        return self._weights.take_first(names, (self._config.vocab_size, self._width), self._device, dtype)

    def embedding(self, part: str) -> Embedding:
        """The embedding of `encoder` or `decoder`."""
        rows = self._config.max_position_embeddings + POSITION_OFFSET
        return Embedding(
            words=self._words(self._numerics.embeddings, f"{part}.embed_tokens.weight", *TIED, "lm_head.weight"),
            positions=self._take(f"{part}.embed_positions.weight", rows, self._width),
            norm=self._norm(f"{part}.layernorm_embedding"),
            scale=math.sqrt(self._width) if self._config.scale_embedding else 1.0,
        )

    def _feed_forward(self, name: str, inner: int) -> FeedForward:
        return FeedForward(
            up=self._linear([f"{name}.fc1"], inner, self._width, self._activation),
            down=self._linear([f"{name}.fc2"], self._width, inner),
            norm=self._norm(f"{name}.final_layer_norm"),
        )

    def encoder_layer(self, name: str) -> EncoderLayer:
        """One encoder layer."""
        attention = f"{name}.self_attn"
        return EncoderLayer(
            qkv=self._square(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            out=self._square(f"{attention}.out_proj"),
            norm=self._norm(f"{name}.self_attn_layer_norm"),
            feed_forward=self._feed_forward(name, self._config.encoder_ffn_dim),
        )

    def decoder_layer(self, name: str) -> DecoderLayer:
        """One decoder layer."""
        attention, cross = f"{name}.self_attn", f"{name}.encoder_attn"
        return DecoderLayer(
            qkv=self._square(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            out=self._square(f"{attention}.out_proj"),
            norm=self._norm(f"{name}.self_attn_layer_norm"),
            cross_query=self._square(f"{cross}.q_proj"),
            cross_kv=self._square(f"{cross}.k_proj", f"{cross}.v_proj"),
            cross_out=self._square(f"{cross}.out_proj"),
            cross_norm=self._norm(f"{name}.encoder_attn_layer_norm"),
            feed_forward=self._feed_forward(name, self._config.decoder_ffn_dim),
        )

    def head(self) -> Linear:
        """The output projection: the word embedding where tied, plus `final_logits_bias`."""
        size = self._config.vocab_size
        names = ["lm_head.weight"]
        if self._config.tie_word_embeddings:
            names += TIED
        bias = None
        if "final_logits_bias" in self._weights:
            bias = self._take("final_logits_bias", 1, size).reshape(size).contiguous()
        words = self._words(self._numerics.activations, *names)
        return make_linear(words, bias, numerics=self._numerics, fine=True)
