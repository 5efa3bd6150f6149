"""Reads config_sentence_transformers.json: the prompts before questions and passages, and how vectors are compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_import.recognize import read_json
from ragserve.arguments import shown
from ragserve.errors import FailedPreconditionError
from ragserve.passage_rules import character_problem

FILE = "config_sentence_transformers.json"
# sentence-transformers looks for the first of these (`encode_query`) ...
QUERY_NAMES = ("query",)
PASSAGE_NAMES = ("document", "passage", "corpus")  # ... and for the first of these (`encode_document`).
# What other checkpoints call them, for callers who name the prompt themselves.
OTHER_QUERY_NAMES = ("search_query", "web_search_query", "retrieval_query", "s2p_query", "question")
OTHER_PASSAGE_NAMES = ("search_document", "search_passage", "retrieval_document", "retrieval_passage", "s2p_passage")
KNOWN_KEYS = ("__version__", "prompts", "default_prompt_name", "similarity_fn_name", "model_type")
FLAGS = "--query-prompt and --passage-prompt"


@dataclass(frozen=True)
class EncoderSettings:
    """`query` and `passage` are put before each question and each passage. `cosine`: vectors are compared by angle."""

    query: str = ""
    passage: str = ""
    cosine: bool = False
    warnings: tuple[str, ...] = ()


def read_settings(directory: Path) -> EncoderSettings:
    """The settings in the file; the defaults where there is no file.

    Raises:
        FailedPreconditionError: the file is not of an encoder of texts, or a value in it is not supported.
    """
    path = directory / FILE
    if not path.is_file():
        return EncoderSettings()
    body = read_json(path)
    kind = body.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise FailedPreconditionError(
            f"{path}: model_type {kind!r} makes no single dense vector of a text: take a SentenceTransformer",
            field=str(path),
        )
    similarity = body.get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot"):
        raise FailedPreconditionError(
            f"{path}: similarity_fn_name {similarity!r} is not supported: passages are found by inner product "
            "('dot') or 'cosine'",
            field=str(path),
        )
    prompts = _prompts(path, body)
    query, passage, warnings = _choose(path, prompts, body.get("default_prompt_name"))
    ignored = [
        f"{path}: the key {key!r} is not known and is ignored; if it changes vectors, they will differ"
        for key in sorted(set(body) - set(KNOWN_KEYS))
    ]
    return EncoderSettings(query, passage, similarity == "cosine", (*warnings, *ignored))


def _prompts(path: Path, body: Mapping[str, Any]) -> dict[str, str]:
    prompts, default = body.get("prompts") or {}, body.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise FailedPreconditionError(
            f"{path}: prompts is {shown(prompts)}; it must be an object of texts", field=str(path)
        )
    for text in prompts.values():
        if reason := character_problem(text or ""):
            raise FailedPreconditionError(f"{path}: a prompt {reason}", field=str(path))
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise FailedPreconditionError(
            f"{path}: default_prompt_name {default!r} is none of prompts ({', '.join(prompts) or 'there are none'})",
            field=str(path),
        )
    return {str(name): str(text or "") for name, text in prompts.items()}


def _choose(path: Path, prompts: dict[str, str], default: str | None) -> tuple[str, str, tuple[str, ...]]:
    """The prompts of questions and of passages, and what the user should check."""
    query_name = _first(prompts, QUERY_NAMES, OTHER_QUERY_NAMES)
    passage_name = _first(prompts, PASSAGE_NAMES, OTHER_PASSAGE_NAMES)
    warnings: list[str] = []
    for name, names, side in (
        (query_name, QUERY_NAMES, "questions"),
        (passage_name, PASSAGE_NAMES, "passages"),
    ):
        if name is not None and name not in names:
            warnings.append(f"{path}: the prompt {name!r} is put before {side}; {FLAGS} set others")
    if query_name is None and passage_name is None and any(prompts.values()):
        if default is not None and prompts[default]:
            query_name = passage_name = default
            warnings.append(f"{path}: the default prompt {default!r} is put before questions and passages alike")
        else:
            warnings.append(
                f"{path} has prompts ({', '.join(prompts)}), none of which is named as one for questions or passages: "
                f"none is used; {FLAGS} set them"
            )
    return prompts.get(query_name or "", ""), prompts.get(passage_name or "", ""), tuple(warnings)


def _first(prompts: dict[str, str], names: tuple[str, ...], others: tuple[str, ...]) -> str | None:
    """The first name with a prompt that is not empty."""
    spelled = {re.sub(r"[-. ]", "_", name).lower(): name for name in reversed(prompts) if prompts[name]}
    exact = [name for name in names if prompts.get(name)]
    return next(iter(exact), None) or next((spelled[name] for name in (*names, *others) if name in spelled), None)
