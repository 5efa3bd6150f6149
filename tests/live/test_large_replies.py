"""Passages near the limit: what does not fit into a message is refused with its cause, and the log has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ragserve.errors import InvalidInputError, ResourceExhaustedError
from ragserve.passage_rules import MAX_PASSAGE_BYTES
from ragserve.v1 import retriever_pb2
from tests.live.harness import Home, Replica, new_passage, refused
from tests.retriever_svc.models import DIMENSION

MEGABYTE = 2**20
ONES = np.ones(DIMENSION, np.float32)
IDS = [f"large {number}" for number in range(4)]


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    started = Home.build(tmp_path_factory.mktemp("large")).replica(**{"server.max_message_bytes": MEGABYTE})
    text = "x" * (MAX_PASSAGE_BYTES - 100)
    for identifier in IDS:
        started.upsert([new_passage(identifier, text, ONES)])
    yield started
    started.stop()


def search(k: int) -> retriever_pb2.RetrieverServiceRetrieveRequest:
    query = retriever_pb2.Query(vector=ONES.tobytes())
    return retriever_pb2.RetrieverServiceRetrieveRequest(queries=[query], k=k)


def test_every_reply_with_passages_says_what_is_too_large(replica: Replica) -> None:
    calls: list[Any] = [
        lambda: replica.stub.Retrieve(search(4)),
        lambda: replica.stub.GetPassages(retriever_pb2.GetPassagesRequest(ids=IDS)),
    ]
    for call in calls:
        error = refused(call)
        assert isinstance(error, ResourceExhaustedError)
        assert error.field == "server.max_message_bytes"
        assert f"a message may have {MEGABYTE}" in error.message
    assert replica.process.log_text().count("a reply is too large to be sent") == 2
    assert len(replica.stub.Retrieve(search(1)).results[0].passages) == 1


def test_a_stream_goes_on_after_a_reply_that_is_too_large(replica: Replica) -> None:
    requests = [retriever_pb2.RetrieveStreamRequest(id=k, request=search(k)) for k in (1, 4)]
    found = {response.id: response for response in replica.stub.RetrieveStream(iter(requests), timeout=60)}
    assert len(found[1].response.results[0].passages) == 1
    assert "a message may have" in found[4].error.message
    assert found[4].error.field == "server.max_message_bytes"


@pytest.mark.parametrize("part", ["text", "title", "metadata_json"])
def test_a_passage_over_the_limit_is_refused(replica: Replica, part: str) -> None:
    passage = new_passage("a", "text", ONES)
    value = "é" * (MAX_PASSAGE_BYTES // 2)
    setattr(passage.passage, part, f'{{"html": "{value}"}}' if part == "metadata_json" else value)
    error = refused(lambda: replica.upsert([passage]))
    assert isinstance(error, InvalidInputError)
    assert error.field == f"passages[0].passage.{part}"
    assert f"may have {MAX_PASSAGE_BYTES} (max_passage_bytes)" in error.message
