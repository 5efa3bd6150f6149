"""Configuration files that nobody would write: only our own errors come out of the readers.

Valid files with values changed, left out or added, and files that are no JSON at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoint_import import fields as tables
from checkpoint_import.generation import read_generation
from checkpoint_import.loading import quiet_transformers, read_config, read_tokenizer
from checkpoint_import.prompts import read_settings
from checkpoint_import.sentence_transformers import read_folder
from checkpoint_import.settings import rag_settings
from checkpoint_import.source import open_source
from checkpoint_import.weights import read_weights
from generator_svc.loading import load_generator
from ragserve.checkpoint import MANIFEST_NAME, load_manifest
from ragserve.errors import RagserveError
from retriever_svc.encoder import load_tokenizer
from retriever_svc.encoder_config import load_encoder_config
from tests.tiny import save_composite, tiny_model_dir

FEW, MANY = 120, 2_600  # inputs of each of the four readers
CPU = torch.device("cpu")
SENTENCE_FILES = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("1_Pooling/config.json", "2_Dense/config.json", "3_Normalize/config.json"),
)
SPECIAL = ["token_rules", "sequence_rules", "format_version", "rag", "model_type", "architectures", "prefix", "dtype"]
NAMES = sorted(
    {*tables.SERVED, *tables.UNSERVED, *tables.HARMLESS, *tables.RAG_SERVED, *tables.RAG_UNSERVED, *SPECIAL}
    | {*tables.MODEL_SERVED["bart"], *tables.MODEL_SERVED["t5"], *tables.MODEL_UNSERVED, *tables.MODEL_HARMLESS}
)
# Sizes that a machine can hold: a configuration may ask for any, and is then refused for the shapes of the weights.
numbers = st.one_of(st.integers(-3, 600), st.sampled_from([2**31 - 1, 2**31, 2**63, -(2**40), 10**30]))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.floats(),
    st.sampled_from(
        ["", "2", "bart", "t5", "rag", "dpr", "gelu", "prelu", "gated-silu", "never", "\x00", "\ud800x", "é"]
    ),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner),
    max_leaves=6,
)
paths = st.integers(0, 10**6)
changes = st.lists(
    st.tuples(st.sampled_from(["set", "set", "set", "add", "delete"]), paths, st.sampled_from(NAMES), values),
    min_size=1,
    max_size=3,
)
NESTED = {"lists": b"[" * 100_000, "objects": b'{"a":' * 50_000}
garbage = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"", b"null", b"[]", b"{}", b"7", b'"x"', b"\xff\xfe{\x00}"]),
    st.sampled_from(sorted(NESTED)),
)
contents = st.one_of(changes, changes, changes, changes, garbage)


def places(body: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in a document."""
    found: list[tuple[Any, Any]] = []
    pairs = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in list(pairs):
        found += [(body, key), *places(value)]
    return found


def changed(original: bytes, content: Any) -> bytes:
    """A file with these changes, or other content."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return NESTED[content]
    body = json.loads(original)
    for what, place, name, value in content:
        inside = places(body)
        container, key = inside[place % len(inside)] if inside else (body, name)
        if what == "set" or not isinstance(container, dict):
            container[key] = value
        elif what == "add":
            container[name] = value
        else:
            container.pop(key, None)
    return json.dumps(body).encode("utf-8", "surrogatepass")


def survives(path: Path, original: bytes, content: Any, read: Callable[[], object]) -> None:
    """Reads the changed file; any error but ours fails the test."""
    path.write_bytes(changed(original, content))
    try:
        with suppress(RagserveError):
            read()
    finally:
        path.write_bytes(original)


def fuzz(count: int, path: Path, read: Callable[[], object]) -> None:
    original = path.read_bytes()
    read()  # without a change

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(contents)
    def run(content: Any) -> None:
        survives(path, original, content, read)

    run()


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    quiet_transformers()


@pytest.fixture(scope="module", params=["bart", "t5-gated"])
def composite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    search = {"num_beams": 2, "max_length": 9, "bad_words_ids": [[0]], "eos_token_id": [2, 5], "prefix": "x"}
    return save_composite(tmp_path_factory.mktemp("fuzz") / "hf", request.param, "rag-token", **search)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory without checksums: what is changed is not refused for that."""
    directory = tiny_model_dir(tmp_path_factory.mktemp("fuzz-model"))
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {}}))
    return directory


counts = pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)


def read_source(directory: Path) -> None:
    source = open_source(directory, question_encoder=None, generator=None, passage_encoder=None)
    rag_settings(source)
    assert source.generator is not None
    read_generation(source, read_config(source.generator))
    read_config(source.encoder)


@counts
def test_a_composite_s_config(composite: Path, count: int) -> None:
    fuzz(count, composite / "config.json", lambda: read_source(composite))


@counts
def test_generation_config(composite: Path, tmp_path: Path, count: int) -> None:
    source = shutil.copytree(composite, tmp_path / "hf")
    own = source / "generation_config.json"
    written = {"eos_token_id": [1, 2], "decoder_start_token_id": 2, "num_beams": 3, "length_penalty": 0.5}
    own.write_text(json.dumps({**written, "exponential_decay_length_penalty": [2, 1.5], "suppress_tokens": [7]}))
    fuzz(count, own, lambda: read_source(source))


@counts
def test_a_tokenizer_s_config(composite: Path, count: int) -> None:
    source = open_source(composite, question_encoder=None, generator=None, passage_encoder=None)
    config = read_config(source.generator)
    path = composite / "generator_tokenizer" / "tokenizer_config.json"
    fuzz(count // 4, path, lambda: read_tokenizer(source.generator, config))


@counts
@pytest.mark.parametrize("name", [MANIFEST_NAME, "generator/config.json", "generator/generation_config.json"])
def test_a_model_directory(model: Path, name: str, count: int) -> None:
    def read() -> None:
        load_manifest(model)
        load_generator(model, CPU)

    fuzz(count // 3, model / name, read)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers, without the transformer's own files."""
    directory = tmp_path_factory.mktemp("sentences")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    listed = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (name, path) in enumerate(modules)
    ]
    dense = {
        "in_features": 4,
        "out_features": 2,
        "bias": False,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    files = {
        "modules.json": listed,
        "sentence_bert_config.json": {
            "max_seq_length": 9,
            "do_lower_case": False,
            "tokenizer_args": {},
            "modality_config": {},
        },
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode": "mean", "include_prompt": True},
        "2_Dense/config.json": dense,
        "3_Normalize/config.json": {"module_input_name": "sentence_embedding"},
    }
    for name, body in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(body))
    save_file({"linear.weight": torch.zeros(2, 4)}, directory / "2_Dense/model.safetensors")
    return directory


@counts
@pytest.mark.parametrize("name", SENTENCE_FILES)
def test_a_folder_of_sentence_transformers(sentences: Path, name: str, count: int) -> None:
    def read() -> None:
        read_settings(sentences)
        assert read_folder(sentences, allow_pickle=False) is not None

    read()
    fuzz(count // 5, sentences / name, read)


@counts
def test_an_index_of_weights(tmp_path: Path, count: int) -> None:
    save_file({"a": torch.zeros(2, 4)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    fuzz(count // 4, index, lambda: read_weights(tmp_path, allow_pickle=False))


@counts
def test_an_encoder_s_tokenizer(model: Path, count: int) -> None:
    config = load_encoder_config(model / "query_encoder" / "encoder.json")
    path = model / "query_encoder" / "tokenizer.json"
    fuzz(count // 4, path, lambda: load_tokenizer(path, config))


@counts
def test_an_encoder_s_config(model: Path, count: int) -> None:
    path = model / "query_encoder" / "encoder.json"
    fuzz(count, path, lambda: load_encoder_config(path))
