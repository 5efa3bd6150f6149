"""Stage timings, search options, empty results and token rules as protobuf messages and back."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from ragserve.errors import InvalidInputError
from ragserve.filters import SEARCH_KINDS, Condition, SearchOptions
from ragserve.nothing_found import NothingFound
from ragserve.serving.metrics import StageTiming
from ragserve.token_rules import TokenRules
from ragserve.v1 import common_pb2, generator_pb2, retriever_pb2

KINDS = {"": common_pb2.SEARCH_KIND_UNSPECIFIED} | {
    name: common_pb2.SearchKind.Value(f"SEARCH_KIND_{name.upper()}") for name in SEARCH_KINDS
}
NOTHING_FOUND = {reason: retriever_pb2.NothingFound.Value(f"NOTHING_FOUND_{reason.name}") for reason in NothingFound}
BOUNDS = ("at_least", "above", "at_most", "below")


def timings_to_proto(timings: Iterable[StageTiming]) -> list[common_pb2.StageTiming]:
    """Messages in the order of the timings."""
    return [common_pb2.StageTiming(stage=t.stage, seconds=t.seconds, count=t.count) for t in timings]


def add_timings(
    messages: RepeatedCompositeFieldContainer[common_pb2.StageTiming], timings: Iterable[StageTiming]
) -> None:
    """Appends the timings to a field. Cheaper than `timings_to_proto`, whose messages are copied into the field."""
    for timing in timings:
        messages.add(stage=timing.stage, seconds=timing.seconds, count=timing.count)


def timings_from_proto(messages: Iterable[common_pb2.StageTiming]) -> tuple[StageTiming, ...]:
    """Timings in the order of the messages."""
    return tuple(StageTiming(m.stage, m.seconds, m.count) for m in messages)


def nothing_found_to_proto(reason: NothingFound | None) -> retriever_pb2.NothingFound.ValueType:
    """Why there are no passages; unspecified where there are some."""
    return retriever_pb2.NOTHING_FOUND_UNSPECIFIED if reason is None else NOTHING_FOUND[reason]


def nothing_found_from_proto(value: int) -> NothingFound | None:
    """None where the retriever, which may be another version, does not say it, or with a value not known here."""
    return next((reason for reason, number in NOTHING_FOUND.items() if number == value), None)


def search_to_proto(options: SearchOptions) -> common_pb2.SearchOptions:
    """Options of a search as a message. Raises ValueError or TypeError for what protobuf cannot hold."""
    conditions = [_condition_to_proto(condition) for condition in options.filter]
    return common_pb2.SearchOptions(
        filter=conditions,
        nprobe=options.nprobe,
        ef_search=options.ef_search,
        kind=KINDS[options.kind],
        lexical_weight=options.lexical_weight,
    )


def search_from_proto(message: common_pb2.SearchOptions) -> SearchOptions:
    """The options that a message holds. Raises InvalidInputError for a kind that there is not."""
    conditions = tuple(_condition_from_proto(condition) for condition in message.filter)
    kind = next((name for name, value in KINDS.items() if value == message.kind), None)
    if kind is None:
        raise InvalidInputError("search.kind", f"search.kind is {message.kind}, which is no kind of search")
    weight = message.lexical_weight if message.HasField("lexical_weight") else None
    return SearchOptions(conditions, message.nprobe, message.ef_search, kind, weight)


def rules_to_proto(rules: TokenRules) -> generator_pb2.TokenRules:
    """The token rules of a mode as a message."""
    message = generator_pb2.TokenRules(
        decoder_start_token_id=rules.decoder_start_token_id,
        eos_token_ids=rules.eos_token_id,
        forced_bos_token_id=rules.forced_bos_token_id,
        forced_eos_token_ids=rules.forced_eos_token_id,
        suppress_tokens=rules.suppress_tokens,
        begin_suppress_tokens=rules.begin_suppress_tokens,
    )
    if rules.exponential_decay_length_penalty is not None:
        start, factor = rules.exponential_decay_length_penalty
        message.exponential_decay_length_penalty.CopyFrom(generator_pb2.ExponentialDecay(start=start, factor=factor))
    return message


def rules_from_proto(message: generator_pb2.TokenRules) -> TokenRules:
    """The token rules that a message holds."""
    decay = message.exponential_decay_length_penalty
    has_decay = message.HasField("exponential_decay_length_penalty")
    return TokenRules(
        decoder_start_token_id=message.decoder_start_token_id,
        eos_token_id=tuple(message.eos_token_ids),
        forced_bos_token_id=message.forced_bos_token_id if message.HasField("forced_bos_token_id") else None,
        forced_eos_token_id=tuple(message.forced_eos_token_ids),
        suppress_tokens=tuple(message.suppress_tokens),
        begin_suppress_tokens=tuple(message.begin_suppress_tokens),
        exponential_decay_length_penalty=(decay.start, decay.factor) if has_decay else None,
    )


def _condition_to_proto(condition: Condition) -> common_pb2.Condition:
    if condition.equals is not None:
        return common_pb2.Condition(key=condition.key, equals=condition.equals)
    if condition.any_of is not None:
        return common_pb2.Condition(key=condition.key, any_of=common_pb2.TextList(values=condition.any_of))
    if condition.none_of is not None:
        return common_pb2.Condition(key=condition.key, none_of=common_pb2.TextList(values=condition.none_of))
    bounds = {name: value for name in BOUNDS if (value := getattr(condition, name)) is not None}
    return common_pb2.Condition(key=condition.key, range=common_pb2.Range(**bounds))


def _condition_from_proto(message: common_pb2.Condition) -> Condition:
    test = message.WhichOneof("test")
    if test == "equals":
        return Condition(message.key, equals=message.equals)
    if test == "any_of":
        return Condition(message.key, any_of=tuple(message.any_of.values))
    if test == "none_of":
        return Condition(message.key, none_of=tuple(message.none_of.values))
    return Condition(message.key, **{bound.name: value for bound, value in message.range.ListFields()})
