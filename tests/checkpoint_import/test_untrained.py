"""Weights that nobody trained are told at the import; trained ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertModel, T5Config
from transformers import T5ForConditionalGeneration as T5Model

from checkpoint_import import ImportOptions, import_checkpoint
from ragserve.untrained import looks_untrained
from tests.checkpoint_import.test_encoder_styles import save
from tests.tiny import bart_tokenizer, question_tokenizer, save_generator, save_question_encoder

BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}

START = {"decoder_start_token_id": 0}


def initialized(family: str) -> torch.nn.Module:
    """A model as `transformers` makes it of a configuration alone."""
    torch.manual_seed(0)
    if family == "bart":
        return BartForConditionalGeneration(BartConfig(vocab_size=len(bart_tokenizer()), **BART))
    if family == "t5":
        return T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, **START))
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    return BertModel(BertConfig(vocab_size=len(question_tokenizer()), **sizes))


@pytest.mark.parametrize("family", ["bart", "t5", "bert"])
def test_what_initialization_leaves(family: str) -> None:
    model = initialized(family)
    tensors = model.state_dict()
    assert looks_untrained(tensors, tensors.__getitem__)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.tensor([[5, 6, 7]])
    output = model(input_ids=ids) if family == "bert" else model(input_ids=ids, labels=ids)
    (output[0].square().sum() if family == "bert" else output.loss).backward()
    optimizer.step()  # one step of training is enough
    trained = model.state_dict()
    assert not looks_untrained(trained, trained.__getitem__)


def test_both_parts_are_told_at_the_import(tmp_path: Path) -> None:
    initialized("bart").save_pretrained(tmp_path / "bart")
    bart_tokenizer().save_pretrained(tmp_path / "bart")
    initialized("bert").save_pretrained(tmp_path / "bert")
    question_tokenizer().save_pretrained(tmp_path / "bert")
    made = import_checkpoint(
        tmp_path / "bart", tmp_path / "model", ImportOptions(question_encoder=tmp_path / "bert", pooling="mean")
    )
    generator, encoder = made.warnings
    assert encoder.startswith("The weights of the encoder look untrained")
    assert generator.startswith("The weights of the generator look untrained")


def test_trained_parts_are_not(tmp_path: Path) -> None:
    generator, encoder = save_generator(tmp_path / "t5", "t5"), save_question_encoder(tmp_path / "dpr")
    assert import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=encoder)).warnings == ()


@pytest.mark.parametrize(
    ("architecture", "training"),
    [("BertForMaskedLM", "to guess masked words"), ("BertForSequenceClassification", "to classify texts")],
)
def test_encoders_that_were_trained_for_something_else(tmp_path: Path, architecture: str, training: str) -> None:
    save(tmp_path / "bert", "bert")
    path = tmp_path / "bert" / "config.json"
    path.write_text(path.read_text().replace('"BertModel"', f'"{architecture}"'))
    generator = save_generator(tmp_path / "t5", "t5")
    made = import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=tmp_path / "bert"))
    (warning,) = made.warnings
    assert f"({architecture}) was trained {training}" in warning
