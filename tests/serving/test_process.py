"""Signals and failures of a whole service process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from ragserve.serving.channel import sync_channel
from ragserve.v1 import retriever_pb2, retriever_pb2_grpc

PROGRAM = Path(__file__).with_name("echo.py")


@dataclass
class Process:
    """The process and the log lines it has written."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def wait_for(self, words: str, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in list(self.lines):
                if words in line:
                    return line
            time.sleep(0.01)
        raise TimeoutError(f"{words!r} not in {self.lines}")

    def address(self, port: str) -> str:
        found = re.search(rf" {port}=(\S+)", self.wait_for("msg=listening"))
        assert found is not None
        return found[1]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.address('metrics')}") as response:
            return str(response.read(), "utf-8")


@contextmanager
def process(how: str = "ready", *, grace: float = 20, port: int = 0, metrics_port: int = 0) -> Iterator[Process]:
    command = [sys.executable, "-W", "error", str(PROGRAM), str(port), str(metrics_port), how, str(grace)]
    root = PROGRAM.parent.parent.parent
    with subprocess.Popen(command, cwd=root, stdout=-1, stderr=-1, text=True) as popen:
        started = Process(popen)
        reader = threading.Thread(target=_collect, args=(started,))
        reader.start()
        try:
            yield started
        finally:
            popen.kill()
            reader.join()


def _collect(started: Process) -> None:
    assert started.popen.stderr is not None
    for line in started.popen.stderr:
        started.lines.append(line.rstrip("\n"))


@contextmanager
def calling(started: Process, text: str) -> Iterator[Future[str]]:
    """A call at work in the process."""
    request = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[retriever_pb2.Query(text=text)])
    with sync_channel(started.address("grpc")) as channel, ThreadPoolExecutor(1) as thread:
        stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
        future = thread.submit(lambda: stub.Retrieve(request, timeout=60).results[0].decoded_query)
        while "ragserve_calls_in_flight 1.0" not in started.metrics():
            time.sleep(0.01)
        yield future


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(number: signal.Signals) -> None:
    with process() as started:
        started.wait_for("msg=serving")
        with calling(started, "sleep 1") as call:
            started.popen.send_signal(number)
            started.wait_for("msg=draining")
            assert call.result(60) == "sleep 1"
        assert started.popen.wait(60) == 0
        assert started.popen.stdout is not None
        assert started.popen.stdout.read() == "service stopped True\n"
        assert "msg=stopped" in started.lines[-1]


def test_garbage_collection_leaves_out_what_was_loaded() -> None:
    """It stops every thread, and looking through the objects of all modules takes tens of milliseconds."""
    with process() as started:
        started.wait_for("msg=serving")
        with sync_channel(started.address("grpc")) as channel:
            query = retriever_pb2.Query(text="share of objects that garbage collection leaves out")
            request = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[query])
            response = retriever_pb2_grpc.RetrieverServiceStub(channel).Retrieve(request, timeout=60)
        assert float(response.results[0].decoded_query) > 0.9


def test_calls_end_with_the_grace() -> None:
    with process(grace=0.3) as started:
        started.wait_for("msg=serving")
        with calling(started, "sleep 60") as call:
            started.popen.terminate()
            assert started.popen.wait(60) == 0
            with pytest.raises(grpc.RpcError):
                call.result(60)


def test_a_second_signal_ends_the_process_at_once() -> None:
    with process(grace=60) as started:
        started.wait_for("msg=serving")
        with calling(started, "sleep 60") as call:
            started.popen.terminate()
            started.wait_for("msg=draining")
            started.popen.terminate()
            assert started.popen.wait(60) == 128 + signal.SIGTERM
            with pytest.raises(grpc.RpcError):
                call.result(60)


def test_a_signal_while_loading_ends_the_process_at_once() -> None:
    with process("slow") as started:
        started.wait_for("msg=listening")
        started.popen.terminate()
        assert started.popen.wait(60) == 0
        assert "stopped while loading" in started.lines[-1]


def test_a_start_that_fails_is_one_line_and_status_1() -> None:
    with process("broken") as started:
        assert started.popen.wait(60) == 1
        line = started.wait_for("cannot start")
        assert "field=model" in line
        assert 'reason="no such directory: /nowhere"' in line
        assert len(started.lines) == 2


def test_a_start_with_a_bug_is_one_line_and_status_1() -> None:
    with process("buggy") as started:
        assert started.popen.wait(60) == 1
        assert "ZeroDivisionError" in started.wait_for("cannot start")
        assert len(started.lines) == 2


@pytest.mark.parametrize("name", ["port", "metrics_port"])
def test_a_port_in_use_is_one_line_and_status_2(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with process(**{name: number}) as started:  # type: ignore[arg-type]
            assert started.popen.wait(60) == 2
            started.wait_for("error")
            assert started.lines == [
                f"error: cannot listen on 127.0.0.1:{number}: address already in use; choose another server.{name}"
            ]
