"""Every parameter of every public method of every client gets odd values: only errors of `ragserve.errors` come out."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Queue
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ragserve
from ragserve.errors import InvalidInputError, RagserveError
from tests.client.odd import (
    CLIENTS,
    CallersOwnError,
    Method,
    finish,
    finish_async,
    methods,
    odd_values,
    parameters,
    raising,
)
from tests.live.harness import Home
from tests.orchestrator.toy import Toy
from tests.orchestrator.toy_services import world

SECONDS = 60.0


# What an error may call a parameter.
OTHER_NAMES = {"docs": ("n_docs",), "search_kind": ("search.kind", "options.kind"), "lookups": ("queries",)}


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[str]:
    """The target of a real orchestrator, whose retriever and generator are toys."""
    targets: Queue[str] = Queue()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with world(Toy("disagree", vocab=60, seed=3)) as running:
            targets.put(running.target)
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    yield targets.get(timeout=60)
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)
    loop.close()


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The target of a real retriever."""
    running = Home.build(tmp_path_factory.mktemp("home"), 20).replica()
    yield running.process.target
    running.stop()


@pytest.fixture
def targets(orchestrator: str, retriever: str) -> dict[str, str]:
    return {"Client": orchestrator, "KnowledgeClient": retriever}


def test_every_method_has_a_case() -> None:
    assert len(methods()) == 34
    for method in methods():
        assert set(method.base) <= set(method.parameters())


@pytest.mark.parametrize("method", methods(), ids=str)
@pytest.mark.timeout(300)
def test_odd_values_give_errors_of_ours(method: Method, targets: dict[str, str]) -> None:
    target = targets[method.client.__name__.removeprefix("Async")]
    if method.is_async:
        asyncio.run(pass_all_async(method, target))
        return
    with method.client(target, timeout_seconds=SECONDS) as client:
        call = getattr(client, method.name)
        with suppress(ragserve.NotFoundError):  # version 1 may be compacted away
            finish(call(**method.base))
        for name in method.parameters():
            for value in odd_values():
                try:
                    finish(call(**{**method.base, name: value}))
                except (RagserveError, CallersOwnError) as error:
                    check(error, method, name, value)
                except BaseException as error:
                    raise AssertionError(f"{method}({name}={kind(value)}) raises {type(error).__name__}") from error


async def pass_all_async(method: Method, target: str) -> None:
    async with method.client(target, timeout_seconds=SECONDS) as client:
        call = getattr(client, method.name)
        with suppress(ragserve.NotFoundError):
            await finish_async(call(**method.base))
        for name in method.parameters():
            for value in odd_values():
                try:
                    await finish_async(call(**{**method.base, name: value}))
                except (RagserveError, CallersOwnError) as error:
                    check(error, method, name, value)
                except BaseException as error:
                    raise AssertionError(f"{method}({name}={kind(value)}) raises {type(error).__name__}") from error


def check(error: Exception, method: Method, name: str, value: Any) -> None:
    """An error names the parameter. The caller's own comes from the caller's own iterable only."""
    where = f"{method}({name}={kind(value)}): {type(error).__name__}: {error}"
    if isinstance(error, CallersOwnError):
        assert str(error) == "iterating", where
        return
    assert not isinstance(error, ragserve.InternalError), where
    if isinstance(error, InvalidInputError):
        names = (name, *OTHER_NAMES.get(name, ()))
        assert any(re.search(rf"\b{re.escape(one)}\b", str(error)) for one in names), where
    assert len(str(error)) < 1000, where


def kind(value: Any) -> str:
    try:
        return repr(value)[:80]
    except Exception:
        return type(value).__name__


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_odd_values_for_constructors(client: type[Any]) -> None:
    for name in parameters(client.__init__):
        for value in odd_values():
            try:
                made = client(**{"target": "localhost:1", name: value})
            except RagserveError as error:
                check(error, Method(client, "close"), name, value)
            else:
                closed = made.close()
                if closed is not None:
                    asyncio.run(closed)


def test_what_the_callers_iterables_raise_passes_unchanged(targets: dict[str, str]) -> None:
    with ragserve.Client(targets["Client"]) as client, pytest.raises(CallersOwnError):
        client.generate("q", documents=raising())  # type: ignore[arg-type]
    with ragserve.KnowledgeClient(targets["KnowledgeClient"]) as knowing:

        def stop(_sent: int, _total: int) -> None:
            raise CallersOwnError("progress")

        before = knowing.info().knowledge_version
        for call in (
            lambda: knowing.upsert(raising()),
            lambda: knowing.delete(raising()),
            lambda: list(knowing.retrieve_stream(raising())),
            lambda: knowing.upsert([{"id": "a", "text": "b"}], progress=stop),
        ):
            with pytest.raises(CallersOwnError):
                call()
        assert knowing.info().knowledge_version == before


async def test_what_the_callers_functions_raise_passes_unchanged_in_asyncio(targets: dict[str, str]) -> None:
    async with ragserve.AsyncKnowledgeClient(targets["KnowledgeClient"]) as knowing:

        def stop(_sent: int, _total: int) -> None:
            raise CallersOwnError("progress")

        before = (await knowing.info()).knowledge_version
        with pytest.raises(CallersOwnError, match="progress"):
            await knowing.upsert([{"id": "a", "text": "b"}], progress=stop)
        assert (await knowing.info()).knowledge_version == before


def test_numbers_of_numpy_count_as_numbers(targets: dict[str, str]) -> None:
    with ragserve.Client(targets["Client"]) as client:
        plain = client.generate("a b", beams=2, length_penalty=0.5, docs=2, timeout_seconds=30)
        same = client.generate(
            np.str_("a b"),
            beams=np.int16(2),
            length_penalty=np.float32(0.5),  # type: ignore[arg-type]
            docs=np.uint8(2),  # type: ignore[arg-type]
            timeout_seconds=np.float32(30),  # type: ignore[arg-type]
        )
        assert (same.answer, same.log_prob) == (plain.answer, plain.log_prob)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.dates()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_for_any_parameter(data: st.DataObject, targets: dict[str, str]) -> None:
    method = data.draw(st.sampled_from([one for one in methods() if not one.is_async and one.name != "close"]))
    names = method.parameters()
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    value = data.draw(values)
    if "seconds" in name and isinstance(value, float) and 0 < value < 1:
        return  # a deadline that cannot be met is no odd value
    with method.client(targets[method.client.__name__], timeout_seconds=SECONDS) as client:
        try:
            finish(getattr(client, method.name)(**{**method.base, name: value}))
        except RagserveError as error:
            check(error, method, name, value)
