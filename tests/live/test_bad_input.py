"""Writes that cannot be, over real gRPC: each is refused, names the field, and changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from ragserve.errors import (
    InvalidInputError,
    NotFoundError,
    RagserveError,
    ResourceExhaustedError,
)
from ragserve.v1 import retriever_pb2
from tests.live.harness import Home, Replica, new_passage, refused
from tests.retriever_svc.models import DIMENSION

MEGABYTE = 2**20
ONES = np.ones(DIMENSION, np.float32)
FLAGS = {"max_upsert_passages": 50, "server.max_message_bytes": 16 * MEGABYTE, "refresh_seconds": 0.4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.build(tmp_path_factory.mktemp("bad"))


COMMIT_SECONDS = 0.5


@pytest.fixture(scope="module")
def replica(home: Home) -> Iterator[Replica]:
    started = home.replica(**FLAGS)
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def unharmed(replica: Replica) -> Iterator[None]:
    """Whatever a test sends: nothing is committed, and the retriever answers as before."""
    before = replica.search(ONES, 5)
    yield
    after = replica.search(ONES, 5)
    assert after.knowledge_version == before.knowledge_version
    assert list(after.results) == list(before.results)
    assert len(replica.versions()) == before.knowledge_version


def stream(replica: Replica, *parts: list[retriever_pb2.NewPassage]) -> Callable[[], object]:
    requests = [retriever_pb2.UpsertPassagesRequest(passages=part) for part in parts]
    return lambda: replica.stub.UpsertPassages(iter(requests), timeout=60)


def with_metadata(text: str) -> retriever_pb2.NewPassage:
    passage = new_passage("a", "text")
    passage.passage.metadata_json = text
    return passage


def with_bytes(raw: bytes) -> retriever_pb2.NewPassage:
    passage = new_passage("a", "text")
    passage.vector = raw
    return passage


GOOD = new_passage("good", "text", ONES)
NAN = np.full(DIMENSION, np.nan, np.float32)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([[GOOD, new_passage("a", "text", np.ones(DIMENSION + 1, np.float32))]], "passages[1].vector"),
        ([[GOOD], [new_passage("a", "text", NAN)]], "passages[1].vector"),
        ([[new_passage("a", "text", np.full(DIMENSION, np.inf, np.float32))]], "passages[0].vector"),
        ([[new_passage("a", "text", -1e16 * ONES)]], "passages[0].vector"),
        ([[with_bytes(b"\0" * 7)]], "passages[0].vector"),
        ([[GOOD, new_passage("b", "text"), GOOD]], "passages[2].passage.id"),
        ([[GOOD], [new_passage("b", "text")], [GOOD]], "passages[2].passage.id"),
        ([[new_passage("a", "")]], "passages[0].passage.text"),
        ([[new_passage("a", " \n")]], "passages[0].passage.text"),
        ([[new_passage("", "text")]], "passages[0].passage.id"),
        ([[new_passage("a", "x" * 10 * MEGABYTE)]], "passages[0].passage.text"),
        ([[new_passage("a" * 200_000, "text")]], "passages[0].passage.id"),
        ([[with_metadata("[1]")]], "passages[0].passage.metadata_json"),
        ([[with_metadata("{")]], "passages[0].passage.metadata_json"),
        ([[with_metadata('"text"')]], "passages[0].passage.metadata_json"),
        ([[with_metadata('{"a": ' + "[" * 40_000 + "]" * 40_000 + "}")]], "passages[0].passage.metadata_json"),
        ([[with_metadata('{"a": ' + "[" * 70 + "]" * 70 + "}")]], "passages[0].passage.metadata_json"),
        ([], "passages"),
        ([[], []], "passages"),
        ([[new_passage(f"many {n}", "text", ONES) for n in range(51)]], "passages"),
        ([[new_passage(f"many {n + 26 * part}", "text", ONES) for n in range(26)] for part in (0, 1)], "passages"),
    ],
)
def test_a_bad_upsert_is_refused(replica: Replica, parts: list, field: str) -> None:
    error = refused(stream(replica, *parts))
    assert isinstance(error, InvalidInputError), error
    assert error.field == field


def test_a_message_above_the_limit_is_refused(replica: Replica) -> None:
    error = refused(stream(replica, [new_passage("a", "x" * 17 * MEGABYTE)]))
    assert isinstance(error, ResourceExhaustedError), error


@pytest.mark.parametrize(
    ("call", "kind", "field"),
    [
        (lambda r: r.delete([]), InvalidInputError, "ids"),
        (lambda r: r.delete(["a", ""]), InvalidInputError, "ids[1]"),
        (lambda r: r.delete([str(n) for n in range(51)]), InvalidInputError, "ids"),
        (lambda r: r.get([]), InvalidInputError, "ids"),
        (lambda r: r.get(["a"], version=99), NotFoundError, "knowledge_version"),
        (lambda r: r.rollback(0), NotFoundError, "knowledge_version"),
        (lambda r: r.rollback(99), NotFoundError, "knowledge_version"),
        (lambda r: r.rollback(2**63), NotFoundError, "knowledge_version"),
        (lambda r: r.compact(keep_versions=0), InvalidInputError, "keep_versions"),
        (lambda r: r.compact(keep_versions=1, keep_seconds=-1), InvalidInputError, "keep_seconds"),
        (lambda r: r.compact(keep_versions=1, keep_seconds=float("nan")), InvalidInputError, "keep_seconds"),
        (lambda r: r.compact(keep_versions=1, keep_seconds=1e13), InvalidInputError, "keep_seconds"),
        (lambda r: r.search(ONES, 3, version=99), NotFoundError, "knowledge_version"),
        (lambda r: diff(r, 0, 1), InvalidInputError, "from_version"),
        (lambda r: diff(r, 1, 99), NotFoundError, "knowledge_version"),
        (lambda r: diff(r, 2**63, 1), NotFoundError, "knowledge_version"),
    ],
)
def test_bad_requests_are_refused(replica: Replica, call: Callable, kind: type[RagserveError], field: str) -> None:
    error = refused(lambda: call(replica))
    assert isinstance(error, kind), error
    assert error.field == field


def diff(replica: Replica, older: int, newer: int) -> object:
    request = retriever_pb2.DiffVersionsRequest(from_version=older, to_version=newer)
    return replica.stub.DiffVersions(request, timeout=60)


def test_a_client_that_leaves_in_the_middle_of_an_upsert_changes_nothing(replica: Replica) -> None:
    def leave() -> None:
        calling = threading.Event()

        def parts() -> Iterator[retriever_pb2.UpsertPassagesRequest]:
            yield retriever_pb2.UpsertPassagesRequest(passages=[GOOD])
            assert calling.wait(60)
            call.cancel()
            yield retriever_pb2.UpsertPassagesRequest(passages=[new_passage("b", "text", ONES)])

        call = replica.stub.UpsertPassages.future(parts(), timeout=60)
        calling.set()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()

    for _ in range(40):
        leave()
    time.sleep(COMMIT_SECONDS)  # what was begun would be committed by now
    assert not replica.get(["good"])
