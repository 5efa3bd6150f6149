"""Search settings of a checkpoint by their Hugging Face names, with the values that the services can use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragserve.arguments import shown

LARGEST = 2**31 - 1
LARGEST_LENGTH_PENALTY = 10  # length ** penalty stays within float32 for the longest answers

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Number = Annotated[int, Field(ge=0, le=LARGEST)]


class SearchSettings(BaseModel):
    """Each is a field of transformers' `GenerationConfig`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    num_beams: Count | None = None
    max_length: Annotated[int, Field(ge=2, le=LARGEST)] | None = None  # decoder start token included
    min_length: Number | None = None
    max_new_tokens: Count | None = None
    min_new_tokens: Number | None = None
    length_penalty: Annotated[float, Field(ge=-LARGEST_LENGTH_PENALTY, le=LARGEST_LENGTH_PENALTY)] | None = None
    early_stopping: Literal["never"] | bool | None = None
    no_repeat_ngram_size: Number | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bad_words_ids: list[Annotated[list[Number], Field(min_length=1)]] | None = None


SEARCH_SETTINGS = tuple(SearchSettings.model_fields)


def read_search_settings(settings: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The search settings among some settings; those that are None are left out.

    Raises:
        ValueError: a value cannot be used. The message names the setting.
    """
    given = {name: settings[name] for name in SEARCH_SETTINGS if settings.get(name) is not None}
    try:
        found = SearchSettings.model_validate(given).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = first["loc"][0]
        raise ValueError(f"{place} is {shown(given.get(str(place)))}: {first['msg'].lower()}") from error
    for words in found.get("bad_words_ids", ()):
        if max(words) >= vocab_size:
            raise ValueError(f"bad_words_ids has the id {max(words)}; the vocabulary has the ids 0 to {vocab_size - 1}")
    if found.get("early_stopping") == "never" and found.get("length_penalty", 1.0) < 0:
        raise ValueError("early_stopping 'never' with a negative length_penalty: a search would not end early")
    return found
