"""Writes the demo's assets: encoder, generator, knowledge base, manifest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5ForConditionalGeneration

from checkpoint_import.encoder import EncoderOptions, export_encoder
from checkpoint_import.recognize import read_json
from checkpoint_import.source import Part
from ragserve.checkpoint import MANIFEST_NAME, Manifest, hash_files, load_manifest
from retriever_svc.build import build_knowledge_base
from retriever_svc.build.builder import Progress
from retriever_svc.knowledge import KnowledgeInfo
from training.corpus import Summary, write_passages
from training.quantize import quantize_onnx, write_generator_weights
from training.rows import Vectors

ENCODER, GENERATOR = "query_encoder", "generator"
# Hugging Face names; lengths include the decoder start token.
GENERATION = {"num_beams": 1, "max_length": 32, "min_length": 1}


def write_encoder(source: Path, model: Path) -> None:
    """Export the encoder of a sentence-transformers directory, and store its weights as int8."""
    directory = model / ENCODER
    if (directory / "encoder.json").is_file():
        return
    shutil.rmtree(directory, ignore_errors=True)
    export_encoder(Part(source, read_json(source / "config.json"), source), directory, EncoderOptions())
    quantize_onnx(directory / "model.onnx")
    write_manifest(model, Manifest(kind="rag-token"))


def write_generator(trained: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, model: Path) -> None:
    """Configuration, tokenizer and int8 weights."""
    directory = model / GENERATOR
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    config = trained.config
    config.tie_word_embeddings = False  # the output matrix is its own, and T5 then does not scale what it reads
    config.save_pretrained(directory)
    tokens = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    generation = GenerationConfig(**{name: getattr(config, name) for name in tokens})  # type: ignore[no-untyped-call]
    generation.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    tensors = trained.state_dict()
    # One embedding serves encoder and decoder.
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        tensors.pop(copy, None)
    write_generator_weights(tensors, directory / "model.safetensors")


def write_manifest(model: Path, manifest: Manifest) -> None:
    """The manifest, with the checksums of what is there now."""
    text = replace(manifest, files=hash_files(model)).to_json()
    (model / MANIFEST_NAME).write_text(text, encoding="utf-8")


def finish_manifest(model: Path, score_scale: float) -> None:
    """The manifest of the complete model."""
    manifest = load_manifest(model)
    write_manifest(model, replace(manifest, kind="rag-token", score_scale=score_scale, generation=dict(GENERATION)))


def write_knowledge(corpus: list[Summary], model: Path, out: Path, report: Callable[[Progress], None]) -> KnowledgeInfo:
    """The corpus as a knowledge base, embedded by the encoder that is shipped, vectors in float16."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "passages.jsonl"
        write_passages(corpus, source)
        return build_knowledge_base(source, out, model, precision="float16", progress=report)


def knowledge_vectors(knowledge: Path) -> Vectors:
    """The passage vectors in the order of the corpus, float32 [n_passages, dim]."""
    import lance  # noqa: PLC0415  (slow to import, and only needed here)

    table = lance.dataset(str(knowledge / "passages.lance")).to_table(columns=["embedding"])
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), -1)
