from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ragserve.errors import FailedPreconditionError, NotFoundError
from retriever_svc.encoder import TextEncoder, token_batches
from retriever_svc.encoder_config import EncoderConfig
from retriever_svc.types import Passage
from tests.retriever_svc.models import DIMENSION, MAX_LENGTH
from tests.tiny import question_tokenizer, tiny_context_encoder, tiny_question_encoder, tiny_text

TEXTS = [tiny_text(random.Random(seed).randint(1, 60), random.Random(seed)) for seed in range(24)]


def torch_vectors(model: torch.nn.Module, **inputs: list[str]) -> np.ndarray:
    tokens = question_tokenizer()(
        *inputs.values(), return_tensors="pt", padding=True, truncation=True, max_length=MAX_LENGTH
    )
    with torch.no_grad():
        output = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return output.pooler_output.numpy()


def test_queries_equal_torch(encoder: TextEncoder) -> None:
    np.testing.assert_allclose(
        encoder.encode_queries(TEXTS), torch_vectors(tiny_question_encoder(0), text=TEXTS), atol=1e-4
    )


def test_dpr_passages_are_title_and_text_as_a_pair(model: Path) -> None:
    encoder = TextEncoder.load(model / "passage_encoder", device="cpu", threads=1)
    titles = [text[:12] for text in TEXTS]
    passages = [Passage(str(i), title, text) for i, (title, text) in enumerate(zip(titles, TEXTS, strict=True))]
    expected = torch_vectors(tiny_context_encoder(1), titles=titles, texts=TEXTS)
    np.testing.assert_allclose(encoder.encode_passages(passages), expected, atol=1e-4)


def test_a_text_alone_equals_the_text_in_a_batch(encoder: TextEncoder) -> None:
    together = encoder.encode_queries(TEXTS)
    alone = np.concatenate([encoder.encode_queries([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_no_text_gives_no_vector(encoder: TextEncoder) -> None:
    assert encoder.encode_queries([]).shape == (0, DIMENSION)


def test_decoded_query_is_what_hugging_face_hands_on(encoder: TextEncoder) -> None:
    questions = [*TEXTS, "Who wrote THE Boy's first book?", "café, (no)!  two  spaces"]
    tokens = question_tokenizer()(questions, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    expected = question_tokenizer().batch_decode(tokens, skip_special_tokens=True)
    assert encoder.decode_queries(questions, encoder.tokenize_queries(questions)) == expected


@pytest.mark.parametrize("max_tokens", [1, 16, 40, 10_000])
def test_batches_hold_every_row_once_and_stay_below_the_cap(max_tokens: int) -> None:
    lengths = [random.Random(seed).randint(1, 30) for seed in range(50)]
    batches = token_batches(lengths, max_tokens, 10_000)
    assert sorted(row for batch in batches for row in batch) == list(range(50))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest)


def test_a_row_joins_a_pass_while_its_padding_costs_less_than_a_pass() -> None:
    passes = token_batches([3, 12, 4, 20, 4, 13], 10_000, 4)
    assert [rows.tolist() for rows in passes] == [[0, 2, 4], [1, 5], [3]]
    assert len(token_batches([3, 12, 4, 20, 4, 13], 10_000, 40)) == 1
    assert [len(rows) for rows in token_batches([5] * 9, 20, 0)] == [4, 4, 1]


def test_template_is_filled_once_and_left_out_without_title() -> None:
    config = EncoderConfig(dim=1, max_length=1, passage_template="{title}. {text}")
    assert config.passage_input("A {text} title", "the {title}") == ("A {text} title. the {title}", None)
    assert config.passage_input("", "text") == ("text", None)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "encoder.json"])
def test_a_missing_or_broken_file_is_named(model: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(model / "query_encoder", copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:50])
    with pytest.raises(FailedPreconditionError, match=name):
        TextEncoder.load(copy, device="cpu", threads=1)
    (copy / name).unlink()
    with pytest.raises(NotFoundError, match=f"{name} is missing"):
        TextEncoder.load(copy, device="cpu", threads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 31}, "gives vectors of 32 values"),
        ({"dim": "32"}, "dim is '32'; it must be of type int"),
        ({"dim": 0}, "dim is 0; it must be at least 1"),
        ({"width": 3}, "is not an encoder's configuration: the key 'width' is unknown"),
    ],
)
def test_a_wrong_configuration_is_refused(model: Path, tmp_path: Path, change: dict, message: str) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(model / "query_encoder", copy)
    body = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps({**body, **change}))
    with pytest.raises(FailedPreconditionError, match=message):
        TextEncoder.load(copy, device="cpu", threads=1)


def test_cuda_that_is_absent_is_refused_by_name(model: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    with pytest.raises(FailedPreconditionError, match="device is 'cuda'") as caught:
        TextEncoder.load(model / "query_encoder", device="cuda", threads=1)
    assert caught.value.field == "device"
    assert TextEncoder.load(model / "query_encoder", device="auto", threads=1).device == "cpu"
