"""Folders of sentence-transformers: vectors are those of a reference that is written here from its documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

from checkpoint_import import ImportOptions, import_checkpoint
from checkpoint_import.encoder import EncoderOptions, export_encoder
from checkpoint_import.recognize import recognize
from checkpoint_import.sentence_transformers import read_folder
from checkpoint_import.source import Part
from ragserve.checkpoint import load_manifest
from ragserve.errors import FailedPreconditionError
from retriever_svc.encoder import TextEncoder
from retriever_svc.types import Passage
from tests.checkpoint_import.test_encoder_styles import add_modules, load, roberta_tokenizer, save
from tests.tiny import question_tokenizer, save_generator

QUESTIONS = ["who was born in the old city?", "the moon", ("which river is long " * 4).strip()]
PASSAGE = Passage("1", "Great River", "it is long and deep.")
PROMPTS = {"query": "query: ", "passage": "passage: "}


def reference(
    model: Any, tokenizer: Any, text: str, pooling: str, prompt: str = "", *, include_prompt: bool = True
) -> torch.Tensor:
    """`SentenceTransformer.encode` of one text: the prompt is put before it; pooling may leave the prompt's tokens out.

    A special token that ends the tokenized prompt does not count as one of the prompt's.
    """
    inputs = tokenizer(prompt + text, return_tensors="pt", truncation=True, max_length=48)
    with torch.no_grad():
        states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0][0]
    first = 0
    if prompt and not include_prompt:
        ids = tokenizer(prompt)["input_ids"]
        first = len(ids) - (ids[-1] in tokenizer.all_special_ids)
    used = states[first:]
    weights = torch.arange(first + 1, len(states) + 1, dtype=torch.float32)[:, None]
    vectors = {
        "cls": used[0],
        "max": used.amax(0),
        "mean": used.mean(0),
        "mean_sqrt_len_tokens": used.sum(0) / len(used) ** 0.5,
        "weightedmean": (used * weights).sum(0) / weights.sum(),
        "lasttoken": states[-1],
    }
    return torch.cat([vectors[mode] for mode in pooling.split("+")])


def add_settings(directory: Path, **body: Any) -> None:
    (directory / "config_sentence_transformers.json").write_text(json.dumps(body))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))


def check(encoder: TextEncoder, model: Any, tokenizer: Any, pooling: str, query: str, passage: str, **kw: Any) -> None:
    expected = torch.stack([reference(model, tokenizer, text, pooling, query, **kw) for text in QUESTIONS])
    np.testing.assert_allclose(encoder.encode_queries(QUESTIONS), expected.numpy(), atol=2e-5)
    text = f"{PASSAGE.title}. {PASSAGE.text}"
    expected = reference(model, tokenizer, text, pooling, passage, **kw)
    np.testing.assert_allclose(encoder.encode_passages([PASSAGE])[0], expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_pooling_with_prompts(tmp_path: Path, pooling: str, include_prompt: bool, family: str) -> None:
    model, tokenizer = save(tmp_path / "hf", family)
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": pooling, "include_prompt": include_prompt}})
    add_settings(tmp_path / "hf", prompts=PROMPTS)
    encoder = load(tmp_path / "hf", tmp_path / "out")
    assert (encoder.config.query_prompt, encoder.config.passage_prompt) == ("query: ", "passage: ")
    assert encoder.config.pools_prompt is include_prompt
    check(encoder, model, tokenizer, pooling, "query: ", "passage: ", include_prompt=include_prompt)


def test_several_poolings_are_joined(tmp_path: Path) -> None:
    model, tokenizer = save(tmp_path / "hf", "bert")
    config = {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}
    add_modules(tmp_path / "hf", {"Pooling": config})
    add_settings(tmp_path / "hf")
    encoder = load(tmp_path / "hf", tmp_path / "out")
    assert (encoder.config.dim, encoder.config.pooling) == (96, "cls+mean+lasttoken")
    check(encoder, model, tokenizer, "cls+mean+lasttoken", "", "")


def test_a_pooling_that_says_nothing_is_the_mean(tmp_path: Path) -> None:
    model, tokenizer = save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"word_embedding_dimension": 32}})
    add_settings(tmp_path / "hf")
    check(load(tmp_path / "hf", tmp_path / "out"), model, tokenizer, "mean", "", "")


def t5_encoder(tokenizer: Any) -> Any:
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))


def qwen3(tokenizer: Any) -> Any:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 1}
    return Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **sizes))


@pytest.mark.parametrize(("make", "pooling"), [(t5_encoder, "mean"), (qwen3, "lasttoken")])
def test_halves_of_generators_and_decoders_in_a_folder(tmp_path: Path, make: Any, pooling: str) -> None:
    """As GTR and Sentence-T5 are, and Qwen3-Embedding."""
    torch.manual_seed(1)
    tokenizer = roberta_tokenizer()
    model = make(tokenizer).eval()
    model.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": pooling}})
    add_settings(tmp_path / "hf", prompts={"query": "Instruct: find\nQuery:", "document": ""})
    encoder = load(tmp_path / "hf", tmp_path / "out")
    check(encoder, model, tokenizer, pooling, "Instruct: find\nQuery:", "")


@pytest.mark.parametrize(
    ("settings", "query", "passage", "warning"),
    [
        ({"prompts": PROMPTS}, "query: ", "passage: ", None),
        ({"prompts": {"query": "q ", "document": "d ", "passage": "p "}}, "q ", "d ", None),
        ({"prompts": {"query": "q ", "document": "", "passage": "p "}}, "q ", "p ", None),
        ({"prompts": {"query": "q ", "document": None}}, "q ", "", None),
        ({"prompts": {"corpus": "c "}}, "", "c ", None),
        ({"prompts": {"web_search_query": "w "}}, "w ", "", "prompt 'web_search_query' is put before questions"),
        ({"prompts": {"retrieval.passage": "r "}}, "", "r ", "'retrieval.passage' is put before passages"),
        ({"prompts": {"x": "X "}, "default_prompt_name": "x"}, "X ", "X ", "'x' is put before questions and passages"),
        ({"prompts": {"sts": "S "}}, "", "", r"has prompts \(sts\).*--query-prompt and --passage-prompt"),
        ({"prompts": {}, "suffix": "<end>"}, "", "", "config_sentence_transformers.json: the key 'suffix'"),
        ({"prompts": {"query": "", "document": ""}, "similarity_fn_name": "dot", "__version__": {}}, "", "", None),
    ],
)
def test_which_prompt_is_whose(
    tmp_path: Path, settings: dict[str, Any], query: str, passage: str, warning: str | None
) -> None:
    save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    add_settings(tmp_path / "hf", **settings)
    generator = save_generator(tmp_path / "generator", "bart")
    made = import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=tmp_path / "hf"))
    manifest = load_manifest(made.directory)
    assert (manifest.query_prompt, manifest.passage_prompt) == (query, passage)
    config = TextEncoder.load(made.directory / "query_encoder", threads=1).config
    assert (config.query_prompt, config.passage_prompt) == (query, passage)
    assert len(made.warnings) == (warning is not None)
    assert warning is None or re.search(warning, made.warnings[0])


def test_prompts_that_the_caller_names(tmp_path: Path) -> None:
    model, tokenizer = save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    add_settings(tmp_path / "hf", prompts=PROMPTS)
    options = EncoderOptions(query_prompt="the city: ", passage_prompt="")
    encoder = load(tmp_path / "hf", tmp_path / "out", options)
    check(encoder, model, tokenizer, "mean", "the city: ", "")


def test_a_question_handed_on_is_without_its_prompt(tmp_path: Path) -> None:
    save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    add_settings(tmp_path / "hf", prompts=PROMPTS)
    encoder = load(tmp_path / "hf", tmp_path / "out")
    texts = ["Who was born in the old city?", "query: the moon"]
    expected = [
        question_tokenizer().decode(question_tokenizer()(text)["input_ids"], skip_special_tokens=True) for text in texts
    ]
    assert encoder.decode_queries(texts, encoder.tokenize_queries(texts)) == expected


def test_a_question_handed_on_is_cleaned_up_as_the_tokenizer_s_configuration_says(tmp_path: Path) -> None:
    save(tmp_path / "hf", "bert")
    vocabulary = tmp_path / "hf" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"moon":', '"\'":'))  # a word less, an apostrophe more
    plain = load(tmp_path / "hf", tmp_path / "plain")
    path = tmp_path / "hf" / "tokenizer_config.json"
    settings = {"clean_up_tokenization_spaces": True, "split_special_tokens": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    part = Part(tmp_path / "hf", recognize(tmp_path / "hf").config, tmp_path / "hf")
    warnings = export_encoder(part, tmp_path / "out", EncoderOptions()).warnings
    assert ["split_special_tokens" in text for text in warnings] == [True]
    encoder = TextEncoder.load(tmp_path / "out", device="cpu", threads=1)
    texts = ["who was the king's queen, and which is the old 'city' ?", "the sea"]
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "hf")
    expected = [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in texts]
    assert encoder.decode_queries(texts, encoder.tokenize_queries(texts)) == expected
    assert plain.decode_queries(texts, plain.tokenize_queries(texts)) != expected


def test_cosine_is_an_inner_product_of_vectors_of_length_1(tmp_path: Path) -> None:
    model, tokenizer = save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    add_settings(tmp_path / "hf", similarity_fn_name="cosine")
    encoder = load(tmp_path / "hf", tmp_path / "out")
    assert encoder.config.normalize
    expected = torch.nn.functional.normalize(reference(model, tokenizer, QUESTIONS[0], "mean"), dim=-1)
    np.testing.assert_allclose(encoder.encode_queries(QUESTIONS[:1])[0], expected.numpy(), atol=1e-5)
    kept = load(tmp_path / "hf", tmp_path / "kept", EncoderOptions(normalize=False))
    assert not kept.config.normalize


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_is_cut_where_the_tokenizer_cuts(tmp_path: Path, side: str) -> None:
    model, tokenizer = save(tmp_path / "hf", "bert")
    path = tmp_path / "hf" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation_side": side}))
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    (tmp_path / "hf" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    encoder = load(tmp_path / "hf", tmp_path / "out")
    ids = tokenizer(QUESTIONS[2], add_special_tokens=False)["input_ids"]
    kept = ids[:7] if side == "right" else ids[-7:]
    inputs = torch.tensor([[tokenizer.cls_token_id, *kept, tokenizer.sep_token_id]])
    with torch.no_grad():
        expected = model(input_ids=inputs, attention_mask=torch.ones_like(inputs))[0][0].mean(0)
    np.testing.assert_allclose(encoder.encode_queries([QUESTIONS[2]])[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("tokenizer", "folder", "read"), [(16, 48, 48), (48, 16, 16), (16, None, 16), (900, None, 64), (None, 900, 64)]
)
def test_the_folder_says_how_long_an_input_may_be(
    tmp_path: Path, tokenizer: int | None, folder: int | None, read: int
) -> None:
    """Its max_seq_length takes the place of the tokenizer's limit; the model has 64 positions."""
    save(tmp_path / "hf", "bert")
    path = tmp_path / "hf" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": tokenizer}))
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    (tmp_path / "hf" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": folder}))
    assert load(tmp_path / "hf", tmp_path / "out").config.max_length == read


@pytest.mark.parametrize(("folder", "read"), [(700, 700), (None, 512)])
def test_a_model_without_position_embeddings_reads_what_the_folder_says(
    tmp_path: Path, folder: int | None, read: int
) -> None:
    tokenizer = roberta_tokenizer()
    t5_encoder(tokenizer).save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    (tmp_path / "hf" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": folder}))
    assert load(tmp_path / "hf", tmp_path / "out").config.max_length == read


def test_settings_under_another_models_name(tmp_path: Path) -> None:
    save(tmp_path / "hf", "roberta")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}, "Dropout": {"dropout": 0.1}})
    (tmp_path / "hf" / "sentence_roberta_config.json").write_text(json.dumps({"max_seq_length": 11}))
    assert load(tmp_path / "hf", tmp_path / "out").config.max_length == 11


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "similarity": ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "'euclidean'"),
    "sparse": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "'SparseEncoder'"),
    "default": ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name 'x' is none"),
    "prompts": (
        "config_sentence_transformers.json",
        {"prompts": ["query: "]},
        r"prompts is \['query: '\]; it must be an object of texts",
    ),
    "task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
    "length": ("sentence_bert_config.json", {"query_length": 32}, "query_length 32"),
    "chat": ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "modality_config 'message'"),
    "processing": (
        "sentence_bert_config.json",
        {"processing_kwargs": {"text": {"max_length": 9}}},
        "processing_kwargs",
    ),
    "residual": ("2_Dense/config.json", {"in_features": 32, "out_features": 16, "use_residual": True}, "use_residual"),
    "tokens": ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
    "surrogate": ("config_sentence_transformers.json", {"prompts": {"query": "\ud800"}}, "half a surrogate pair"),
    "kind of default": ("config_sentence_transformers.json", {"default_prompt_name": []}, "default_prompt_name"),
    "arguments": ("sentence_bert_config.json", {"tokenizer_args": ["x"]}, "tokenizer_args must be an object"),
    "many tokens": ("sentence_bert_config.json", {"max_seq_length": "9"}, "max_seq_length is '9'"),
    "no pooling": ("1_Pooling/config.json", {"pooling_mode": 7}, "pooling by 7"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_not_supported_are_refused_by_file_and_key(tmp_path: Path, name: str) -> None:
    file, body, message = REFUSED[name]
    save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}, "Dense": {}})
    (tmp_path / "hf" / file).write_text(json.dumps(body))
    with pytest.raises(FailedPreconditionError, match=message) as caught:
        load(tmp_path / "hf", tmp_path / "out")
    assert caught.value.field.endswith(file)


def test_keys_of_a_pooling_that_are_not_known_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "hf", "bert")
    known = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    add_modules(tmp_path / "hf", {"Pooling": {**known, "attention_heads": 2}})
    folder = read_folder(tmp_path / "hf", allow_pickle=False)
    assert folder is not None
    assert [re.sub(".*the key ", "", text) for text in folder.warnings] == [
        "'attention_heads' is not known and is ignored; if it changes vectors, they will differ"
    ]


def test_modules_of_the_checkpoints_own_code_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    listing = tmp_path / "hf" / "modules.json"
    listing.write_text(listing.read_text().replace("sentence_transformers.models.Transformer", "own.Transformer"))
    with pytest.raises(FailedPreconditionError, match=r"'own\.Transformer' is code of the checkpoint's own"):
        load(tmp_path / "hf", tmp_path / "out")
