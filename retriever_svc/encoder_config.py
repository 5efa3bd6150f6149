"""`encoder.json`: what the encoder's graph does and what it is to be fed."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from ragserve.checkpoint import IMPORT_AGAIN
from ragserve.errors import FailedPreconditionError
from ragserve.files import file_errors, parse_json, require_file
from ragserve.reasons import reason_of

PLACEHOLDER = re.compile(r"\{(title|text)\}")


@dataclass(frozen=True)
class EncoderConfig:
    """Contents of `encoder.json`. `pooling`, `normalize` and `projection` describe the graph; they are not applied.

    The prompts are put before each question and each passage. Where the graph does not pool a prompt (`pools_prompt`),
    it is told which tokens are the prompt's. `vocab_size` is how many tokens the graph knows, where the tokenizer has
    more; 0: the graph knows all of them. `cleans_up`: transformers removes spaces before punctuation from what the
    tokenizer decodes.
    """

    dim: int
    max_length: int  # tokens, special tokens included
    pooling: str = "cls"
    normalize: bool = False
    projection: bool = False
    pad_token_id: int = 0
    passage_template: str = "{title}. {text}"
    passage_pair: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""
    pools_prompt: bool = True
    truncation_side: str = "right"
    vocab_size: int = 0
    cleans_up: bool = False

    def query_input(self, text: str) -> str:
        """The text that the tokenizer is given for a question."""
        return self.query_prompt + text.strip() if self.query_prompt else text

    def passage_input(self, title: str, text: str) -> tuple[str, str | None]:
        """The one or two texts that the tokenizer is given for a passage. A passage without title is its text alone."""
        if self.passage_pair:
            return self.passage_prompt + title, text
        values = {"title": title, "text": text}
        joined = PLACEHOLDER.sub(lambda match: values[match.group(1)], self.passage_template) if title else text
        return self.passage_prompt + joined.strip() if self.passage_prompt else joined, None


def load_encoder_config(path: Path) -> EncoderConfig:
    """Read and check `encoder.json`.

    Raises:
        NotFoundError: the file is missing.
        FailedPreconditionError: it is not JSON, or a value is missing, unknown or of the wrong kind.
    """
    require_file(path, IMPORT_AGAIN)
    try:
        with file_errors("read", path):
            body = parse_json(path.read_text(encoding="utf-8"))
        wrong = _wrong_keys(body)
    except ValueError as error:
        wrong = reason_of(error)
    if wrong:
        raise FailedPreconditionError(f"{path} is not an encoder's configuration: {wrong}", field=str(path))
    config = EncoderConfig(**body)
    for entry in fields(config):
        _check_kind(path, entry.name, str(entry.type), getattr(config, entry.name))
    for name in ("dim", "max_length"):
        if (value := getattr(config, name)) < 1:
            raise FailedPreconditionError(f"{path}: {name} is {value}; it must be at least 1", field=str(path))
    if config.truncation_side not in ("left", "right"):
        raise FailedPreconditionError(
            f"{path}: truncation_side is {config.truncation_side!r}; it must be left or right", field=str(path)
        )
    return config


def _wrong_keys(body: object) -> str:
    """What is wrong with the keys; empty where nothing is."""
    if not isinstance(body, dict):
        return "it is no JSON object"
    unknown = [key for key in body if key not in EncoderConfig.__dataclass_fields__]
    missing = [key for key in ("dim", "max_length") if key not in body]
    return f"the key {unknown[0]!r} is unknown" if unknown else f"the key {missing[0]!r} is missing" if missing else ""


def _check_kind(path: Path, name: str, kind: str, value: object) -> None:
    if type(value).__name__ != kind:
        raise FailedPreconditionError(f"{path}: {name} is {value!r}; it must be of type {kind}", field=str(path))
