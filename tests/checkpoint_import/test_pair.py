"""An encoder and a generator that were saved on their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from checkpoint_import import ImportOptions, import_checkpoint
from checkpoint_import.onnx_export import export_checked
from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc.encoder import TextEncoder
from retriever_svc.types import Passage
from tests.tiny import (
    question_tokenizer,
    save_generator,
    save_question_encoder,
    tiny_context_encoder,
    tiny_question_encoder,
)

QUESTION = "who was born in the old city?"


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("hf") / "generator", "t5")


def save_bert(directory: Path) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(question_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model = BertModel(config).eval()
    model.save_pretrained(directory)
    question_tokenizer().save_pretrained(directory)
    return model


def states(model: BertModel, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = question_tokenizer()(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1).float()


def test_dpr_with_projection_and_context_encoder(tmp_path: Path, generator: Path) -> None:
    save_question_encoder(tmp_path / "question", projection_dim=8)
    context = tiny_context_encoder(1, projection_dim=8)
    context.save_pretrained(tmp_path / "context")
    question_tokenizer().save_pretrained(tmp_path / "context")

    options = ImportOptions(question_encoder=tmp_path / "question", passage_encoder=tmp_path / "context")
    made = import_checkpoint(generator, tmp_path / "model", options)

    assert made.manifest.kind == "pair"
    tokens = question_tokenizer()(QUESTION, return_tensors="pt")
    with torch.no_grad():
        expected = tiny_question_encoder(0, projection_dim=8)(**tokens).pooler_output.numpy()
    found = TextEncoder.load(tmp_path / "model" / "query_encoder").encode_queries([QUESTION])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    passage = Passage("1", "Great River", "it is long, and deep.")
    pair = question_tokenizer()(passage.title, passage.text, return_tensors="pt")
    with torch.no_grad():
        expected = context(pair["input_ids"]).pooler_output.numpy()
    encoder = TextEncoder.load(tmp_path / "model" / "passage_encoder")
    assert encoder.config.passage_pair
    np.testing.assert_allclose(encoder.encode_passages([passage]), expected, atol=1e-4)


def test_the_encoder_may_come_first(tmp_path: Path, generator: Path) -> None:
    source = save_question_encoder(tmp_path / "question")
    made = import_checkpoint(source, tmp_path / "model", ImportOptions(generator=generator, kind="rag-token"))
    assert (made.manifest.kind, made.warnings) == ("rag-token", ())


def test_plain_bert_is_cls_unless_told_otherwise(tmp_path: Path, generator: Path) -> None:
    model = save_bert(tmp_path / "bert")
    texts = [QUESTION, "the moon"]
    hidden, mask = states(model, texts)
    expected = {"cls": hidden[:, 0], "mean": (hidden * mask).sum(1) / mask.sum(1)}
    for pooling in ("cls", "mean"):
        options = ImportOptions(
            question_encoder=tmp_path / "bert",
            pooling=None if pooling == "cls" else "mean",
            normalize=None if pooling == "cls" else True,
        )
        import_checkpoint(generator, tmp_path / pooling, options)
        encoder = TextEncoder.load(tmp_path / pooling / "query_encoder")
        wanted = expected[pooling] if pooling == "cls" else torch.nn.functional.normalize(expected[pooling], dim=-1)
        assert (encoder.config.pooling, encoder.config.normalize) == (pooling, pooling == "mean")
        np.testing.assert_allclose(encoder.encode_queries(texts), wanted.numpy(), atol=1e-4)


def save_sentence_transformer(directory: Path, pooling: dict[str, bool]) -> tuple[BertModel, torch.nn.Linear]:
    """Mean pooling, a dense layer with tanh, and normalization, laid out as sentence-transformers does."""
    model = save_bert(directory)
    names = ("Transformer", "Pooling", "Dense", "Normalize")
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    for path in paths[1:]:
        (directory / path).mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    dense = {
        "in_features": 32,
        "out_features": 16,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (directory / "2_Dense" / "config.json").write_text(json.dumps(dense))
    layer = torch.nn.Linear(32, 16)
    save_file(
        {f"linear.{name}": value for name, value in layer.state_dict().items()},
        directory / "2_Dense" / "model.safetensors",
    )
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
    return model, layer


def test_sentence_transformers_modules_go_into_the_graph(tmp_path: Path, generator: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    model, layer = save_sentence_transformer(tmp_path / "st", pooling)
    texts = [QUESTION, "a sun"]
    hidden, mask = states(model, texts)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(torch.tanh(layer((hidden * mask).sum(1) / mask.sum(1))), dim=-1)
    import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=tmp_path / "st"))
    encoder = TextEncoder.load(tmp_path / "model" / "query_encoder")
    config = encoder.config
    assert (config.pooling, config.normalize, config.projection, config.dim, config.max_length) == (
        "mean",
        True,
        True,
        16,
        48,
    )
    np.testing.assert_allclose(encoder.encode_queries(texts), expected.numpy(), atol=1e-4)


def test_pooling_that_is_not_known_is_refused(tmp_path: Path, generator: Path) -> None:
    save_sentence_transformer(tmp_path / "st", {"pooling_mode_median": True})
    with pytest.raises(FailedPreconditionError, match=r"median is not supported, only by cls, max, mean") as caught:
        import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=tmp_path / "st"))
    assert caught.value.field.endswith("1_Pooling/config.json")
    assert not (tmp_path / "model").exists()


def test_a_graph_that_differs_from_torch_is_refused(tmp_path: Path) -> None:
    class Untraceable(torch.nn.Module):
        """What it does depends on the length, which a traced graph does not see."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            factor = 2.0 if int(input_ids.shape[1]) == 5 else 1.0
            return (input_ids * attention_mask).float().sum(1, keepdim=True) * factor

    with pytest.raises(FailedPreconditionError, match="differs from torch"):
        export_checked(Untraceable(), tmp_path / "model.onnx", vocab_size=9, max_length=8)
    assert not (tmp_path / "model.onnx").exists()


def test_a_vector_does_not_depend_on_padding(tmp_path: Path, generator: Path) -> None:
    source = save_question_encoder(tmp_path / "question")
    import_checkpoint(source, tmp_path / "model", ImportOptions(generator=generator))
    session = onnxruntime.InferenceSession(tmp_path / "model" / "query_encoder" / "model.onnx")
    ids = np.array([[2, 20, 30, 3]])
    alone = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    padded = np.pad(ids, ((0, 0), (0, 9)))
    mask = np.pad(np.ones_like(ids), ((0, 0), (0, 9)))
    np.testing.assert_allclose(session.run(None, {"input_ids": padded, "attention_mask": mask})[0], alone, atol=1e-5)


def test_each_half_is_asked_for(tmp_path: Path, generator: Path) -> None:
    question = save_question_encoder(tmp_path / "question")
    with pytest.raises(InvalidInputError, match=r"T5 .*, a generator, which is half of a pair") as caught:
        import_checkpoint(generator, tmp_path / "model")
    assert caught.value.field == "question_encoder"
    with pytest.raises(InvalidInputError) as caught:
        import_checkpoint(question, tmp_path / "model")
    assert caught.value.field == "generator"
    with pytest.raises(InvalidInputError, match="already") as caught:
        import_checkpoint(generator, tmp_path / "model", ImportOptions(generator=generator))
    with pytest.raises(InvalidInputError, match="--question-encoder needs an encoder of texts") as caught:
        import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=generator))
    assert caught.value.field == "question_encoder"
