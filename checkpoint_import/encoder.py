"""Query and passage encoders as ONNX graphs that end with the final vector.

Pooling, projection and normalization are inside the graph. For DPR (arXiv 2005.11401, section 2.2) the vector is the
last layer's [CLS] state, without the pooler, and projected only where `projection_dim` is above 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from transformers import (
    MODEL_MAPPING,
    DPRContextEncoder,
    DPRQuestionEncoder,
    MT5EncoderModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    UMT5EncoderModel,
)

from checkpoint_import.loading import beyond_vocabulary, build_model, longest_input, read_config, read_tokenizer
from checkpoint_import.onnx_export import export_checked
from checkpoint_import.prompts import EncoderSettings, read_settings
from checkpoint_import.recognize import heads_of, transformer_directory
from checkpoint_import.sentence_transformers import SentenceFolder, read_folder
from checkpoint_import.source import Part
from checkpoint_import.vector_model import Head, PoolingMode, VectorModel
from checkpoint_import.weights import Weights, read_weights
from ragserve.clean_up import cleans_up
from ragserve.errors import FailedPreconditionError, InvalidInputError
from ragserve.files import is_about_access
from ragserve.untrained import looks_untrained, untrained_warning

SPLITS_SPECIAL = "split_special_tokens, which is not served: a special token in a text is read as one token"
PASSAGE_TEMPLATE = "{title}. {text}"
ENCODER_HALVES = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}
# Architectures of models that were not trained to make vectors, and what they were trained for.
OTHER_TRAINING = {
    "ForMaskedLM": "to guess masked words",
    "ForPreTraining": "to guess masked words",
    "ForSequenceClassification": "to classify texts or to score pairs of them",
    "ForTokenClassification": "to label words",
    "ForQuestionAnswering": "to mark answers in a text",
    "ForMultipleChoice": "to choose among texts",
}


@dataclass(frozen=True)
class EncoderOptions:
    """Settings that the checkpoint lacks, or that take the place of its own.

    `passage_pair`: passages are given as a pair of title and text. A prompt of None is the checkpoint's.
    """

    pooling: PoolingMode | None = None
    normalize: bool | None = None
    passage_pair: bool = False
    allow_pickle: bool = False
    query_prompt: str | None = None
    passage_prompt: str | None = None


@dataclass(frozen=True)
class ExportedEncoder:
    """The prompts of an encoder that was written, and what the user should know about it."""

    query_prompt: str
    passage_prompt: str
    warnings: tuple[str, ...]


def export_encoder(part: Part, out: Path, options: EncoderOptions) -> ExportedEncoder:
    """Write `model.onnx`, `tokenizer.json` and `encoder.json` of an encoder into `out`.

    Raises:
        FailedPreconditionError: the checkpoint cannot be read, or the exported graph differs from torch.
        DataLossError: a weight file is truncated.
    """
    config = read_config(part)
    settings = _overridden(read_settings(part.directory), options)
    folder = read_folder(part.directory, allow_pickle=options.allow_pickle)
    tokenizer = read_tokenizer(part, config, folder.tokenizer if folder else {})
    weights = read_weights(transformer_directory(part.directory), allow_pickle=options.allow_pickle)
    if part.prefixes:
        weights = weights.below(*part.prefixes)
    model = _build(part, config, weights, _head(folder, settings, options))
    max_length = longest_input(tokenizer, config, folder.max_length if folder else None)
    out.mkdir(parents=True)
    try:
        dim = export_checked(model, out / "model.onnx", vocab_size=config.vocab_size, max_length=max_length)
    except FailedPreconditionError as error:
        if error.__cause__ is not None and is_about_access(error.__cause__):
            raise  # the disk is at fault, not the checkpoint
        raise FailedPreconditionError(
            f"{part.directory} (model_type {config.model_type!r}) cannot be served as an encoder: {error.message}",
            field=str(part.directory),
        ) from error
    _write_tokenizer(tokenizer, out / "tokenizer.json", _normalizers(folder, settings))
    body = {
        "pooling": "+".join(model.head.pooling),
        "normalize": model.head.normalize,
        "projection": len(model.projections) > 0,
        "dim": dim,
        "max_length": max_length,
        "pad_token_id": int(tokenizer.pad_token_id or 0),
        "passage_template": PASSAGE_TEMPLATE,
        "passage_pair": options.passage_pair,
        **_exceptions(tokenizer, config, settings, model.head),
    }
    (out / "encoder.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    warnings = (*settings.warnings, *_warnings(part, folder))
    if tokenizer.split_special_tokens:
        warnings = (*warnings, f"{part.tokenizer / 'tokenizer_config.json'} sets {SPLITS_SPECIAL}")
    if looks_untrained(weights.tensors, weights.tensors.__getitem__):
        warnings = (*warnings, untrained_warning("encoder"))
    return ExportedEncoder(settings.query, settings.passage, warnings)


def _exceptions(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, settings: EncoderSettings, head: Head
) -> dict[str, Any]:
    """Entries of `encoder.json` that few encoders need.

    Others leave them out, so that the file stays as it was: a knowledge base knows its encoder by the file's hash.
    """
    found: dict[str, Any] = {}
    if settings.query:
        found["query_prompt"] = settings.query
    if settings.passage:
        found["passage_prompt"] = settings.passage
    if found and not head.include_prompt:
        found["pools_prompt"] = False
    if tokenizer.truncation_side == "left":
        found["truncation_side"] = "left"
    if beyond_vocabulary(tokenizer, config.vocab_size):
        found["vocab_size"] = int(config.vocab_size)
    if cleans_up(tokenizer):
        found["cleans_up"] = True
    return found


def _overridden(settings: EncoderSettings, options: EncoderOptions) -> EncoderSettings:
    query = settings.query if options.query_prompt is None else options.query_prompt
    passage = settings.passage if options.passage_prompt is None else options.passage_prompt
    return replace(settings, query=query, passage=passage)


def _head(folder: SentenceFolder | None, settings: EncoderSettings, options: EncoderOptions) -> Head:
    """The head of the folder, or plain [CLS] without a folder. Options of the caller take precedence.

    Vectors that are compared by cosine are scaled to length 1, so that an inner product is the cosine.
    """
    head = folder.head if folder else Head()
    if settings.cosine:
        head = replace(head, normalize=True)
    if options.pooling is not None:
        head = replace(head, pooling=(options.pooling,))
    if options.normalize is not None:
        head = replace(head, normalize=options.normalize)
    return head if settings.query or settings.passage else replace(head, include_prompt=True)


def _warnings(part: Part, folder: SentenceFolder | None) -> tuple[str, ...]:
    """What the user should check: settings that are ignored, and models that were not trained to make vectors."""
    if folder is not None:
        return folder.warnings
    heads = heads_of(part.config)
    return tuple(
        f"{part.directory} ({head}) was trained {training}, not to make vectors for search: "
        "it may find poor passages; an encoder such as DPR or one of sentence-transformers finds better ones"
        for head in heads
        for ending, training in OTHER_TRAINING.items()
        if head.endswith(ending)
    )


def is_dpr_context(part: Part) -> bool:
    """Whether a part is DPR's context encoder, which reads title and text as a pair."""
    return part.config.get("model_type") == "dpr" and "DPRContextEncoder" in heads_of(part.config)


def _build(part: Part, config: PreTrainedConfig, weights: Weights, head: Head) -> VectorModel:
    if part.config.get("model_type") == "dpr":
        return _build_dpr(part, config, weights, head)
    path = transformer_directory(part.directory) / "config.json"
    half = ENCODER_HALVES.get(config.model_type)
    model_class: Any = half or MODEL_MAPPING.get(type(config), None)
    if model_class is None or not {"input_ids", "attention_mask"} <= set(signature(model_class.forward).parameters):
        raise FailedPreconditionError(
            f"{path}: model_type {config.model_type!r} is no encoder of texts: an encoder reads input_ids and "
            "attention_mask, as BERT does",
            field=str(path),
        )
    transformer = build_model(model_class, config, weights, optional=("pooler.",))
    return VectorModel(transformer, head).eval()


def _build_dpr(part: Part, config: PreTrainedConfig, weights: Weights, head: Head) -> VectorModel:
    if head.pooling != ("cls",):
        raise InvalidInputError("pooling", f"a DPR encoder's vector is its [CLS] state, not {'+'.join(head.pooling)}")
    if "DPRReader" in heads_of(part.config):
        raise FailedPreconditionError(
            f"{part.directory} is DPR's reader, which marks answers in passages: take its question encoder",
            field=str(part.directory),
        )
    context = any(name.startswith("ctx_encoder.") for name in weights.tensors)
    model = build_model(DPRContextEncoder if context else DPRQuestionEncoder, config, weights)
    encoder: Any = model.ctx_encoder if context else model.question_encoder
    projections = (encoder.encode_proj,) if config.projection_dim > 0 else ()
    return VectorModel(encoder.bert_model, replace(head, projections=projections)).eval()


def _normalizers(folder: SentenceFolder | None, settings: EncoderSettings) -> list[normalizers.Normalizer]:
    """What sentence-transformers does to a text before its tokenizer: strip it, and lower its case if told so.

    With a prompt the retriever strips the text that follows the prompt: a normalizer would strip between special tokens
    of the prompt too.
    """
    if folder is None:
        return []
    strip = [] if settings.query or settings.passage else [normalizers.Strip()]
    return [*strip, *([normalizers.Lowercase()] if folder.lower_case else [])]


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path, before: list[normalizers.Normalizer]) -> None:
    """The fast tokenizer after some normalizers, neither padding nor truncating: the retriever does both."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    if before:
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([*before, *own])
    backend.save(str(path))
