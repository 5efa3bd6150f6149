"""Encoders of every style that is imported: its vectors are torch's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    DPRContextEncoder,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from checkpoint_import.encoder import EncoderOptions, export_encoder, is_dpr_context
from checkpoint_import.loading import quiet_transformers
from checkpoint_import.recognize import recognize, transformer_directory
from checkpoint_import.source import Part
from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc.encoder import TextEncoder
from tests.tiny import bart_tokenizer, question_tokenizer, tiny_context_encoder, tiny_question_encoder

TEXTS = ["who was born in the old city?", "the moon", ("Great River, it is long and deep. " * 3).strip()]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
SUFFIX = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}

quiet_transformers()


def roberta_tokenizer() -> Any:
    """RoBERTa's: byte-level BPE, <s> and </s> around, <pad> is 1."""
    model = json.loads(bart_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges)  # does not say how long an input may be


def bert(tokenizer: Any) -> Any:
    return BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES))


def distilbert(tokenizer: Any) -> Any:
    sizes = {"n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 48}
    return DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))


def offset(config: type, model: type) -> Callable[[Any], Any]:
    """A model whose positions start after the padding token's id."""

    def make(tokenizer: Any) -> Any:
        return model(config(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **SIZES))

    return make


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "bert": (question_tokenizer, bert),
    "distilbert": (question_tokenizer, distilbert),
    "roberta": (roberta_tokenizer, offset(RobertaConfig, RobertaModel)),
    "xlm-roberta": (roberta_tokenizer, offset(XLMRobertaConfig, XLMRobertaModel)),
    "mpnet": (roberta_tokenizer, offset(MPNetConfig, MPNetModel)),
}


def save(directory: Path, family: str) -> tuple[Any, Any]:
    """Model and tokenizer, saved as transformers does."""
    make_tokenizer, make_model = MODELS[family]
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = make_model(tokenizer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # else it would look as if nobody had trained it
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


def add_modules(directory: Path, modules: dict[str, dict[str, Any]], first: str = "Transformer") -> None:
    """The files of sentence-transformers around a saved model: a folder with config.json for each further module."""
    paths = ["", *(f"{place}_{name}" for place, name in enumerate(modules, start=1))]
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
        for place, (name, path) in enumerate(zip((first, *modules), paths, strict=True))
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    for path, config in zip(paths[1:], modules.values(), strict=True):
        (directory / path).mkdir()
        (directory / path / "config.json").write_text(json.dumps(config))


def dense(activation: str, *, bias: bool = True) -> tuple[dict[str, Any], torch.nn.Linear]:
    """The configuration of a Dense module, and its layer; `write_dense` saves it once its folder is there."""
    layer = torch.nn.Linear(32, 16, bias=bias)
    return {"in_features": 32, "out_features": 16, "bias": bias, "activation_function": activation}, layer


def write_dense(path: Path, layer: torch.nn.Linear) -> None:
    save_file({f"linear.{name}": value for name, value in layer.state_dict().items()}, path / "model.safetensors")


def pooled(model: Any, tokenizer: Any, text: str, pooling: str) -> torch.Tensor:
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0][0]
    return {"cls": states[0], "mean": states.mean(0), "max": states.amax(0)}[pooling]


def load(source: Path, out: Path, options: EncoderOptions | None = None) -> TextEncoder:
    part = Part(source, recognize(source).config, transformer_directory(source))
    export_encoder(part, out, options or EncoderOptions(passage_pair=is_dpr_context(part)))
    return TextEncoder.load(out, device="cpu", threads=1)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_plain_models(tmp_path: Path, family: str, pooling: Any) -> None:
    model, tokenizer = save(tmp_path / "hf", family)
    encoder = load(tmp_path / "hf", tmp_path / "out", EncoderOptions(pooling=pooling))
    assert encoder.config.max_length == 64
    expected = torch.stack([pooled(model, tokenizer, text, pooling) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("pooling", "family"), [("cls", "bert"), ("mean", "mpnet"), ("max", "roberta")])
def test_sentence_transformers_pooling_and_normalization(tmp_path: Path, pooling: str, family: str) -> None:
    model, tokenizer = save(tmp_path / "hf", family)
    modes = {f"pooling_mode_{suffix}": name == pooling for name, suffix in SUFFIX.items()}
    add_modules(tmp_path / "hf", {"Pooling": {"word_embedding_dimension": 32, **modes}, "Normalize": {}})
    encoder = load(tmp_path / "hf", tmp_path / "out")
    assert (encoder.config.pooling, encoder.config.normalize) == (pooling, True)
    expected = torch.stack([pooled(model, tokenizer, text, pooling) for text in TEXTS])
    expected = torch.nn.functional.normalize(expected, dim=-1)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("activation", "bias"), [("Tanh", True), ("Identity", False)])
def test_sentence_transformers_projection(tmp_path: Path, activation: str, bias: bool) -> None:
    model, tokenizer = save(tmp_path / "hf", "distilbert")
    config, layer = dense(f"torch.nn.modules.activation.{activation}", bias=bias)
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode_mean_tokens": True}, "Dense": config})
    write_dense(tmp_path / "hf" / "2_Dense", layer)
    encoder = load(tmp_path / "hf", tmp_path / "out")
    assert (encoder.config.dim, encoder.config.projection, encoder.config.normalize) == (16, True, False)
    expected = torch.stack([pooled(model, tokenizer, text, "mean") for text in TEXTS])
    with torch.no_grad():
        expected = getattr(torch.nn, activation)()(layer(expected))
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected.numpy(), atol=1e-5)


def test_a_transformer_in_its_own_folder_lowers_and_strips_as_told(tmp_path: Path) -> None:
    model, tokenizer = save(tmp_path / "hf" / "0_Transformer", "roberta")
    (tmp_path / "hf" / "0_Transformer" / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 20, "do_lower_case": True})
    )
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode_mean_tokens": True}})
    modules = json.loads((tmp_path / "hf" / "modules.json").read_text())
    (tmp_path / "hf" / "modules.json").write_text(json.dumps([{**modules[0], "path": "0_Transformer"}, modules[1]]))
    encoder = load(tmp_path / "hf", tmp_path / "out")
    assert encoder.config.max_length == 20
    expected = pooled(model, tokenizer, "who was born in the old city?", "mean")
    found = encoder.encode_queries(["  Who was born in the OLD city?\n"])[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("context", [False, True])
def test_dpr_with_projection(tmp_path: Path, context: bool) -> None:
    make = tiny_context_encoder if context else tiny_question_encoder
    model = make(3, projection_dim=12)
    model.save_pretrained(tmp_path / "hf")
    question_tokenizer().save_pretrained(tmp_path / "hf")
    encoder = load(tmp_path / "hf", tmp_path / "out")
    assert isinstance(model, DPRContextEncoder) == context == encoder.config.passage_pair
    assert (encoder.config.dim, encoder.config.projection) == (12, True)
    for text in TEXTS:
        inputs = question_tokenizer()(text, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).pooler_output.numpy()
        found = encoder.encode_queries([text])  # vectors are about 5 long here, from weights that attend sharply
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_another_pooling_than_dpr_has_is_refused(tmp_path: Path) -> None:
    tiny_question_encoder(3).save_pretrained(tmp_path / "hf")
    question_tokenizer().save_pretrained(tmp_path / "hf")
    with pytest.raises(InvalidInputError, match=r"\[CLS\]") as caught:
        load(tmp_path / "hf", tmp_path / "out", EncoderOptions(pooling="mean"))
    assert caught.value.field == "pooling"


@pytest.mark.parametrize(
    ("first", "modules", "said", "field"),
    [
        ("Transformer", {"Pooling": {"pooling_mode_median": True}}, "median is not supported", "1_Pooling/config.json"),
        ("Transformer", {"Pooling": {"pooling_mode": "median"}}, "median is not supported", "1_Pooling/config.json"),
        ("Transformer", {"LSTM": {}}, "'LSTM'", "modules.json"),
        ("Transformer", {"Normalize": {}}, "'Normalize'", "modules.json"),
        ("Transformer", {}, "no module Pooling", "modules.json"),
        ("StaticEmbedding", {"Pooling": {"pooling_mode_mean_tokens": True}}, "'StaticEmbedding'", "modules.json"),
    ],
)
def test_what_is_not_supported_is_refused_by_file(
    tmp_path: Path, first: str, modules: dict[str, Any], said: str, field: str
) -> None:
    save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", modules, first)
    with pytest.raises(FailedPreconditionError, match=said) as caught:
        load(tmp_path / "hf", tmp_path / "out")
    assert caught.value.field.endswith(field)


def test_an_activation_that_is_not_known_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "hf", "bert")
    config, layer = dense("torch.nn.modules.activation.Softsign")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode_mean_tokens": True}, "Dense": config})
    write_dense(tmp_path / "hf" / "2_Dense", layer)
    with pytest.raises(FailedPreconditionError, match="Softsign") as caught:
        load(tmp_path / "hf", tmp_path / "out")
    assert caught.value.field.endswith("2_Dense/config.json")
