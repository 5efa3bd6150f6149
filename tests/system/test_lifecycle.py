"""Deadlines, cancellation, drains and deaths, with real processes under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from bench.processes import ServiceProcess, running
from ragserve.v1 import orchestrator_pb2, orchestrator_pb2_grpc, retriever_pb2, retriever_pb2_grpc
from tests.system.harness import TOKEN, Launcher, Stack, options_of, scrape, stub_of
from tests.system.oracle import Search

SESSIONS = "ragserve_decode_sessions"
QUESTION = "who built the old tower of the river city?"
LONG_TOKENS = 250  # a second of decode steps


def request(tokens: int = LONG_TOKENS, beams: int = 4) -> orchestrator_pb2.GenerateRequest:
    search = Search(num_beams=beams, max_length=tokens, min_length=tokens)
    return orchestrator_pb2.GenerateRequest(question=QUESTION, n_docs=4, options=options_of(search, TOKEN))


def sessions(generator: ServiceProcess) -> float:
    return scrape(generator)[SESSIONS]


def eventually(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@dataclass
class Fleet:
    """A stack of its own, to be broken: one retriever, two generators, one orchestrator."""

    retriever: ServiceProcess
    generators: list[ServiceProcess]
    orchestrator: ServiceProcess
    stub: orchestrator_pb2_grpc.RagServiceStub

    def ask(self, pool: ThreadPoolExecutor, tokens: int = LONG_TOKENS) -> Future[orchestrator_pb2.GenerateResponse]:
        return pool.submit(self.stub.Generate, request(tokens), timeout=60)

    def ask_until_all_work(self, pool: ThreadPoolExecutor) -> list[Future[orchestrator_pb2.GenerateResponse]]:
        """Questions, four at a time, until every generator is seen with a session at once."""
        answers: list[Future[orchestrator_pb2.GenerateResponse]] = []

        def all_work() -> bool:
            waiting = sum(not answer.done() for answer in answers)
            answers.extend(self.ask(pool) for _ in range(4 - waiting))
            return all(sessions(each) for each in self.generators)

        eventually(all_work, "all generators are at work at once", 30.0)
        return answers

    def busy(self) -> ServiceProcess | None:
        return next((each for each in self.generators if each.process.poll() is None and sessions(each)), None)


@pytest.fixture(scope="module")
def fleet(launcher: Launcher) -> Iterator[Fleet]:
    retriever = launcher.retriever()
    generators = [launcher.generator(), launcher.generator()]
    orchestrator = launcher.orchestrator(retriever.target, [each.target for each in generators])
    with running(retriever, *generators, orchestrator):
        yield Fleet(retriever, generators, orchestrator, stub_of(orchestrator.target))
        for replaced in generators:
            replaced.stop()


def test_a_deadline_frees_the_session(stack: Stack) -> None:
    generator = stack.generators["bart"]
    with pytest.raises(grpc.RpcError) as caught:
        stack.stubs["bart"].Generate(request(), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: sessions(generator) == 0, "the session is freed", 1.0)
    assert stack.generate("bart", request(tokens=8)).hypotheses


def test_a_cancelled_call_frees_the_session(stack: Stack) -> None:
    generator = stack.generators["bart"]
    call = stack.stubs["bart"].GenerateStream(orchestrator_pb2.GenerateStreamRequest(request=request()), timeout=60)
    assert next(iter(call)).WhichOneof("event") == "passages"
    eventually(lambda: sessions(generator) > 0, "the session is there")
    call.cancel()
    eventually(lambda: sessions(generator) == 0, "the session is freed", 1.0)
    assert stack.generate("bart", request(tokens=8)).hypotheses


def test_a_deadline_that_has_nearly_passed_is_no_work(stack: Stack) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stack.stubs["bart"].Generate(request(), timeout=0.0001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_killed_generator_does_not_change_the_answer(fleet: Fleet, stack: Stack, launcher: Launcher) -> None:
    expected = stack.generate("bart", request()).hypotheses[0]
    with ThreadPoolExecutor(4) as pool:
        answers = fleet.ask_until_all_work(pool)
        victim = fleet.generators[0]
        victim.kill()
        for answer in answers:
            best = answer.result(60).hypotheses[0]
            assert list(best.token_ids) == list(expected.token_ids)
            assert best.log_prob == pytest.approx(expected.log_prob, abs=1e-3)
    assert fleet.stub.Generate(request(tokens=8), timeout=10).hypotheses
    fleet.generators[0] = launcher.generator(server__port=victim.port).wait_healthy()
    with ThreadPoolExecutor(8) as pool:
        # A client that found the address dead tries again within its back-off time.
        eventually(lambda: bool(both_get_work(fleet, pool)), "the new generator gets work", 30.0)


def both_get_work(fleet: Fleet, pool: ThreadPoolExecutor) -> bool:
    answers = [fleet.ask(pool, tokens=60) for _ in range(4)]
    seen = set()
    while not all(answer.done() for answer in answers):
        seen |= {each.port for each in fleet.generators if sessions(each)}
    assert all(answer.result().hypotheses for answer in answers)
    return len(seen) == len(fleet.generators)


@pytest.mark.long
def test_sigterm_drains_a_generator(fleet: Fleet, stack: Stack, launcher: Launcher) -> None:
    expected = stack.generate("bart", request()).hypotheses[0]
    with ThreadPoolExecutor(4) as pool:
        answers = fleet.ask_until_all_work(pool)
        leaving = fleet.generators[1]
        leaving.terminate()
        assert all(list(a.result(60).hypotheses[0].token_ids) == list(expected.token_ids) for a in answers)
    assert leaving.wait() == 0
    assert fleet.stub.Generate(request(tokens=8), timeout=10).hypotheses
    fleet.generators[1] = launcher.generator(server__port=leaving.port).wait_healthy()


def test_sigterm_drains_the_retriever(launcher: Launcher) -> None:
    retriever = launcher.retriever()
    with running(retriever), grpc.insecure_channel(retriever.target) as channel:
        stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
        query = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[retriever_pb2.Query(text=QUESTION)], k=3)
        load = Load(lambda: stub.Retrieve(query, timeout=10))
        eventually(lambda: load.done > 20, "calls are answered")
        retriever.terminate()
        assert retriever.wait() == 0
        load.stop()
    # A plain client; gRPC answers a call that arrives as the server stops with CANCELLED. Ours try both again.
    assert load.failures <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_sigterm_drains_the_orchestrator(fleet: Fleet, launcher: Launcher) -> None:
    targets = [each.target for each in fleet.generators]
    orchestrator = launcher.orchestrator(fleet.retriever.target, targets)
    with running(orchestrator), ThreadPoolExecutor(2) as pool:
        stub = stub_of(orchestrator.target)
        answers = [pool.submit(stub.Generate, request(), timeout=60) for _ in range(2)]
        eventually(lambda: fleet.busy() is not None, "the requests are at work")
        orchestrator.terminate()
        assert all(answer.result(60).hypotheses for answer in answers)
        assert orchestrator.wait() == 0
        with pytest.raises(grpc.RpcError) as caught:
            stub.Generate(request(tokens=8), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: fleet.busy() is None, "no session is left behind")


class Load:
    """Calls without a pause from a few threads, counting answers and the codes of failures."""

    def __init__(self, call: Callable[[], Any], threads: int = 4) -> None:
        self.done = 0
        self.failures: set[grpc.StatusCode] = set()
        self._call, self._ended = call, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._call()
                self.done += 1
            except grpc.RpcError as error:
                self.failures.add(error.code())
                time.sleep(0.01)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
