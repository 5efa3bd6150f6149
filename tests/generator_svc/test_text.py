from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from generator_svc.text import Codec, load_codec
from ragserve.errors import FailedPreconditionError, NotFoundError
from ragserve_cli.plan import demo_directory
from tests.tiny import generator_tokenizer, tiny_text

FORCED = "_for_bpe_even_though_it_will_corrupt_output"
TEXTS = ["the great river", "Köln, 東京 and 🙂🙃!", "  two  spaces ", "king-queen's", "x"]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_pieces_join_to_the_text(family: str) -> None:
    tokenizer = generator_tokenizer(family)
    codec = Codec(tokenizer)
    rng = random.Random(8)
    for text in [*TEXTS, *(tiny_text(9, rng) for _ in range(10))]:
        ids = tokenizer(text)["input_ids"]
        rendered = codec.render(ids)
        assert rendered.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        special = set(tokenizer.all_special_ids)
        assert (
            "".join(p for token, p in zip(ids, rendered.pieces, strict=True) if token not in special) == rendered.text
        )
        assert rendered.pieces[-1] == "</s>"


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_texts_are_cleaned_up_as_the_tokenizer_s_configuration_says(family: str, forced: bool, tmp_path: Path) -> None:
    generator_tokenizer(family).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = {"clean_up_tokenization_spaces": True, f"clean_up_tokenization_spaces{FORCED}": forced}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    peer, codec = AutoTokenizer.from_pretrained(tmp_path), load_codec(tmp_path)
    ids = peer("the king , who was old . born in 1950 ? in 1951 , the queen")["input_ids"]
    rendered = codec.render(ids)
    assert rendered.text == peer.decode(ids, skip_special_tokens=True)
    assert ("king," in rendered.text) == (forced or family == "t5")
    assert "".join(rendered.pieces[:-1]).removeprefix("<s>") == rendered.text


@pytest.mark.parametrize(
    ("question", "unknown"),
    [
        ("谁写了物种起源?", 7),
        ("who wrote 物种 起源 ?", 4),
        ("Who wrote The Origin of Species?", 0),
        ("Où est Bogotá?", 0),
    ],
)
def test_characters_that_t5_does_not_know_are_counted(question: str, unknown: int) -> None:
    codec = load_codec(demo_directory() / "model/generator")
    assert codec.unknown_characters(question) == unknown


def test_a_byte_level_vocabulary_knows_all_characters() -> None:
    assert Codec(generator_tokenizer("bart")).unknown_characters("谁写了物种起源?") == 0


def test_random_tokens_join_too() -> None:
    rng = random.Random(9)
    for family in ("bart", "t5"):
        tokenizer = generator_tokenizer(family)
        codec, special = Codec(tokenizer), set(tokenizer.all_special_ids)
        for _ in range(60):
            ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 12))]
            ids.append(tokenizer.eos_token_id)
            rendered = codec.render(ids)
            joined = "".join(p for token, p in zip(ids, rendered.pieces, strict=True) if token not in special)
            assert joined == rendered.text


def test_an_incomplete_character_is_held_back_until_it_is_whole() -> None:
    tokenizer = generator_tokenizer("bart")
    codec = Codec(tokenizer)
    ids = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    assert codec.render(ids[:-1]).pieces == ("a", *[""] * (len(ids) - 2))
    assert codec.render(ids).pieces == ("a", *[""] * (len(ids) - 2), "🙂")


def test_nothing_renders_to_nothing() -> None:
    assert Codec(generator_tokenizer("t5")).render(()).text == ""


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        load_codec(tmp_path)
    assert missing.value.field == str(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(FailedPreconditionError, match=str(tmp_path)):
        load_codec(tmp_path)
