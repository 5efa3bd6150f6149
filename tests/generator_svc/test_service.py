"""The real process: `python -m generator_svc` on free ports, driven over gRPC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.processes import free_ports
from generator_svc.options import EngineOptions
from ragserve.errors import InvalidInputError, RagserveError, UnavailableError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import common_pb2, generator_pb2, generator_pb2_grpc
from tests.tiny import tiny_passages

SESSIONS = "ragserve_decode_sessions"


class Service:
    """One running generator."""

    def __init__(
        self, model: Path, *flags: str, program: Sequence[str] = ("-m", "generator_svc"), log: Any = None
    ) -> None:
        self.port, self.metrics_port = free_ports(2)
        command = [sys.executable, *program, "--model", str(model), "--device", "cpu"]
        command += ["--server.port", str(self.port), "--server.metrics_port", str(self.metrics_port), *flags]
        self.process = subprocess.Popen(command, env=_environment(), stderr=log)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = generator_pb2_grpc.GeneratorServiceStub(self.channel)

    def wait_until_serving(self) -> None:
        health = health_pb2_grpc.HealthStub(self.channel)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                request = health_pb2.HealthCheckRequest(service="ragserve.v1.GeneratorService")
                if health.Check(request, timeout=2).status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.1)
        raise AssertionError("the generator did not start")

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def wait_for_metric(self, name: str, value: float) -> None:
        deadline = time.monotonic() + 20
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.05)

    def stop(self) -> int:
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


class Stream:
    """A decode stream driven by hand."""

    def __init__(self, stub: generator_pb2_grpc.GeneratorServiceStub, timeout: float = 30) -> None:
        self._requests: SimpleQueue[generator_pb2.DecodeRequest | None] = SimpleQueue()
        self.call = stub.Decode(iter(self._requests.get, None), timeout=timeout)

    def ask(self, **request: object) -> generator_pb2.DecodeResponse:
        self._requests.put(generator_pb2.DecodeRequest(**request))
        return next(self.call)

    def fails(self, **request: object) -> RagserveError:
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(**request)
        return error_from_rpc(caught.value)

    def end(self) -> None:
        self._requests.put(None)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}


def opening(n_docs: int = 3, **more: object) -> generator_pb2.OpenRequest:
    documents = [generator_pb2.Document(title=p.title, text=p.text, log_prior=-1.1) for p in tiny_passages(n_docs, 3)]
    fields = {"question": "who?", "documents": documents, "mode": common_pb2.MODE_TOKEN, "candidates": 5, **more}
    return generator_pb2.OpenRequest(**fields)


def advance(*choices: tuple[int, int]) -> generator_pb2.AdvanceRequest:
    hypotheses = [generator_pb2.NextHypothesis(parent=parent, token=token) for parent, token in choices]
    return generator_pb2.AdvanceRequest(hypotheses=hypotheses, candidates=4)


@pytest.fixture(scope="module")
def service(bart_dir: Path) -> Iterator[Service]:
    service = Service(bart_dir, "--idle_seconds", "30")
    try:
        service.wait_until_serving()
        yield service
    finally:
        assert service.stop() == 0


def test_a_whole_session(service: Service) -> None:
    stream = Stream(service.stub)
    requested = generator_pb2.StepControl(requested=[7, 8])
    opened = stream.ask(open=opening(control=requested)).open
    assert len(opened.context_tokens) == 3
    ids = np.frombuffer(opened.step.token_ids, "<i4")
    log_probs = np.frombuffer(opened.step.log_probs, "<f4").reshape(1, 3, 5)
    assert len(ids) == 5
    assert (log_probs < 0).all()
    assert len(np.frombuffer(opened.step.requested_log_probs, "<f4")) == 3 * 2
    assert np.frombuffer(opened.step.allowed_log_mass, "<f4") == pytest.approx(np.log(3) - 1.1, abs=1e-4)
    response = stream.ask(advance=advance((0, int(ids[0])), (0, int(ids[1]))))
    assert (response.step.hypotheses, response.step.candidates) == (2, 4)
    assert {timing.stage for timing in response.timings} == {"queue", "decode_step", "select"}
    wide = stream.ask(widen=generator_pb2.WidenRequest(hypotheses=[1], candidates=10**6)).step
    assert (wide.hypotheses, wide.candidates) == (1, 400)
    targets = [
        generator_pb2.Target(tokens=generator_pb2.TokenSequence(token_ids=[int(ids[0]), 2])),
        generator_pb2.Target(text="the river"),
    ]
    scores = stream.ask(score=generator_pb2.ScoreRequest(targets=targets)).score.scores
    assert np.frombuffer(scores[0].log_probs, "<f4").reshape(3, 2)[:, 0] == pytest.approx(log_probs[0, :, 0], abs=1e-3)
    sequences = [generator_pb2.TokenSequence(token_ids=scores[1].token_ids)]
    rendered = stream.ask(render=generator_pb2.RenderRequest(sequences=sequences)).render.sequences[0]
    assert rendered.text == "the river"
    assert rendered.pieces[0] == "<s>"
    stream.end()
    assert next(stream.call, None) is None
    service.wait_for_metric(SESSIONS, 0)


def test_info(service: Service) -> None:
    info = service.stub.GetInfo(generator_pb2.GeneratorServiceGetInfoRequest(), timeout=10)
    assert (info.model_type, info.trained_mode, info.vocab_size) == ("bart", common_pb2.MODE_TOKEN, 400)
    assert (info.decoder_start_token_id, list(info.eos_token_ids), info.bos_token_id) == (2, [2], 0)
    assert (info.device, info.precision, info.max_context_tokens) == ("cpu", "float32", 512)
    assert (info.max_hypotheses, info.max_rows) == (EngineOptions().max_hypotheses, EngineOptions().max_rows)
    assert info.defaults.n_docs == 3
    assert not info.defaults.HasField("num_beams")


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({}, "request"),
        ({"advance": advance((0, 5))}, "open"),
        ({"open": opening(mode=common_pb2.MODE_UNSPECIFIED)}, "open.mode"),
        ({"open": opening(truncation=9)}, "open.truncation"),
        ({"open": opening(0)}, "open.documents"),
    ],
)
def test_a_bad_first_request_names_its_field(service: Service, request_fields: dict[str, object], field: str) -> None:
    error = Stream(service.stub).fails(**request_fields)
    assert isinstance(error, InvalidInputError)
    assert error.field == field


def test_an_invalid_advance_ends_the_stream(service: Service) -> None:
    stream = Stream(service.stub)
    stream.ask(open=opening())
    error = stream.fails(advance=advance((0, 5), (0, 6), (3, 7)))
    assert error.field == "advance.hypotheses[2].parent"
    service.wait_for_metric(SESSIONS, 0)


def test_a_killed_client_frees_its_session(service: Service, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(
        "import sys\n"
        "from queue import SimpleQueue\n"
        "import grpc\n"
        "from ragserve.v1 import generator_pb2, generator_pb2_grpc\n"
        "requests = SimpleQueue()\n"
        "stub = generator_pb2_grpc.GeneratorServiceStub(grpc.insecure_channel(sys.argv[1]))\n"
        "call = stub.Decode(iter(requests.get, None))\n"
        "opening = generator_pb2.OpenRequest.FromString(bytes.fromhex(sys.argv[2]))\n"
        "requests.put(generator_pb2.DecodeRequest(open=opening))\n"
        "next(call)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script), f"127.0.0.1:{service.port}", opening().SerializeToString().hex()]
    client = subprocess.Popen(command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"open\n"
    assert service.metric(SESSIONS) == 1
    assert service.metric("ragserve_cache_bytes") > 0
    client.kill()
    client.communicate()
    service.wait_for_metric(SESSIONS, 0)
    service.wait_for_metric("ragserve_cache_bytes", 0)


def test_a_deadline_frees_the_session(service: Service) -> None:
    stream = Stream(service.stub, timeout=1.0)
    stream.ask(open=opening())
    with pytest.raises(grpc.RpcError) as caught:
        next(stream.call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    service.wait_for_metric(SESSIONS, 0)


def test_a_worker_that_fails_ends_the_process(bart_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "from generator_svc.__main__ import main\n"
        "from generator_svc.scheduler import Scheduler\n"
        "from ragserve.serving.server import run\n"
        "def plan(self, now):\n"
        "    if self.n_sessions:\n"
        "        raise OSError('broken on purpose')\n"
        "    return sound(self, now)\n"
        "sound, Scheduler.plan = Scheduler.plan, plan\n"
        "run(main)\n",
        encoding="utf-8",
    )
    with (tmp_path / "log").open("w+b") as log:
        service = Service(bart_dir, program=[str(script)], log=log)
        try:
            service.wait_until_serving()
            error = Stream(service.stub).fails(open=opening())
            assert service.process.wait(30) == 1
        finally:
            service.process.kill()
            service.channel.close()
        log.seek(0)
        text = log.read().decode()
    assert isinstance(error, UnavailableError)
    assert "the worker thread failed" in text
    assert "broken on purpose" in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [(("--precision", "int4"), "precision"), pytest.param(("--model", "nowhere"), "nowhere", marks=pytest.mark.long)],
)
def test_bad_settings_give_one_clear_line(bart_dir: Path, flags: tuple[str, ...], says: str) -> None:
    command = [sys.executable, "-m", "generator_svc", "--model", str(bart_dir), "--server.port", "0"]
    command += ["--server.metrics_port", "0", *flags]
    result = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode in (1, 2)
    last = result.stderr.strip().splitlines()[-1]
    assert says in last
    assert "Traceback" not in result.stderr


def test_silent_clients_are_told_that_their_session_has_ended(bart_dir: Path) -> None:
    service = Service(bart_dir, "--idle_seconds", "1")
    try:
        service.wait_until_serving()
        never_opened, opened, stepping = (Stream(service.stub) for _ in range(3))
        opened.ask(open=opening())
        ids = np.frombuffer(stepping.ask(open=opening()).open.step.token_ids, "<i4")
        stepping.ask(advance=advance((0, int(ids[0]))))
        for stream in (never_opened, opened, stepping):
            with pytest.raises(grpc.RpcError) as caught:
                next(stream.call)
            assert "idle_seconds" in str(error_from_rpc(caught.value))
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            stream.end()
        service.wait_for_metric(SESSIONS, 0)
    finally:
        assert service.stop() == 0
