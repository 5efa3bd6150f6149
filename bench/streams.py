"""Decode sessions straight on a generator, over gRPC: driven greedily, and held open for as long as is wanted."""

from __future__ import annotations

from queue import SimpleQueue

import numpy as np

from bench.beams import CANDIDATES, best_continuations
from bench.system import TIMEOUT_SECONDS
from bench.workload import Workload
from ragserve.v1 import common_pb2, generator_pb2_grpc
from ragserve.v1 import generator_pb2 as pb


class Stream:
    """One session in token mode, driven greedily through a workload; its memory is held until `close`."""

    def __init__(self, stub: generator_pb2_grpc.GeneratorServiceStub, workload: Workload, eos: int) -> None:
        self._requests: SimpleQueue[pb.DecodeRequest | None] = SimpleQueue()
        self._responses = stub.Decode(iter(self._requests.get, None), timeout=TIMEOUT_SECONDS)
        self._workload = workload
        self._control = pb.StepControl(banned=[eos])

    def decode(self) -> None:
        """Open, and generate every token of the workload."""
        totals, step = np.zeros(1), self._ask(pb.DecodeRequest(open=self._open())).open.step
        for _ in range(self._workload.new_tokens - 1):
            choices, totals = best_continuations(totals, *self._arrays(step), self._workload.log_priors(), 1)
            chosen = [pb.NextHypothesis(parent=parent, token=token, control=self._control) for parent, token in choices]
            advance = pb.AdvanceRequest(hypotheses=chosen, candidates=CANDIDATES)
            step = self._ask(pb.DecodeRequest(advance=advance)).step

    def close(self) -> None:
        """End the session; returns when the generator has ended it too."""
        self._requests.put(None)
        for _ in self._responses:
            pass

    def _open(self) -> pb.OpenRequest:
        texts = zip(self._workload.texts(), self._workload.log_priors(), strict=True)
        return pb.OpenRequest(
            question=self._workload.question,
            documents=[pb.Document(title=self._workload.title, text=text, log_prior=prior) for text, prior in texts],
            mode=common_pb2.MODE_TOKEN,
            candidates=CANDIDATES,
            control=self._control,
        )

    def _ask(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        self._requests.put(request)
        response: pb.DecodeResponse = next(self._responses)
        return response

    def _arrays(self, step: pb.StepResult) -> tuple[np.ndarray, np.ndarray]:
        """Ids [n_hypotheses, M] and log-probabilities [n_hypotheses, n_docs, M]."""
        size = (step.hypotheses, self._workload.n_docs, step.candidates)
        ids = np.frombuffer(step.token_ids, "<i4").reshape(size[0], size[2])
        return ids, np.frombuffer(step.log_probs, "<f4").reshape(size)
