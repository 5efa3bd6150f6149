"""How long texts are split: pieces of the original, none longer than the encoder reads, in any script."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever_svc.encoder import TextEncoder
from retriever_svc.splitting import BySentences, SplitOptions, by_words, chunk_parent, split_passage
from retriever_svc.types import Passage
from tests.retriever_svc.models import MAX_LENGTH

ENGLISH = "The old city lies on a river. A king was born in it, by the great lake. "
JAPANESE = "東京は日本の首都です。人口は約千四百万人で、世界最大の都市圏の一つです。"
THAI = "กรุงเทพมหานครเป็นเมืองหลวงและนครที่มีประชากรมากที่สุดของประเทศไทย"
BASE64 = base64.b64encode(random.Random(1).randbytes(20_000)).decode()


@pytest.fixture(scope="module")
def by_sentences(model: Path) -> BySentences:
    return BySentences(model / "passage_encoder")


@pytest.mark.parametrize(
    "text",
    [ENGLISH * 30, (ENGLISH * 2 + "\n\n") * 20, JAPANESE * 200, THAI * 200, BASE64, " " * 5000 + "a", ENGLISH + BASE64],
    ids=["english", "paragraphs", "japanese", "thai", "base64", "spaces", "mixed"],
)
@pytest.mark.parametrize("title", ["", "The river"])
def test_the_encoder_reads_all_of_every_chunk(
    model: Path, by_sentences: BySentences, options: object, title: str, text: str
) -> None:
    chunks = by_sentences(title, text)
    cut: list[int] = []
    encoder = TextEncoder.load(model / "passage_encoder", device="cpu", threads=1)
    encoder.encode_passages([Passage("1", title, chunk) for chunk in chunks], cut.append)
    assert cut == []
    assert all(0 < len(chunk) <= 8 * MAX_LENGTH for chunk in chunks)
    assert pieces_of(text, chunks) == "".join(text.split())


def pieces_of(text: str, chunks: list[str]) -> str:
    """What the chunks hold, without white space; each must follow the one before it in the text."""
    end = 0
    for chunk in chunks:
        start = text.index(chunk, end)
        assert not text[end:start].strip()
        end = start + len(chunk)
    return "".join("".join(chunks).split())


def test_a_text_that_fits_stays_whole_and_others_end_with_sentences(by_sentences: BySentences) -> None:
    assert by_sentences("T", "The old city.") == ["The old city."]
    chunks = by_sentences("", ENGLISH * 30)
    assert all(chunk.endswith(".") for chunk in chunks)
    wrapped = by_sentences("", ENGLISH.replace("on a", "on\na") * 30)
    assert all(chunk.endswith(".") for chunk in wrapped)  # a line's end is no sentence's end
    paragraphs = by_sentences("", ("The old city. A river.\n\n") * 40)
    assert all(chunk.endswith("A river.") for chunk in paragraphs)


def test_a_title_longer_than_the_window_does_not_stop_the_split(by_sentences: BySentences) -> None:
    chunks = by_sentences("river " * 200, ENGLISH * 10)
    assert len(chunks) > 3
    assert pieces_of(ENGLISH * 10, chunks) == "".join((ENGLISH * 10).split())


@pytest.mark.parametrize(("text", "most"), [(JAPANESE * 300, 400), (THAI * 400, 1000), (BASE64, 4000)])
def test_words_are_counted_where_there_are_no_spaces(text: str, most: int) -> None:
    chunks = by_words(100)("", text)
    assert len(chunks) > 5
    assert max(map(len, chunks)) <= most
    assert pieces_of(text, chunks) == text


def test_a_hundred_words_are_those_between_spaces() -> None:
    words = [f"well-known{number}," for number in range(250)]
    chunks = by_words(100)("", "\n".join(words))
    assert [chunk.split() for chunk in chunks] == [words[:100], words[100:200], words[200:]]


def test_chunks_have_numbered_ids(by_sentences: BySentences) -> None:
    passage = Passage("a", "T", ENGLISH * 10, '{"n": 1}')
    found = split_passage(passage, by_sentences)
    assert [(one.id, one.title, one.metadata_json) for one in found] == [
        (f"a#{number}", "T", '{"n": 1}') for number in range(len(found))
    ]
    assert split_passage(passage, None) == [passage]
    assert [chunk_parent(name) for name in ("a#0", "a#b#12", "a", "a#01", "#1", "a#")] == [
        "a",
        "a#b",
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("cut", [SplitOptions().cut, SplitOptions(words=5).cut, SplitOptions(tokens=20, overlap=3).cut])
def test_no_way_of_splitting_loses_a_character(cut: Callable, model: Path) -> None:
    text = ENGLISH * 3 + JAPANESE + "\n\n" + THAI + "\r\n" + "é" * 50
    chunks = cut(model / "passage_encoder")("", text)
    assert all(chunk in text for chunk in chunks)
    assert set("".join(chunks)) >= set(text) - set(" \r\n")


PIECES = [
    "word ",
    "a. ",
    "\n",
    "\n\n",
    "\r\n",
    "e\u0301",
    "😀",
    "👨‍👩‍👧",
    "日本語",
    "กรุง",
    "\u200b",
    "\u00ad",
    "ﷺ",
    "x" * 50,
]


@given(
    st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=300),
    st.sampled_from(["", "T", "river " * 9, "river " * 90]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_text_nothing_is_lost(by_sentences: BySentences, parts: list[str], title: str) -> None:
    text = "".join(parts)
    for cut in (by_sentences, by_words(7)):
        chunks = cut(title, text)
        if chunks != [text]:
            assert pieces_of(text, chunks) == "".join(text.split())
