"""Query and passage encoders as ONNX graphs that end with the final vector.

Pooling, projection and normalization are inside the graph. For DPR (arXiv 2005.11401, section 2.2) the vector is the
last layer's [CLS] state, without the pooler, and projected only where `projection_dim` is above 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers
from torch import Tensor, nn
from transformers import MODEL_MAPPING, DPRContextEncoder, DPRQuestionEncoder, PreTrainedConfig, PreTrainedTokenizerBase

from checkpoint_import.loading import build_model, longest_input, read_config, read_tokenizer
from checkpoint_import.onnx_export import export_checked
from checkpoint_import.source import Part, Pooling, read_json, read_list, transformer_directory
from checkpoint_import.weights import Weights, read_weights
from ragserve.errors import FailedPreconditionError, InvalidInputError

ACTIVATIONS = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU}
PASSAGE_TEMPLATE = "{title}. {text}"


@dataclass(frozen=True)
class EncoderOptions:
    """What the checkpoint does not say, or what is to be said instead of it.

    `passage_pair`: passages are given as a pair of title and text.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    passage_pair: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class Head:
    """What turns token states into the final vector."""

    pooling: Pooling = "cls"
    normalize: bool = False
    projections: tuple[nn.Module, ...] = ()


class VectorModel(nn.Module):
    """input_ids, attention_mask [batch, seq] to the final vector [batch, dim]."""

    def __init__(self, transformer: nn.Module, head: Head) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling, self.normalize = head.pooling, head.normalize
        self.projections = nn.Sequential(*head.projections)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The final vector of each row."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)[0]
        if self.pooling == "mean":
            weight = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        elif self.pooling == "max":
            pooled = states.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.finfo(states.dtype).min).amax(1)
        else:
            pooled = states[:, 0]
        vector: Tensor = self.projections(pooled)
        return nn.functional.normalize(vector, dim=-1) if self.normalize else vector


def export_encoder(part: Part, out: Path, options: EncoderOptions) -> None:
    """Write `model.onnx`, `tokenizer.json` and `encoder.json` of an encoder into `out`.

    Raises:
        FailedPreconditionError: the checkpoint cannot be read, or the exported graph differs from torch.
        DataLossError: a weight file is truncated.
    """
    config = read_config(part)
    tokenizer = read_tokenizer(part, config)
    weights = read_weights(transformer_directory(part.directory), allow_pickle=options.allow_pickle)
    if part.prefixes:
        weights = weights.below(*part.prefixes)
    model = _build(part, config, weights, options)
    max_length = longest_input(tokenizer, config, transformer_directory(part.directory))
    out.mkdir(parents=True)
    dim = export_checked(model, out / "model.onnx", vocab_size=config.vocab_size, max_length=max_length)
    _write_tokenizer(tokenizer, out / "tokenizer.json", _normalizers(part.directory))
    body = {
        "pooling": model.pooling,
        "normalize": model.normalize,
        "projection": len(model.projections) > 0,
        "dim": dim,
        "max_length": max_length,
        "pad_token_id": int(tokenizer.pad_token_id or 0),
        "passage_template": PASSAGE_TEMPLATE,
        "passage_pair": options.passage_pair,
    }
    (out / "encoder.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def is_dpr_context(part: Part) -> bool:
    """Whether a part is DPR's context encoder, which reads title and text as a pair."""
    return part.config.get("model_type") == "dpr" and "DPRContextEncoder" in (part.config.get("architectures") or [])


def _build(part: Part, config: PreTrainedConfig, weights: Weights, options: EncoderOptions) -> VectorModel:
    if part.config.get("model_type") == "dpr":
        return _build_dpr(config, weights, options)
    transformer = build_model(MODEL_MAPPING[type(config)], config, weights, optional=("pooler.",))
    head = _sentence_transformers_head(part.directory, options.allow_pickle)
    head = replace(head, pooling=options.pooling or head.pooling)
    if options.normalize is not None:
        head = replace(head, normalize=options.normalize)
    return VectorModel(transformer, head).eval()


def _build_dpr(config: PreTrainedConfig, weights: Weights, options: EncoderOptions) -> VectorModel:
    if options.pooling not in (None, "cls"):
        raise InvalidInputError("pooling", f"a DPR encoder's vector is its [CLS] state, not {options.pooling}")
    context = any(name.startswith("ctx_encoder.") for name in weights.tensors)
    model = build_model(DPRContextEncoder if context else DPRQuestionEncoder, config, weights)
    encoder: Any = model.ctx_encoder if context else model.question_encoder
    projections = (encoder.encode_proj,) if config.projection_dim > 0 else ()
    return VectorModel(encoder.bert_model, Head(normalize=bool(options.normalize), projections=projections)).eval()


def _sentence_transformers_head(directory: Path, allow_pickle: bool) -> Head:
    """Pooling, dense layers and normalization as `modules.json` lists them; plain [CLS] without that file."""
    head = Head()
    if not (directory / "modules.json").is_file():
        return head
    pooled = False
    for place, module in enumerate(read_list(directory / "modules.json")):
        name, path = str(module.get("type", "")).rsplit(".", 1)[-1], directory / str(module.get("path", ""))
        if place == 0 and name == "Transformer":
            continue
        if name == "Pooling" and place == 1:
            pooled = True
            head = replace(head, pooling=_pooling_of(path / "config.json"))
        elif name == "Normalize" and pooled:
            head = replace(head, normalize=True)
        elif name == "Dense" and pooled and not head.normalize:
            head = replace(head, projections=(*head.projections, *_dense(path, allow_pickle)))
        else:
            raise FailedPreconditionError(
                f"{directory / 'modules.json'}: a module {name!r} in this place is not supported; "
                "known are Transformer, Pooling, Dense and a final Normalize",
                field=str(directory / "modules.json"),
            )
    if not pooled:
        path = directory / "modules.json"
        raise FailedPreconditionError(f"{path} has no module Pooling after the Transformer", field=str(path))
    return head


def _pooling_of(path: Path) -> Pooling:
    body = read_json(path)
    modes = {
        key.removeprefix("pooling_mode_") for key, value in body.items() if value is True and "pooling_mode_" in key
    }
    modes |= {str(body["pooling_mode"])} if "pooling_mode" in body else set()
    if modes in ({"cls_token"}, {"cls"}):
        return "cls"
    if modes in ({"mean_tokens"}, {"mean"}):
        return "mean"
    if modes in ({"max_tokens"}, {"max"}):
        return "max"
    raise FailedPreconditionError(
        f"{path}: pooling by {sorted(modes)} is not supported, only one of cls, mean and max", field=str(path)
    )


def _dense(directory: Path, allow_pickle: bool) -> tuple[nn.Module, nn.Module]:
    body = read_json(directory / "config.json")
    weights = read_weights(directory, allow_pickle=allow_pickle)
    activation = str(body.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        path = directory / "config.json"
        raise FailedPreconditionError(f"{path}: activation {activation!r} is not supported", field=str(path))
    try:
        layer = nn.Linear(int(body["in_features"]), int(body["out_features"]), bias=bool(body.get("bias", True)))
        layer.load_state_dict(weights.below("linear.").tensors)
    except (KeyError, RuntimeError) as error:
        raise FailedPreconditionError(
            f"{weights.path} does not fit {directory / 'config.json'}: {error}", field=str(weights.path)
        ) from error
    return layer, ACTIVATIONS[activation]()


def _normalizers(directory: Path) -> list[normalizers.Normalizer]:
    """What sentence-transformers does to a text before its tokenizer: strip it, and lower its case if told so."""
    if not (directory / "modules.json").is_file():
        return []
    settings = transformer_directory(directory) / "sentence_bert_config.json"
    lower = settings.is_file() and bool(read_json(settings).get("do_lower_case"))
    return [normalizers.Strip(), *([normalizers.Lowercase()] if lower else [])]


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path, before: list[normalizers.Normalizer]) -> None:
    """The fast tokenizer after some normalizers, neither padding nor truncating: the retriever does both."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    if before:
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([*before, *own])
    backend.save(str(path))
