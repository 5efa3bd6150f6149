from __future__ import annotations

import random

import pytest
from transformers import BartConfig, DPRConfig, RagConfig, RagRetriever

from generator_svc.commands import Document, OpenCommand, Truncation
from generator_svc.contexts import build_contexts, context_text
from generator_svc.text import Codec
from ragserve.checkpoint import RagSettings
from ragserve.errors import InvalidInputError
from tests.tiny import generator_tokenizer, tiny_text

DOCUMENTS = (
    Document('"Great River"', "the great  river   is long"),
    Document("Moon", ""),
    Document('"', 'a "quoted" text"'),
    Document("", "of  the king"),
    Document("Tower ", " built in the city " * 40),
)
QUESTION = "who built  the tower ?"


def hugging_face(family: str, rag: RagSettings, question: str) -> list[list[int]]:
    """What `RagRetriever.postprocess_docs` makes of the documents, padding removed."""
    config = RagConfig.from_question_encoder_generator_configs(
        DPRConfig(),
        BartConfig(),
        max_combined_length=rag.max_combined_length,
        title_sep=rag.title_sep,
        doc_sep=rag.doc_sep,
    )
    retriever = RagRetriever.__new__(RagRetriever)
    retriever.config, retriever.generator_tokenizer = config, generator_tokenizer(family)
    docs = [{"title": [d.title for d in DOCUMENTS], "text": [d.text for d in DOCUMENTS]}]
    ids, mask = retriever.postprocess_docs(docs, [question], rag.prefix, len(DOCUMENTS))
    return [[token for token, keep in zip(*row, strict=True) if keep] for row in zip(ids, mask, strict=True)]


def contexts_of(
    family: str, rag: RagSettings, truncation: Truncation, question: str = QUESTION, limit: int = 0
) -> list[tuple[list[int], bool]]:
    command = OpenCommand(question, DOCUMENTS, "token", 4, truncation=truncation)
    codec = Codec(generator_tokenizer(family))
    contexts = build_contexts(command, rag, codec, limit or rag.max_combined_length)
    return [(list(context.token_ids), context.truncated) for context in contexts]


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("rag", [RagSettings(), RagSettings(max_combined_length=24, prefix="ask: ", doc_sep=" ; ")])
def test_right_truncation_equals_hugging_face(family: str, rag: RagSettings) -> None:
    got = contexts_of(family, rag, "right")
    assert [ids for ids, _ in got] == hugging_face(family, rag, QUESTION)
    assert got[-1][1]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_passage_truncation_keeps_the_question(family: str) -> None:
    rag, tokenizer = RagSettings(), generator_tokenizer(family)
    limit = 40
    whole = contexts_of(family, rag, "passage", limit=10_000)
    for (ids, truncated), (untouched, _) in zip(contexts_of(family, rag, "passage", limit=limit), whole, strict=True):
        assert len(ids) <= limit
        assert truncated == (len(untouched) > limit)
        if not truncated:
            assert ids == untouched
            continue
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert text.replace(" ", "").endswith("whobuiltthetower?")
        assert text.strip().startswith("Tower")
        assert len(ids) > limit - 4


def test_the_title_goes_when_nothing_else_is_left() -> None:
    codec = Codec(generator_tokenizer("bart"))
    least = len(codec.encode(context_text("", QUESTION, RagSettings())))
    ids = contexts_of("bart", RagSettings(), "passage", limit=least)
    assert all(len(one) == least for one, _ in ids)
    with pytest.raises(InvalidInputError) as caught:
        contexts_of("bart", RagSettings(), "passage", limit=least - 1)
    assert caught.value.field == "open.question"
    together = f"question and passage together may have {least - 1} (max_context_tokens). Shorten the question"
    assert caught.value.message == f"the question alone takes {least} tokens; {together}"
    command = OpenCommand(QUESTION, (Document("Tower", "a tower " * least),), "token", 4)
    with pytest.raises(InvalidInputError) as caught:
        build_contexts(command, RagSettings(), codec, least - 1, 900)
    assert caught.value.message.endswith(f"{together}, or raise max_context_tokens (this model reads up to 900)")


def test_random_passages_fit_and_end_with_the_question() -> None:
    rng = random.Random(6)
    codec = Codec(generator_tokenizer("t5"))
    for _ in range(20):
        document = Document(tiny_text(2, rng), tiny_text(rng.randint(1, 120), rng))
        limit = rng.randint(60, 120)
        command = OpenCommand(tiny_text(4, rng), (document,), "token", 4)
        (context,) = build_contexts(command, RagSettings(), codec, limit)
        assert len(context.token_ids) <= limit
        question = codec.encode(context_text("", command.question, RagSettings()))
        assert list(context.token_ids[-len(question) + 4 :]) == question[4:]
