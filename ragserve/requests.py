"""From the client's options to protobuf requests. Types are checked here, limits by the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ragserve import arguments
from ragserve.errors import GROUPS, InvalidInputError
from ragserve.filters import Filter, SearchOptions, conditions
from ragserve.options import (
    ContextKeywords,
    Document,
    GenerateKeywords,
    GenerationOptions,
    RetrieveKeywords,
    Sampling,
    ScoreKeywords,
    SourceKeywords,
)
from ragserve.reasons import reason_of
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
# What a caller may write; "" is "not said" only between our services.
SEARCH_KINDS = MappingProxyType({name: number for name, number in KINDS.items() if name})
CHECKS: Mapping[int, Callable[[str, str, object], object]] = MappingProxyType(
    {
        FieldDescriptor.TYPE_STRING: arguments.text,
        FieldDescriptor.TYPE_BOOL: arguments.flag,
        FieldDescriptor.TYPE_UINT32: partial(arguments.whole, most=arguments.LARGEST_UINT32),
        FieldDescriptor.TYPE_UINT64: partial(arguments.whole, most=arguments.LARGEST_UINT64),
        FieldDescriptor.TYPE_FLOAT: partial(arguments.number, most=arguments.LARGEST_FLOAT32),
        FieldDescriptor.TYPE_DOUBLE: arguments.number,
    }
)


def generate_request(question: str, keywords: GenerateKeywords) -> orchestrator_pb2.GenerateRequest:
    """The request of Generate and GenerateStream. Raises InvalidInputError for what protobuf cannot hold."""
    _check_known("generate", keywords, GenerateKeywords)
    options = {name: value for name, value in keywords.items() if name not in OWN_KEYWORDS}
    request = orchestrator_pb2.GenerateRequest()
    set_required(request, "question", question)
    set_field(request, "token_posteriors", keywords.get("token_posteriors"))
    _set_sources(request, keywords)
    _set_options(request.options, GenerationOptions(**options))  # type: ignore[arg-type]
    return request


def score_request(question: str, answer: str, keywords: ScoreKeywords) -> orchestrator_pb2.RagServiceScoreRequest:
    """The request of Score. Raises InvalidInputError for what protobuf cannot hold."""
    _check_known("score", keywords, ScoreKeywords)
    request = orchestrator_pb2.RagServiceScoreRequest()
    set_required(request, "question", question)
    set_required(request, "answer", answer)
    _set_sources(request, keywords)
    for name in ContextKeywords.__annotations__:
        _set_option(request, name, keywords.get(name), "")
    return request


def retrieve_request(question: str, keywords: RetrieveKeywords) -> orchestrator_pb2.RagServiceRetrieveRequest:
    """The request of Retrieve. Raises InvalidInputError for what protobuf cannot hold."""
    _check_known("retrieve", keywords, RetrieveKeywords)
    request = orchestrator_pb2.RagServiceRetrieveRequest()
    set_required(request, "question", question)
    _set_retrieval(request, keywords)
    return request


def set_search(target: common_pb2.SearchOptions, wanted: Filter | None, path: str, **options: Any) -> None:
    """Sets what a search may find and how. Raises InvalidInputError, with `path` in front, where it cannot be sent.

    `options` are `nprobe`, `ef_search`, `search_kind` and `lexical_weight`, as the clients have them; None is not sent.
    """
    if (kind := options.pop("search_kind", None)) is not None:
        target.kind = arguments.chosen(f"{path}kind", "search_kind", kind, SEARCH_KINDS)
    for name, value in options.items():
        set_field(target, name, value, path)
    try:
        target.MergeFrom(search_to_proto(SearchOptions(conditions(wanted))))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{path}filter", f"filter {arguments.shown(wanted)} cannot be sent: {reason_of(error)}"
        ) from error


def _check_known(method: str, keywords: Mapping[str, Any], known: type) -> None:
    for name in keywords:
        if name not in known.__annotations__:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")


def _set_retrieval(request: Any, keywords: RetrieveKeywords) -> None:
    set_field(request, "n_docs", keywords.get("docs"), name="docs")
    set_field(request, "knowledge_version", keywords.get("knowledge_version"))
    options = {name: keywords.get(name) for name in ("nprobe", "ef_search", "search_kind", "lexical_weight")}
    search = common_pb2.SearchOptions()
    set_search(search, keywords.get("filter"), "search.", **options)
    if search.ListFields():
        request.search.CopyFrom(search)


def _set_sources(request: Any, keywords: SourceKeywords) -> None:
    _set_retrieval(request, keywords)
    if (documents := keywords.get("documents")) is None:
        return
    for index, given in enumerate(arguments.items("documents", "documents", documents, "documents")):
        place, target = f"documents[{index}]", request.documents.add()
        document = arguments.record(place, place, Document, given)
        set_required(target, "title", document.title, f"{place}.")
        set_required(target, "text", document.text, f"{place}.")
        set_field(target, "log_prior", document.log_prior, f"{place}.")
    if not request.documents:
        raise InvalidInputError("documents", "documents is empty: nothing to answer from; leave it out to retrieve")


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
        value = arguments.chosen(path + name, name, value, ENUMS[name])
        setattr(target, name, value)
    else:
        set_field(target, RENAMED.get(name, name), value, path, name)


def _set_bad_words(target: orchestrator_pb2.GenerationOptions, bad_words: Sequence[Sequence[int]] | None) -> None:
    if bad_words is None:
        return
    target.bad_words_set = True
    for index, sequence in enumerate(
        arguments.items("options.bad_words", "bad_words", bad_words, "lists of token ids")
    ):
        name = f"bad_words[{index}]"
        ids = target.bad_words.add().token_ids
        for one in arguments.items(f"options.{name}", name, sequence, "token ids"):
            ids.append(arguments.whole(f"options.{name}", f"an entry of {name}", one, arguments.LARGEST_UINT32))


def _set_sampling(target: orchestrator_pb2.GenerationOptions, given: Sampling | None) -> None:
    if given is None:
        return
    sampling = arguments.record("options.sampling", "sampling", Sampling, given)
    target.sampling.SetInParent()
    for option in fields(Sampling):
        set_field(target.sampling, option.name, getattr(sampling, option.name), "options.sampling.")


def set_required(target: Message, field: str, value: Any, path: str = "") -> None:
    """Sets a field that must be given. Raises InvalidInputError where it is None or cannot be sent."""
    if value is None:
        name = _callers_name(path + field)
        raise InvalidInputError(path + field, f"{name} is None; it must be given")
    set_field(target, field, value, path)


def set_field(target: Message, field: str, value: Any, path: str = "", name: str = "") -> None:
    """Sets a field unless the value is None. `path` is where the field stands in the request.

    `name` is what the caller knows it as; default: the path and the field. Every other value is sent, also 0 and "".

    Raises:
        InvalidInputError: the value has another type, or is beyond what the field can hold.
    """
    if value is None:
        return
    kind = target.DESCRIPTOR.fields_by_name[field].type
    setattr(target, field, CHECKS[kind](path + field, name or _callers_name(path + field), value))


def _callers_name(field: str) -> str:
    for group in GROUPS:
        field = field.removeprefix(group)
    return field
