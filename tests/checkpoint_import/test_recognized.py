"""What a user may bring that is not served: one error that says what was recognized, where, and what is supported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoint_import import ImportOptions, import_checkpoint
from checkpoint_import.recognize import recognize
from ragserve.errors import DataLossError, InvalidInputError, NotFoundError, RagserveError
from tests.tiny import question_tokenizer, save_generator, save_question_encoder

SUPPORTED = r"ragserve serves RAG composites.*'bart'.*'t5'.*DPR, BERT.*sentence-transformers"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_question_encoder(tmp_path_factory.mktemp("hf") / "encoder")


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("hf") / "generator", "bart")


def folder(directory: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """A folder with a configuration and further JSON files, `__` standing for the point of a name."""
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    for name, body in files.items():
        (directory / name.replace("__", ".")).write_text(json.dumps(body))
    return directory


# model_type, architectures: the label and what it is said to be.
MODELS: dict[tuple[str, str], str] = {
    ("mbart", "MBartForConditionalGeneration"): "mBART (model_type 'mbart'), an encoder-decoder",
    ("pegasus", "PegasusForConditionalGeneration"): "Pegasus (model_type 'pegasus'), an encoder-decoder",
    ("mt5", "MT5ForConditionalGeneration"): "mT5 (model_type 'mt5'), an encoder-decoder",
    ("umt5", "UMT5ForConditionalGeneration"): "UMT5 (model_type 'umt5'), an encoder-decoder",
    ("led", "LEDForConditionalGeneration"): "LED (model_type 'led'), an encoder-decoder",
    ("marian", "MarianMTModel"): "MarianMT (model_type 'marian'), an encoder-decoder",
    ("whatever", "WhateverForConditionalGeneration"): "model_type 'whatever', an encoder-decoder",
    ("gpt2", "GPT2LMHeadModel"): "GPT-2 (model_type 'gpt2'), a decoder-only language model",
    ("llama", "LlamaForCausalLM"): "Llama (model_type 'llama'), a decoder-only language model",
    ("qwen2", "Qwen2ForCausalLM"): "Qwen2 (model_type 'qwen2'), a decoder-only language model",
    ("tomorrow", "TomorrowForCausalLM"): "model_type 'tomorrow', a decoder-only language model",
    ("bart", "BartForSequenceClassification"): "BART (model_type 'bart'), trained as BartForSequenceClassification",
}


def config_of(model_type: str, architecture: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "is_encoder_decoder": architecture.endswith("ForConditionalGeneration"),
    }


@pytest.mark.parametrize(("model_type", "architecture"), MODELS)
def test_models_that_are_not_served(tmp_path: Path, encoder: Path, model_type: str, architecture: str) -> None:
    source = folder(tmp_path / "hf", config_of(model_type, architecture))
    said = f"{source} is recognized as {MODELS[model_type, architecture]}"
    with pytest.raises(InvalidInputError, match=SUPPORTED) as caught:
        import_checkpoint(source, tmp_path / "model", ImportOptions(question_encoder=encoder))
    assert (caught.value.field, caught.value.message.startswith(said)) == ("src", True)
    for field in ("generator", "passage_encoder", "question_encoder"):
        folder(tmp_path / "bart", config_of("bart", "BartForConditionalGeneration"), tokenizer__json={})
        first = encoder if field == "generator" else tmp_path / "bart"
        options = {"question_encoder": encoder} if field == "passage_encoder" else {}
        with pytest.raises(InvalidInputError, match=SUPPORTED) as caught:
            import_checkpoint(first, tmp_path / "model", ImportOptions(**{**options, field: source}))
        flag = "--" + field.replace("_", "-")
        assert (caught.value.field, caught.value.message.startswith(said)) == (field, True)
        assert f"{flag} needs " in caught.value.message


def empty(directory: Path) -> Path:
    return folder(directory)


def only_pickle(directory: Path) -> Path:
    (folder(directory) / "pytorch_model.bin").write_bytes(b"weights")
    return directory


def gguf_folder(directory: Path) -> Path:
    (folder(directory) / "model-q4.gguf").write_bytes(b"GGUF")
    return directory


def gguf_file(directory: Path) -> Path:
    return gguf_folder(directory) / "model-q4.gguf"


def snapshot(directory: Path) -> Path:
    folder(directory / "snapshots" / "abc", config_of("bart", "BartModel"))
    return directory


def shards_without_index(directory: Path) -> Path:
    folder(directory, {**config_of("bert", "BertModel"), "vocab_size": 400})
    question_tokenizer().save_pretrained(directory)
    save_file({"x": torch.zeros(1)}, directory / "model-00001-of-00002.safetensors")
    return directory


def missing_shard(directory: Path) -> Path:
    shards_without_index(directory)
    shards = {name: f"model-0000{name}-of-00002.safetensors" for name in ("1", "2")}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return directory


def pointer(directory: Path) -> Path:
    folder(directory, {**config_of("bert", "BertModel"), "vocab_size": 400})
    question_tokenizer().save_pretrained(directory)
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    return directory


FOLDERS: dict[str, tuple[Callable[[Path], Path], type[RagserveError], str]] = {
    "nothing": (lambda path: path, NotFoundError, "is not a directory: nothing is there"),
    "empty": (empty, NotFoundError, rf"config.json is missing: the folder is empty. {SUPPORTED}"),
    "a pickle alone": (only_pickle, NotFoundError, "the folder holds pytorch_model.bin: download the whole"),
    "adapter": (
        lambda path: folder(path, adapter_config__json={"base_model_name_or_path": "org/base"}),
        NotFoundError,
        "only an adapter of org/base .*merge it",
    ),
    "gguf": (gguf_folder, NotFoundError, rf"holds GGUF files, the format of llama.cpp.*{SUPPORTED}"),
    "gguf file": (gguf_file, NotFoundError, rf"not a directory but a GGUF file.*{SUPPORTED}"),
    "a file": (
        lambda path: folder(path, {"model_type": "bart"}) / "config.json",
        NotFoundError,
        "not a directory but a file: name the folder",
    ),
    "hub cache": (snapshot, NotFoundError, "it may be in snapshots/abc below it: name that folder"),
    "model directory": (
        lambda path: folder(path, ragserve__json={}),
        NotFoundError,
        "a model directory of ragserve already .*ragserve up --model",
    ),
    "no model_type": (
        lambda path: folder(path, {"architectures": ["BertModel"]}),
        RagserveError,
        r"names no model_type \(architectures: BertModel\)",
    ),
    "quantized": (
        lambda path: folder(path, {"model_type": "bart", "quantization_config": {"quant_method": "gptq"}}),
        RagserveError,
        "quantized with gptq",
    ),
    "shards without index": (
        shards_without_index,
        NotFoundError,
        r"no weights: .*shards without their index: download model.safetensors.index.json too",
    ),
    "missing shard": (missing_shard, NotFoundError, r"model-00002-of-00002.safetensors is missing.*1 of 2 shards"),
    "lfs": (pointer, DataLossError, "pointer of Git LFS.*git lfs pull"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_hold_no_model(tmp_path: Path, generator: Path, name: str) -> None:
    make, error, message = FOLDERS[name]
    source = make(tmp_path / "hf")
    for src, options in ((source, {"generator": generator}), (generator, {"question_encoder": source})):
        with pytest.raises(error, match=message) as caught:
            import_checkpoint(src, tmp_path / "model", ImportOptions(**options))
        assert str(source) in caught.value.message
        assert not (tmp_path / "model").exists()


def test_halves_in_each_others_place(tmp_path: Path, encoder: Path, generator: Path) -> None:
    cases = (
        (encoder, {"question_encoder": encoder}, "question_encoder", "already.*Name the other half.*--generator"),
        (
            encoder,
            {"question_encoder": generator},
            "question_encoder",
            "DPR.*already.*recognized as BART.*--generator",
        ),
        (generator, {"generator": encoder}, "generator", "BART.*already.*is recognized as DPR.*--question-encoder"),
        (encoder, {"generator": encoder}, "generator", "DPR .*--generator needs a BART or T5 generator"),
        (encoder, {}, "generator", "DPR .*half of a pair: name the folder of the generator as well, with --generator"),
        (generator, {}, "question_encoder", "BART .*name the folder of the encoder as well, with --question-encoder"),
    )
    for src, options, field, message in cases:
        with pytest.raises(InvalidInputError, match=message) as caught:
            import_checkpoint(src, tmp_path / "model", ImportOptions(**options))
        assert caught.value.field == field


def test_a_configuration_that_transformers_does_not_know(tmp_path: Path, generator: Path) -> None:
    own = {"model_type": "nomic_bert_own", "auto_map": {"AutoModel": "own.Model"}, "architectures": ["OwnBertModel"]}
    source = folder(tmp_path / "hf", own)
    question_tokenizer().save_pretrained(source)
    with pytest.raises(RagserveError, match=f"does not know model_type 'nomic_bert_own' .*own code.*{SUPPORTED}"):
        import_checkpoint(source, tmp_path / "model", ImportOptions(generator=generator))


def test_an_encoder_of_something_else_than_text(tmp_path: Path, generator: Path) -> None:
    source = folder(tmp_path / "hf", {"model_type": "vit", "architectures": ["ViTModel"], "vocab_size": 400})
    question_tokenizer().save_pretrained(source)
    save_file({"x": torch.zeros(1)}, source / "model.safetensors")
    with pytest.raises(RagserveError, match="model_type 'vit' is no encoder of texts"):
        import_checkpoint(source, tmp_path / "model", ImportOptions(generator=generator))


def test_what_is_served_is_recognized(encoder: Path, generator: Path, bart_composite: Path, tmp_path: Path) -> None:
    assert [recognize(path).role for path in (encoder, generator, bart_composite)] == ["encoder", "generator", "rag"]
    for model_type in ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "nomic_bert", "modernbert", "albert"):
        assert recognize(folder(tmp_path / model_type, {"model_type": model_type})).role == "encoder"
    assert recognize(folder(tmp_path / "t5e", config_of("t5", "T5EncoderModel"))).role == "encoder"
    for model_type in ("qwen3", "gemma3_text", "t5"):  # as Qwen3-Embedding, EmbeddingGemma and GTR
        source = folder(tmp_path / model_type, {"model_type": model_type}, modules__json=[{"path": ""}])
        assert recognize(source).role == "encoder"
