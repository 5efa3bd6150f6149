"""What a checkpoint says about generating: every field is known, and what is not served is reported."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import BartConfig, GenerationConfig, PreTrainedConfig, RagConfig, T5Config

from checkpoint_import import ImportedModel, ImportOptions, import_checkpoint
from checkpoint_import import fields as tables
from ragserve.errors import FailedPreconditionError
from ragserve.token_rules import SpecialTokens, TokenRules
from tests.tiny import save_composite, save_generator, save_question_encoder

PUBLISHED = {"n_docs": 5, "num_beams": 4, "max_length": 50, "min_length": 1, "bad_words_ids": [[0, 0]]}


@pytest.fixture(scope="module")
def composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_composite(tmp_path_factory.mktemp("composite") / "hf", "bart", "rag-token")


def edited(source: Path, out: Path, own: dict[str, Any] | None = None, section: Any = None, **top: Any) -> Path:
    """A copy with other values in its configuration files."""
    out.mkdir()
    for path in source.iterdir():
        (out / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    config.update(top)
    config["generator"].update(section or {})
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps(config))
    if own is not None:
        (out / "generation_config.json").write_text(json.dumps(own))
    return out


def imported(source: Path, tmp_path: Path, **edits: Any) -> ImportedModel:
    return import_checkpoint(edited(source, tmp_path / "hf", **edits), tmp_path / "model")


def test_every_generation_setting_of_transformers_is_known() -> None:
    known = [*tables.SERVED, *tables.UNSERVED, *tables.HARMLESS]
    assert sorted(known) == sorted(set(known))
    assert set(GenerationConfig().to_dict()) - set(known) == set()


@pytest.mark.parametrize(
    ("config", "tables_of"),
    [
        (BartConfig, (tables.MODEL_SERVED["bart"], tables.MODEL_HARMLESS)),
        (T5Config, (tables.MODEL_SERVED["t5"], tables.MODEL_HARMLESS)),
        (
            RagConfig,
            (tables.RAG_SERVED, tables.RAG_UNSERVED, tables.RAG_HARMLESS, {f.name for f in fields(PreTrainedConfig)}),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_field_of_a_model_s_configuration_is_known(config: Any, tables_of: Any) -> None:
    assert {f.name for f in fields(config)} - {name for table in tables_of for name in table} == set()


def test_the_published_settings_count_in_both_kinds(tmp_path: Path) -> None:
    for kind in ("rag-token", "rag-sequence"):
        source = save_composite(tmp_path / f"hf-{kind}", "bart", kind, **PUBLISHED)
        made = import_checkpoint(source, tmp_path / kind)
        assert made.warnings == ()
        assert made.manifest.rag.n_docs == 5
        assert made.manifest.generation == {name: value for name, value in PUBLISHED.items() if name != "n_docs"}


SPECIAL = {"eos_token_id": 2, "decoder_start_token_id": 2}
OTHER = {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2, "num_beams": 2, "stop_strings": ["."]}


@pytest.mark.parametrize(
    ("edits", "warnings"),
    [({name: unserved.neutral[0]}, ()) for name, unserved in tables.UNSERVED.items() if unserved.neutral]
    + [
        ({"encoder_repetition_penalty": 1.4}, ("config.json sets encoder_repetition_penalty to 1.4",)),
        (
            {"own": {**SPECIAL, **OTHER}},
            [f"generation_config.json sets {name}" for name in OTHER if name != "num_beams"],
        ),
        ({"own": SPECIAL, "num_beams": 3}, ("num_beams 3: ignored",)),
        ({"own": {"decoder_start_token_id": 2}}, ("eos_token_id 2: ignored in token mode", "no end token")),
        ({"own": {"eos_token_id": 2}}, ("decoder_start_token_id 2: ignored in token mode", "model's special tokens")),
        ({"own": SPECIAL, "section": {"min_new_tokens": 7}}, ("min_new_tokens 7: ignored in both modes",)),
        ({"own": {**SPECIAL, "min_new_tokens": 3}, "section": {"min_new_tokens": 7}}, ()),
        ({"prefix": "ask: "}, ("config.json sets prefix to 'ask: '",)),
        ({"prefix": ""}, ()),
        ({"prefix": "ask: ", "section": {"prefix": "ask: "}}, ()),
        ({"label_smoothing": 0.1, "do_deduplication": False}, ("do_deduplication", "label_smoothing")),
        ({"section": {"normalize_before": True, "extra_pos_embeddings": 2}}, ("normalize_before",)),
        ({"section": {"encoder_layerdrop": 0.2, "dropout": 0.3}, "reduce_loss": True}, ()),
    ],
    ids=str,
)
def test_what_is_not_served_is_reported(composite: Path, tmp_path: Path, edits: Any, warnings: Any) -> None:
    made = imported(composite, tmp_path, **edits)
    seen = list(made.warnings)
    for expected in warnings:
        (found,) = [text for text in seen if expected in text]
        seen.remove(found)
    assert [text for text in seen if not any(expected in text for expected in warnings)] == []
    assert json.loads((tmp_path / "model" / "ragserve.json").read_text()).get("warnings", []) == list(made.warnings)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"eos_token_id": [2, 400]}, "eos_token_id is 400; the vocabulary has the ids 0 to 399"),
        ({"decoder_start_token_id": -3}, "decoder_start_token_id is -3"),
        ({"num_beams": "four"}, "num_beams"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"max_length": 1}, "max_length is 1"),
        ({"length_penalty": 40.0}, "length_penalty is 40.0"),
        ({"early_stopping": "never", "length_penalty": -1.0, "num_beams": 2}, "negative length_penalty"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [[400]]}, "bad_words_ids has the id 400"),
        ({"exponential_decay_length_penalty": [3]}, "exponential_decay_length_penalty"),
        ({"suppress_tokens": [2], "forced_eos_token_id": 2}, "suppress_tokens"),
        ({"suppress_tokens": [8], "forced_bos_token_id": 8}, "forced_bos_token_id"),
        ({"suppress_tokens": list(range(400))}, "suppress_tokens leaves no token"),
        ({"begin_suppress_tokens": list(range(400))}, "begin_suppress_tokens leaves no token"),
        ({"section": {"pad_token_id": 99_999}}, "generator.pad_token_id is 99999; the vocabulary has the ids 0 to 399"),
        ({"own": {"logits_processor": []}}, "logits_processor"),
        ({"own": {"cache_implementation": "none such"}}, "cache_implementation"),
        ({"n_docs": 0}, "n_docs"),
        ({"n_docs": "many"}, "n_docs"),
        ({"title_sep": 3}, "title_sep"),
        ({"section": {"prefix": 3}}, "prefix"),
        ({"section": {"activation_function": "glug"}}, "glug"),
        ({"section": {"activation_function": "prelu"}}, "weights of its own"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_and_named(composite: Path, tmp_path: Path, edits: Any, message: str) -> None:
    with pytest.raises(FailedPreconditionError, match=message) as caught:
        imported(composite, tmp_path, **edits)
    assert Path(caught.value.field).name in ("config.json", "generation_config.json")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["forced_bos_token_id", "forced_eos_token_id"])
def test_a_manifest_that_forces_a_suppressed_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"suppress_tokens holds \[8\], all of {name}"):
        TokenRules.read({**SPECIAL, "suppress_tokens": [8, 9], name: 8}, 400)
    both = {**SPECIAL, "suppress_tokens": [9], "forced_eos_token_id": [8, 9]}
    assert TokenRules.read(both, 400).forced_eos_token_id == (8, 9)


def test_a_pair_has_the_settings_of_its_generator_in_both_modes(tmp_path: Path) -> None:
    generator = save_generator(tmp_path / "t5", "t5")
    own = {"decoder_start_token_id": 5, "eos_token_id": [1, 7], "early_stopping": True, "suppress_tokens": [9]}
    (generator / "generation_config.json").write_text(json.dumps(own))
    encoder = save_question_encoder(tmp_path / "dpr")
    made = import_checkpoint(encoder, tmp_path / "model", ImportOptions(generator=generator))
    tokens = SpecialTokens.read(made.manifest.tokens or {})
    assert tokens.token_rules == tokens.sequence_rules == TokenRules(5, (1, 7), suppress_tokens=(9,))
    assert tokens.pad_token_id == 1  # as transformers: the first end token
    assert made.manifest.generation == {"early_stopping": True}
    written = json.loads((tmp_path / "model" / "generator" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, 7]
    assert GenerationConfig.from_pretrained(tmp_path / "model" / "generator").suppress_tokens == [9]


def test_a_generator_that_replaces_a_composite_s_brings_its_own_settings(tmp_path: Path) -> None:
    settings = {"num_beams": 4, "forced_bos_token_id": 8, "n_docs": 2}
    composite = save_composite(tmp_path / "rag", "bart", "rag-token", **settings)
    generator = save_generator(tmp_path / "t5", "t5")
    (generator / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0, "eos_token_id": 1}))
    made = import_checkpoint(composite, tmp_path / "model", ImportOptions(generator=generator))
    tokens = SpecialTokens.read(made.manifest.tokens or {})
    assert tokens.token_rules == tokens.sequence_rules == TokenRules(0, (1,))
    assert (made.manifest.kind, made.manifest.rag.n_docs, made.manifest.generation) == ("rag-token", 2, {})
