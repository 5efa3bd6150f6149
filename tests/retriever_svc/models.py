"""Tiny real model directories: DPR encoders of random weights, exported to ONNX here."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ragserve.checkpoint import MANIFEST_NAME, Manifest, hash_files
from tests.tiny import question_tokenizer, tiny_context_encoder, tiny_question_encoder

DIMENSION = 32
MAX_LENGTH = 48


class _Pooled(torch.nn.Module):
    """The final vector of a DPR encoder."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).pooler_output


def write_encoder(directory: Path, model: torch.nn.Module, **config: Any) -> None:
    directory.mkdir(parents=True)
    ids = torch.ones(2, 7, dtype=torch.long)
    axes = {0: "batch", 1: "seq"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Pooled(model).eval(),
            (ids, torch.ones_like(ids)),
            str(directory / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["query_vector"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "query_vector": {0: "batch"}},
            dynamo=False,
        )
    question_tokenizer().save_pretrained(directory)
    settings = {"pooling": "cls", "normalize": False, "projection": False, "dim": DIMENSION, "max_length": MAX_LENGTH}
    body = {**settings, "pad_token_id": 0, **config}
    (directory / "encoder.json").write_text(json.dumps(body, indent=2) + "\n")  # as the import writes it


def write_manifest(model: Path, score_scale: float = 1.0) -> Path:
    manifest = Manifest(kind="rag-token", score_scale=score_scale, files=hash_files(model))
    (model / MANIFEST_NAME).write_text(manifest.to_json())
    return model


def write_model(directory: Path, *, seed: int = 0, own_passage_encoder: bool = True) -> Path:
    """A model directory without generator; DPR's two encoders, or one for both."""
    write_encoder(directory / "query_encoder", tiny_question_encoder(seed))
    if own_passage_encoder:
        write_encoder(directory / "passage_encoder", tiny_context_encoder(seed + 1), passage_pair=True)
    return write_manifest(directory, score_scale=0.5)


def as_rows(passages: list[Any]) -> list[dict[str, Any]]:
    return [asdict(passage) for passage in passages]
