"""`encoder.json`: what the encoder's graph does and what it is to be fed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from ragserve.checkpoint import IMPORT_AGAIN
from ragserve.errors import FailedPreconditionError
from ragserve.files import file_errors, require_file

PLACEHOLDER = re.compile(r"\{(title|text)\}")


@dataclass(frozen=True)
class EncoderConfig:
    """Contents of `encoder.json`. `pooling`, `normalize` and `projection` describe the graph; they are not applied."""

    dim: int
    max_length: int  # tokens, special tokens included
    pooling: str = "cls"
    normalize: bool = False
    projection: bool = False
    pad_token_id: int = 0
    passage_template: str = "{title}. {text}"
    passage_pair: bool = False

    def passage_input(self, title: str, text: str) -> tuple[str, str | None]:
        """The one or two texts that the tokenizer is given for a passage. A passage without title is its text alone."""
        if self.passage_pair:
            return title, text
        if not title:
            return text, None
        values = {"title": title, "text": text}
        return PLACEHOLDER.sub(lambda match: values[match.group(1)], self.passage_template), None


def load_encoder_config(path: Path) -> EncoderConfig:
    """Read and check `encoder.json`.

    Raises:
        NotFoundError: the file is missing.
        FailedPreconditionError: it is not JSON, or a value is missing, unknown or of the wrong kind.
    """
    require_file(path, IMPORT_AGAIN)
    try:
        with file_errors("read", path):
            body = json.loads(path.read_text(encoding="utf-8"))
        config = EncoderConfig(**body)
    except (ValueError, TypeError) as error:
        raise FailedPreconditionError(f"{path} is not an encoder's configuration: {error}", field=str(path)) from error
    for entry in fields(config):
        _check_kind(path, entry.name, str(entry.type), getattr(config, entry.name))
    if config.dim < 1 or config.max_length < 1:
        raise FailedPreconditionError(f"{path}: dim and max_length must be at least 1", field=str(path))
    return config


def _check_kind(path: Path, name: str, kind: str, value: object) -> None:
    if type(value).__name__ != kind:
        raise FailedPreconditionError(f"{path}: {name} must be of type {kind}, not {value!r}", field=str(path))
