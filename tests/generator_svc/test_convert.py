from __future__ import annotations

from dataclasses import replace

from generator_svc.convert import info_to_proto
from generator_svc.engine import GeneratorEngine
from ragserve.search_settings import SEARCH_SETTINGS

SAID = {
    **{"num_beams": 4, "max_length": 50, "min_length": 1, "max_new_tokens": 30, "min_new_tokens": 2},
    **{"length_penalty": 0.5, "early_stopping": True, "no_repeat_ngram_size": 3, "repetition_penalty": 1.5},
    **{"bad_words_ids": [[7, 8]]},
}


async def test_every_default_that_is_imported_is_told(engine: GeneratorEngine) -> None:
    assert set(SAID) == set(SEARCH_SETTINGS)
    info = engine.info()
    rules = replace(info.tokens.token_rules, forced_bos_token_id=0, forced_eos_token_id=(2, 3))
    told = info_to_proto(replace(info, defaults=SAID, tokens=replace(info.tokens, token_rules=rules))).defaults
    found = {field.name: value for field, value in told.ListFields()}
    assert [list(words.token_ids) for words in found.pop("bad_words")] == [[7, 8]]
    expected = {**SAID, "early_stopping": "true", "forced_bos_token_id": 0, "forced_eos_token_id": 2}
    del expected["bad_words_ids"]
    assert found == expected


async def test_what_the_checkpoint_leaves_open_is_left_open(engine: GeneratorEngine) -> None:
    told = info_to_proto(replace(engine.info(), defaults={"n_docs": 3, "num_beams": None})).defaults
    assert [field.name for field, _ in told.ListFields()] == ["n_docs"]
