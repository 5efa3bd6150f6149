from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from ragserve import errors
from ragserve.serving.status import CODE_OF, error_from_rpc
from ragserve.v1 import generator_pb2, retriever_pb2
from tests.serving.conftest import Running, until
from tests.serving.echo import ERRORS, RETRIEVE

TOLD = [name for name in ERRORS if name not in ("bug", "internal", "long", "broken")]


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def count(running: Running, code: str, method: str = "Retrieve", service: str = "RetrieverService") -> float:
    service = service if "." in service else f"ragserve.v1.{service}"
    labels = {"grpc_service": service, "grpc_method": method, "grpc_code": code}
    return running.metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0


async def counted(running: Running, code: str, **keywords: str) -> None:
    """Waits until a call ended with the code on the server's side too."""
    await until(lambda: count(running, code, **keywords))


def requests(*items: Any) -> AsyncIterator[Any]:
    async def stream() -> AsyncIterator[Any]:
        for item in items:
            yield item
        await asyncio.sleep(60)

    return stream()


def opened(question: str) -> Any:
    return generator_pb2.DecodeRequest(open=generator_pb2.OpenRequest(question=question))


async def test_answers_pass(running: Running) -> None:
    response = await running.retrieve("hello")
    assert response.results[0].decoded_query == "hello"
    assert count(running, "OK") == 1


@pytest.mark.parametrize("name", TOLD)
async def test_errors_of_unary_calls_survive_the_wire(running: Running, name: str) -> None:
    raised = ERRORS[name]
    assert isinstance(raised, errors.RagserveError)
    error = await failure(running.retrieve(name))
    assert error.code() is CODE_OF[type(raised)]
    received = error_from_rpc(error)
    assert type(received) is type(raised)
    assert (received.message, received.field, received.retry_after_seconds) == (
        raised.message,
        raised.field,
        raised.retry_after_seconds,
    )
    assert count(running, error.code().name) == 1


@pytest.mark.parametrize("name", TOLD)
async def test_errors_of_streams_survive_the_wire(running: Running, name: str) -> None:
    call = running.generator.Decode(requests(opened("fine"), opened(name)))
    assert (await call.read()).render.sequences[0].text == "fine"
    error = await failure(call.read())
    raised = ERRORS[name]
    assert type(error_from_rpc(error)) is type(raised)
    assert running.echo.closed == ["decode"]


@pytest.mark.parametrize("name", ["bug", "internal"])
async def test_our_bugs_are_told_by_an_id_only(running: Running, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = await failure(running.retrieve(name))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details() + str(error.trailing_metadata())
    record = next(r for r in caplog.records if r.getMessage() == "internal error")
    assert record.fields["error_id"] in error.details()
    assert "secret text" in str(record.exc_info[1])


async def test_text_that_is_not_utf8_names_the_field(running: Running) -> None:
    query = b"\x0a\x02\xff\xfe"
    send = running.channel.unary_unary(RETRIEVE)
    error = await failure(send(b"\x0a" + bytes([len(query)]) + query))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    received = error_from_rpc(error)
    assert (received.field, received.message) == ("queries.text", "the text is not UTF-8")
    assert (await running.retrieve("still here")).results[0].decoded_query == "still here"


async def test_bytes_that_are_no_message(running: Running) -> None:
    error = await failure(running.channel.unary_unary(RETRIEVE)(b"\x0a\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "RetrieverServiceRetrieveRequest" in error.details()


async def test_a_stream_with_text_that_is_not_utf8(running: Running) -> None:
    bad = b"\x0a\x04\x0a\x02\xff\xfe"
    call = running.channel.stream_stream("/ragserve.v1.GeneratorService/Decode")(requests(bad))
    error = await failure(call.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_from_rpc(error).field == "open.question"


@pytest.mark.parametrize("loading", [{"max_message_bytes": 4096}], indirect=True)
async def test_messages_that_are_too_large(running: Running) -> None:
    error = await failure(running.retrieve("x" * 5000))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await running.retrieve("x" * 1000)).results


@pytest.mark.parametrize("loading", [{"max_message_bytes": 4096}], indirect=True)
async def test_a_reply_that_is_too_large_says_so_and_is_logged(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failure(running.retrieve("large 5000"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_from_rpc(error).field == "server.max_message_bytes"
    assert "the reply has 50" in error.details()
    assert "a message may have 4096 (server.max_message_bytes)" in error.details()
    assert "a reply is too large to be sent" in caplog.text
    assert count(running, "RESOURCE_EXHAUSTED") == 1
    error = await failure(running.generator.Decode(requests(opened("large 5000"))).read())
    assert error_from_rpc(error).field == "server.max_message_bytes"
    error = await failure(running.retrieve("x" * 5000))  # gRPC itself refuses the request
    assert "has 50" in error_from_rpc(error).message
    assert error_from_rpc(error).field == "server.max_message_bytes"
    assert (await running.retrieve("large 3000")).results


async def test_deadline_of_a_caller_is_counted(running: Running) -> None:
    error = await failure(running.retrieve("sleep 60", timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await counted(running, "DEADLINE_EXCEEDED")


async def test_callers_that_leave_are_counted(running: Running) -> None:
    call = running.retrieve("sleep 60", timeout=30)
    await running.echo.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await counted(running, "CANCELLED")


async def test_leaving_a_stream_closes_the_generator_at_once(running: Running) -> None:
    call = running.generator.Decode(requests(opened("one")))
    await call.read()
    call.cancel()
    await counted(running, "CANCELLED", method="Decode", service="GeneratorService")
    assert running.echo.closed == ["decode"]


@pytest.mark.parametrize("loading", [{"max_in_flight": 2}], indirect=True)
async def test_too_many_calls_are_refused_at_once(running: Running) -> None:
    held = [running.retrieve("sleep 60", timeout=30) for _ in range(2)]
    await until(lambda: running.metrics.registry.get_sample_value("ragserve_calls_in_flight") == 2)
    error = await failure(running.retrieve("me too"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    received = error_from_rpc(error)
    assert "max_in_flight" in received.message
    assert received.retry_after_seconds == 0.5
    for call in held:
        call.cancel()
    await counted(running, "CANCELLED")


async def test_calls_while_loading_are_unavailable(loading: Running) -> None:
    error = await failure(loading.retrieve("early"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "loading" in error.details()


async def test_the_other_kinds_of_calls(running: Running) -> None:
    def text(data: bytes) -> str:
        return retriever_pb2.Query.FromString(data).text

    def data(text: str) -> bytes:
        return retriever_pb2.Query(text=text).SerializeToString()

    async def several() -> AsyncIterator[bytes]:
        yield data("ab")
        yield data("c")

    assert text(await running.channel.stream_unary("/echo.Other/Join")(several())) == "abc"
    for method in ("Split", "Write"):
        parts = running.channel.unary_stream(f"/echo.Other/{method}")(data("abc"))
        assert [text(part) async for part in parts] == ["a", "b", "c"]
    for method in ("Join", "Split", "Write"):
        await counted(running, "OK", method=method, service="echo.Other")
    bad = running.channel.unary_stream("/echo.Other/Split")(b"\x0a\x01\xff")
    assert error_from_rpc(await failure(bad.read())).field == "text"
    bad = running.channel.stream_unary("/echo.Other/Join")(requests(b"\x0a\x01\xff"))
    assert error_from_rpc(await failure(bad)).field == "text"


async def test_a_servicer_may_abort_itself(running: Running) -> None:
    error = await failure(running.retrieve("abort"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "aborted")
    assert count(running, "NOT_FOUND") == 1


@pytest.mark.parametrize("name", ["long", "broken"])
async def test_messages_that_do_not_fit_the_wire(running: Running, name: str) -> None:
    error = await failure(running.retrieve(name))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    received = error_from_rpc(error)
    assert received.field == "queries"
    assert received.message.startswith("漢漢" if name == "long" else "text ?")


async def test_unknown_methods(running: Running) -> None:
    error = await failure(running.channel.unary_unary("/ragserve.v1.RetrieverService/Nothing")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert isinstance(error_from_rpc(error), errors.FailedPreconditionError)


async def test_answers_without_details_are_read_too(running: Running) -> None:
    request = retriever_pb2.RetrieverServiceGetInfoRequest().SerializeToString()
    error = await failure(running.channel.unary_unary("/ragserve.v1.RetrieverService/GetInfo")(request))
    assert error_from_rpc(error).field == ""
