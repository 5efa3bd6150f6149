"""From the client's options to protobuf requests. Values are passed on as they are: the service validates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from google.protobuf.message import Message

from ragserve.errors import InvalidInputError
from ragserve.filters import SEARCH_KINDS, Filter, SearchOptions, conditions
from ragserve.options import (
    ContextKeywords,
    GenerateKeywords,
    GenerationOptions,
    RetrieveKeywords,
    Sampling,
    ScoreKeywords,
    SourceKeywords,
)
from ragserve.serving.convert import KINDS, search_to_proto
from ragserve.v1 import common_pb2, generator_pb2, orchestrator_pb2

# Options that are enumerations on the wire, by their value here.
ENUMS: Mapping[str, Mapping[Any, int]] = MappingProxyType(
    {
        "mode": {
            "token": common_pb2.MODE_TOKEN,
            "sequence": common_pb2.MODE_SEQUENCE,
        },
        "decoding": {
            "thorough": orchestrator_pb2.DECODING_THOROUGH,
            "fast": orchestrator_pb2.DECODING_FAST,
        },
        "early_stopping": {
            False: orchestrator_pb2.EARLY_STOPPING_HEURISTIC,
            True: orchestrator_pb2.EARLY_STOPPING_FIRST,
            "never": orchestrator_pb2.EARLY_STOPPING_NEVER,
        },
        "question_form": {
            "raw": orchestrator_pb2.QUESTION_FORM_RAW,
            "decoded": orchestrator_pb2.QUESTION_FORM_DECODED,
        },
        "truncation": {
            "passage": generator_pb2.TRUNCATION_PASSAGE,
            "right": generator_pb2.TRUNCATION_RIGHT,
        },
    }
)
# Options whose name on the wire is another one.
RENAMED: Mapping[str, str] = MappingProxyType({"beams": "num_beams"})
# Keywords of `generate` that are no generation options.
OWN_KEYWORDS = {*SourceKeywords.__annotations__, "token_posteriors"}


def generate_request(question: str, keywords: GenerateKeywords) -> orchestrator_pb2.GenerateRequest:
    """The request of Generate and GenerateStream. Raises InvalidInputError for what protobuf cannot hold."""
    options = {name: value for name, value in keywords.items() if name not in OWN_KEYWORDS}
    request = orchestrator_pb2.GenerateRequest()
    set_field(request, "question", question)
    set_field(request, "token_posteriors", keywords.get("token_posteriors"))
    _set_sources(request, keywords)
    _set_options(request.options, GenerationOptions(**options))  # type: ignore[arg-type]
    return request


def score_request(question: str, answer: str, keywords: ScoreKeywords) -> orchestrator_pb2.RagServiceScoreRequest:
    """The request of Score. Raises InvalidInputError for what protobuf cannot hold."""
    _check_known("score", keywords, ScoreKeywords)
    request = orchestrator_pb2.RagServiceScoreRequest()
    set_field(request, "question", question)
    set_field(request, "answer", answer)
    _set_sources(request, keywords)
    for name in ContextKeywords.__annotations__:
        _set_option(request, name, keywords.get(name), "")
    return request


def retrieve_request(question: str, keywords: RetrieveKeywords) -> orchestrator_pb2.RagServiceRetrieveRequest:
    """The request of Retrieve. Raises InvalidInputError for what protobuf cannot hold."""
    _check_known("retrieve", keywords, RetrieveKeywords)
    request = orchestrator_pb2.RagServiceRetrieveRequest()
    set_field(request, "question", question)
    _set_retrieval(request, keywords)
    return request


def set_search(target: common_pb2.SearchOptions, wanted: Filter | None, path: str, **options: Any) -> None:
    """Sets what a search may find and how. Raises InvalidInputError, with `path` in front, where it cannot be sent.

    `options` are `nprobe`, `ef_search`, `kind` and `lexical_weight`, as `SearchOptions` has them.
    """
    if (kind := options.pop("kind", None)) is not None:
        if kind not in KINDS:
            raise InvalidInputError(
                f"{path}kind", f"{path}kind is {kind!r}; it must be one of {', '.join(SEARCH_KINDS)}"
            )
        target.kind = KINDS[kind]
    for name, value in options.items():
        set_field(target, name, value, path)
    try:
        target.MergeFrom(search_to_proto(SearchOptions(conditions(wanted))))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{path}filter", f"{wanted!r} cannot be sent: {error}") from error


def _check_known(method: str, keywords: Mapping[str, Any], known: type) -> None:
    for name in keywords:
        if name not in known.__annotations__:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")


def _set_retrieval(request: Any, keywords: RetrieveKeywords) -> None:
    set_field(request, "n_docs", keywords.get("docs"))
    set_field(request, "knowledge_version", keywords.get("knowledge_version"))
    options = {name: keywords.get(name) for name in ("nprobe", "ef_search", "lexical_weight")}
    options["kind"] = keywords.get("search_kind")
    if keywords.get("filter") or any(value not in (None, 0, "") for value in options.values()):
        set_search(request.search, keywords.get("filter"), "search.", **options)


def _set_sources(request: Any, keywords: SourceKeywords) -> None:
    _set_retrieval(request, keywords)
    for index, document in enumerate(keywords.get("documents") or ()):
        target = request.documents.add()
        for name in ("title", "text", "log_prior"):
            set_field(target, name, getattr(document, name), f"documents[{index}].")


def _set_options(target: orchestrator_pb2.GenerationOptions, options: GenerationOptions) -> None:
    for option in fields(GenerationOptions):
        value = getattr(options, option.name)
        if option.name == "bad_words":
            _set_bad_words(target, value)
        elif option.name == "sampling":
            _set_sampling(target, value)
        else:
            _set_option(target, option.name, value, "options.")


def _set_option(target: Message, name: str, value: Any, path: str) -> None:
    if value is not None and name in ENUMS:
        value = _enum_value(name, value, path)
    set_field(target, RENAMED.get(name, name), value, path)


def _enum_value(name: str, value: Any, path: str) -> int:
    """The number of an enumeration's value. 0 and 1 are no booleans here."""
    known = ENUMS[name]
    if isinstance(value, (str, bool)) and value in known:
        return known[value]
    choices = ", ".join(str(choice) for choice in known)
    raise InvalidInputError(path + name, f"must be one of {choices}, not {value!r}")


def _set_bad_words(target: orchestrator_pb2.GenerationOptions, bad_words: Sequence[Sequence[int]] | None) -> None:
    if bad_words is None:
        return
    target.bad_words_set = True
    for index, sequence in enumerate(bad_words):
        try:
            target.bad_words.add(token_ids=sequence)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"options.bad_words[{index}]", f"must be token ids: {error}") from error


def _set_sampling(target: orchestrator_pb2.GenerationOptions, sampling: Sampling | None) -> None:
    if sampling is None:
        return
    target.sampling.SetInParent()
    for option in fields(Sampling):
        set_field(target.sampling, option.name, getattr(sampling, option.name), "options.sampling.")


def set_field(target: Message, name: str, value: Any, path: str = "") -> None:
    """Sets a field unless the value is None; `path` is where it stands in the request, for errors.

    Raises:
        InvalidInputError: protobuf refuses the value.
    """
    if value is None:
        return
    try:
        setattr(target, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(path + name, f"{value!r} cannot be sent: {error}") from error
