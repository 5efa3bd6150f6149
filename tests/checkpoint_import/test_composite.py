"""Composites as transformers writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForSeq2SeqLM, RagSequenceForGeneration, RagTokenForGeneration

from checkpoint_import import ImportOptions, import_checkpoint
from ragserve.checkpoint import RagSettings, load_manifest, verify_files
from ragserve.errors import InvalidInputError
from ragserve.token_rules import SpecialTokens, TokenRules
from tests.tiny import KINDS, generator_tokenizer, question_tokenizer, save_composite


def encode(session: onnxruntime.InferenceSession, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    return session.run(["query_vector"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bart", "t5", "t5-gated"])
def test_imported_parts_equal_the_composite(tmp_path: Path, family: str, kind: str) -> None:
    source = save_composite(tmp_path / "hf", family, kind, seed=5)
    model_class = RagTokenForGeneration if kind == "rag-token" else RagSequenceForGeneration
    oracle = model_class.from_pretrained(source).eval()

    made = import_checkpoint(source, tmp_path / "model")

    assert made.manifest.kind == kind
    assert made.warnings == ()
    generator = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model" / "generator")
    expected = oracle.rag.generator.state_dict()
    assert generator.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in generator.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / "model" / "query_encoder" / "model.onnx")
    for batch, seq in ((1, 3), (4, 17), (2, 64)):
        ids = torch.randint(5, 150, (batch, seq))
        mask = torch.ones_like(ids)
        mask[-1, seq // 2 + 1 :] = 0
        with torch.no_grad():
            vectors = oracle.rag.question_encoder(ids, attention_mask=mask)[0].numpy()
        np.testing.assert_allclose(encode(session, ids, mask), vectors, atol=1e-4, rtol=0)


def test_tokenizers_are_the_composite_s(bart_composite: Path, tmp_path: Path) -> None:
    import_checkpoint(bart_composite, tmp_path / "model")
    text = "Who was born in Paris? The great river, 1950."
    for part, expected in (("query_encoder", question_tokenizer()), ("generator", generator_tokenizer("bart"))):
        found = Tokenizer.from_file(str(tmp_path / "model" / part / "tokenizer.json"))
        assert found.encode(text).ids == expected(text).input_ids
        assert found.truncation is None
        assert found.padding is None


def test_manifest_carries_the_top_level_settings_and_checksums(bart_composite: Path, tmp_path: Path) -> None:
    import_checkpoint(bart_composite, tmp_path / "model", ImportOptions(score_scale=2.5))
    manifest = load_manifest(tmp_path / "model")
    assert manifest.rag == RagSettings(n_docs=2, max_combined_length=128)
    assert manifest.generation == {"num_beams": 4, "max_length": 50, "min_length": 1, "bad_words_ids": [[0, 0]]}
    assert manifest.score_scale == 2.5
    for part in ("query_encoder", "generator"):
        verify_files(tmp_path / "model", manifest, part)
    generation = json.loads((tmp_path / "model" / "generator" / "generation_config.json").read_text())
    assert generation["num_beams"] == 4
    assert generation["decoder_start_token_id"] == 2
    encoder = json.loads((tmp_path / "model" / "query_encoder" / "encoder.json").read_text())
    assert (encoder["pooling"], encoder["dim"], encoder["max_length"], encoder["projection"]) == ("cls", 32, 64, False)


def test_the_generator_s_section_says_what_the_top_level_does_not(tmp_path: Path) -> None:
    source = save_composite(tmp_path / "hf", "bart", "rag-token")
    path = source / "config.json"
    config = json.loads(path.read_text())
    config["generator"].update(num_beams=8, max_length=20, forced_bos_token_id=0, forced_eos_token_id=2, prefix="ask: ")
    path.write_text(json.dumps(config))
    manifest = import_checkpoint(source, tmp_path / "model").manifest
    oracle = RagTokenForGeneration.from_pretrained(source).generation_config
    assert (oracle.num_beams, oracle.max_length, oracle.forced_bos_token_id) == (8, 20, 0)
    assert manifest.generation == {"num_beams": 8, "max_length": 20}
    tokens = SpecialTokens.read(manifest.tokens or {})
    assert tokens.token_rules == TokenRules(2, (2,), forced_bos_token_id=0, forced_eos_token_id=(2,))
    assert tokens.sequence_rules == TokenRules(2, (2,), forced_eos_token_id=(2,))
    assert manifest.rag.prefix == "ask: "


def test_separators_and_kind_of_a_sequence_composite(t5_composite: Path, tmp_path: Path) -> None:
    manifest = import_checkpoint(t5_composite, tmp_path / "model").manifest
    assert (manifest.kind, manifest.rag.title_sep, manifest.rag.doc_sep) == ("rag-sequence", " | ", " // ")


def test_asking_for_the_other_kind_warns(t5_composite: Path, tmp_path: Path) -> None:
    made = import_checkpoint(t5_composite, tmp_path / "model", ImportOptions(kind="rag-token"))
    assert made.manifest.kind == "rag-token"
    assert "trained as rag-sequence" in made.warnings[0]


def test_a_bare_rag_model_must_be_told_its_kind(bart_composite: Path, tmp_path: Path) -> None:
    source = shutil.copytree(bart_composite, tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    config["architectures"] = ["RagModel"]
    (source / "config.json").write_text(json.dumps(config))
    weights = {name.removeprefix("rag."): value for name, value in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors")
    with pytest.raises(InvalidInputError, match="RagModel") as caught:
        import_checkpoint(source, tmp_path / "model")
    assert caught.value.field == "kind"
    assert import_checkpoint(source, tmp_path / "model", ImportOptions(kind="rag-token")).manifest.kind == "rag-token"


def test_old_weights_with_pooler_and_position_ids_are_read(bart_composite: Path, tmp_path: Path) -> None:
    source = shutil.copytree(bart_composite, tmp_path / "hf")
    weights = load_file(source / "model.safetensors")
    bert = "rag.question_encoder.question_encoder.bert_model."
    weights[f"{bert}pooler.dense.weight"] = torch.zeros(32, 32)
    weights[f"{bert}embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, source / "model.safetensors")
    before = import_checkpoint(bart_composite, tmp_path / "a").manifest.files
    assert import_checkpoint(source, tmp_path / "b").manifest.files == before


def test_shards_are_read(bart_composite: Path, tmp_path: Path) -> None:
    source = shutil.copytree(bart_composite, tmp_path / "hf")
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, source / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    before = import_checkpoint(bart_composite, tmp_path / "a").manifest.files
    assert import_checkpoint(source, tmp_path / "b").manifest.files == before
