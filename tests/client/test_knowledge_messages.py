"""Passages and lookups as messages, and how often a call is tried: all that needs no service."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import numpy as np
import pytest

from ragserve import knowledge_calls
from ragserve.calls import Retries, TimeLeft
from ragserve.errors import AbortedError, InvalidInputError, UnavailableError
from ragserve.knowledge import Lookup, NewPassage, StreamedLookup
from ragserve.knowledge_messages import PART_BYTES, PART_PASSAGES, Parts, lookup_to_proto, message_of, parts_of
from ragserve.v1 import common_pb2
from ragserve.v1 import retriever_pb2 as pb


def passage(number: int, text: str = "text") -> pb.NewPassage:
    return message_of(number, {"id": f"p{number}", "text": text})


def test_passages_as_they_are_sent() -> None:
    vector = np.array([1, 2.5], np.float64)
    message = message_of(0, NewPassage("a", "text", "title", {"day": date(2020, 1, 31), "n": 3, "ä": None}, vector))
    assert (message.passage.id, message.passage.title, message.passage.text) == ("a", "title", "text")
    assert message.passage.metadata_json == '{"day": "2020-01-31", "n": 3, "ä": null}'
    assert np.frombuffer(message.vector, "<f4").tolist() == [1.0, 2.5]
    assert message_of(0, {"id": "a", "text": "b"}) == message_of(0, NewPassage("a", "b"))
    assert not message_of(0, NewPassage("a", "b")).passage.metadata_json


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"id": "a"}, "passages[3].text"),
        ({"id": "a", "text": "b", "body": "c"}, "passages[3]"),
        ({"id": 7, "text": "b"}, "passages[3].id"),
        ({"id": "a", "text": "\ud800"}, "passages[3].text"),
        ({"id": "a", "text": "b", "metadata": {"x": float("nan")}}, "passages[3].metadata"),
        ({"id": "a", "text": "b", "metadata": {"x": object()}}, "passages[3].metadata"),
        ({"id": "a", "text": "b", "metadata": "x"}, "passages[3].metadata"),
        ({"id": "a", "text": "b", "vector": [[1.0]]}, "passages[3].vector"),
        ({"id": "a", "text": "b", "vector": "x"}, "passages[3].vector"),
        (7, "passages[3]"),
    ],
)
def test_passages_that_cannot_be_sent_are_named(given: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        message_of(3, given)
    assert caught.value.field == field


def test_parts_are_bounded_in_number_and_size() -> None:
    small = [passage(number) for number in range(2 * PART_PASSAGES + 3)]
    assert [len(part.passages) for part in parts_of(small)] == [PART_PASSAGES, PART_PASSAGES, 3]
    large = [passage(number, "x" * (PART_BYTES // 3)) for number in range(7)]
    huge = passage(9, "x" * (2 * PART_BYTES))
    parts = list(parts_of([*large, huge, *small[:2]]))
    assert [len(part.passages) for part in parts] == [2, 2, 2, 1, 1, 2]
    assert [one for part in parts for one in part.passages] == [*large, huge, *small[:2]]
    assert all(part.ByteSize() < 1.01 * PART_BYTES for part in parts if len(part.passages) > 1)
    assert list(parts_of([])) == []


def test_progress_counts_what_is_sent_and_starts_anew() -> None:
    told: list[tuple[int, int]] = []
    parts = Parts(tuple(parts_of(passage(number) for number in range(PART_PASSAGES + 1))), lambda *at: told.append(at))
    for _ in range(2):
        assert len(list(parts)) == 2
    assert told == 2 * [(PART_PASSAGES, PART_PASSAGES + 1), (PART_PASSAGES + 1, PART_PASSAGES + 1)]


def test_lookups_as_they_are_sent() -> None:
    vector = np.array([1, 2], np.float32)
    for queries in (vector, [vector], vector[np.newaxis]):
        assert [query.vector for query in lookup_to_proto(Lookup(queries)).queries] == [vector.tobytes()]
    request = lookup_to_proto(Lookup(["q", vector], 3, 7, {"lang": "en"}, nprobe=2, ef_search=4, search_kind="bm25"))
    assert [query.WhichOneof("query") for query in request.queries] == ["text", "vector"]
    assert (request.k, request.knowledge_version) == (3, 7)
    assert (request.options.filter[0].key, request.options.nprobe, request.options.ef_search) == ("lang", 2, 4)
    assert request.options.kind == common_pb2.SEARCH_KIND_BM25
    unchosen = pb.RetrieverServiceRetrieveRequest(queries=[pb.Query(text="q")], k=5, allow_fewer=True)
    assert lookup_to_proto(Lookup("q")) == unchosen
    assert not lookup_to_proto(Lookup("q", 5)).allow_fewer


@pytest.mark.parametrize(
    ("lookup", "field"),
    [
        (Lookup("\ud800"), "queries[0].text"),
        (Lookup(["q", [["x"]]]), "queries[1].vector"),
        (Lookup("q", -1), "k"),
        (Lookup("q", nprobe=-1), "options.nprobe"),
    ],
)
def test_lookups_that_cannot_be_sent_name_their_field(lookup: Lookup, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        lookup_to_proto(lookup)
    assert caught.value.field == field


def test_ids_that_cannot_be_sent() -> None:
    assert list(knowledge_calls.delete("alone").request.ids) == ["alone"]
    with pytest.raises(InvalidInputError) as caught:
        knowledge_calls.delete(["a", 7])  # type: ignore[list-item]
    assert caught.value.field == "ids[1]"
    assert str(caught.value) == "ids[1] is 7; it must be a text"


def test_what_is_tried_again() -> None:
    tried = {
        call.method: call.retried
        for call in (
            knowledge_calls.upsert([], None),
            knowledge_calls.delete([]),
            knowledge_calls.compact(1, 0.0),
            knowledge_calls.rollback(1),
            knowledge_calls.refresh(),
        )
    }
    twice = (AbortedError, UnavailableError)
    assert tried == {
        **{"UpsertPassages": twice, "DeletePassages": twice, "Compact": twice},
        **{"Rollback": (AbortedError,), "Refresh": ()},
    }


def test_an_outcome_of_a_stream() -> None:
    error = StreamedLookup(3, error=AbortedError("lost"))
    with pytest.raises(AbortedError, match="lost"):
        error.result()


def test_pauses_double_from_what_the_service_says_and_differ() -> None:
    retries, left = Retries(9, longest_pause_seconds=1.0), TimeLeft.of(None)
    for failed, longest in enumerate([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0], start=1):
        error = AbortedError("lost", retry_after_seconds=0.05)
        pauses = {retries.pause(failed, error, left) for _ in range(50)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)


class Racer:
    def __init__(self, losses: int) -> None:
        self.losses, self.tried = losses, 0

    def __call__(self) -> str:
        self.tried += 1
        if self.tried <= self.losses:
            raise AbortedError("lost", retry_after_seconds=1e-4)
        return "won"

    async def later(self) -> str:
        return self()


@pytest.mark.parametrize("losses", [0, 1, 4])
def test_a_lost_race_is_run_again(losses: int) -> None:
    racer = Racer(losses)
    assert Retries(5).run(racer, (AbortedError,), TimeLeft.of(None)) == "won"
    assert racer.tried == losses + 1
    again = Racer(losses)
    assert asyncio.run(Retries(5).run_async(again.later, (AbortedError,), TimeLeft.of(None))) == "won"
    assert again.tried == losses + 1


@pytest.mark.parametrize(
    ("attempts", "retried", "seconds", "tried"),
    [(3, (AbortedError,), None, 3), (3, (UnavailableError,), None, 1), (3, (), None, 1), (3, (AbortedError,), 1e-9, 1)],
)
def test_attempts_are_bounded(attempts: int, retried: Any, seconds: float | None, tried: int) -> None:
    racer = Racer(10)
    with pytest.raises(AbortedError):
        Retries(attempts).run(racer, retried, TimeLeft.of(seconds))
    assert racer.tried == tried
    with pytest.raises(InvalidInputError, match="max_attempts"):
        Retries(0)
