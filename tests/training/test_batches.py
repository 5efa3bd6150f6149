from __future__ import annotations

import random

import pytest

from generator_svc.commands import Document
from generator_svc.contexts import build_context
from generator_svc.text import Codec
from ragserve.checkpoint import RagSettings
from tests import tiny
from training.batches import IGNORED, Texts, length_batches, tensors, token_chunks
from training.corpus import Summary

CORPUS = [Summary(passage.title, passage.text, "", "") for passage in tiny.tiny_passages(8, max_words=120)]


@pytest.mark.parametrize("question", ["who is it", "where was  the first one made?"])
def test_contexts_are_those_of_the_generator_service(question: str) -> None:
    tokenizer = tiny.generator_tokenizer("t5")
    texts, codec = Texts(tokenizer, CORPUS), Codec(tokenizer)
    for index, summary in enumerate(CORPUS):
        document = Document(title=summary.title, text=summary.text, log_prior=0.0)
        served = build_context(document, question, RagSettings(), codec, 400, "passage")
        assert texts.context(question, index, 400) == list(served.token_ids)


def test_a_long_passage_is_cut_and_the_question_stays() -> None:
    tokenizer = tiny.generator_tokenizer("t5")
    texts = Texts(tokenizer, CORPUS)
    longest = max(range(len(CORPUS)), key=lambda index: len(CORPUS[index].text))
    context = texts.context("who is it", longest, 32)
    assert len(context) == 32
    assert tokenizer.decode(context, skip_special_tokens=True).endswith("who is it")


def test_teacher_forcing_feeds_the_start_token_and_shifts() -> None:
    made = tensors([[5, 6, 1], [7, 1]], [[8, 9, 1], [9, 1]], pad_id=0, start_id=2)
    assert made.input_ids.tolist() == [[5, 6, 1], [7, 1, 0]]
    assert made.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert made.decoder_input_ids.tolist() == [[2, 8, 9], [2, 9, 1]]
    assert made.targets.masked_fill(~made.mask, IGNORED).tolist() == [[8, 9, 1], [9, 1, IGNORED]]


def test_batches_hold_every_example_once_and_chunks_keep_to_the_budget() -> None:
    rng = random.Random(0)
    examples = [rng.randint(1, 50) for _ in range(101)]
    batches = list(length_batches(examples, lambda length: length, 8, rng))
    assert sorted(length for batch in batches for length in batch) == sorted(examples)
    for batch in batches:
        chunks = list(token_chunks(batch, lambda length: length, 100))
        assert [length for chunk in chunks for length in chunk] == batch
        assert all(len(chunk) == 1 or len(chunk) * max(chunk) <= 100 for chunk in chunks)
