"""An orchestrator's exchanges with a generator: their bytes and steps recorded, and the same steps given again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.deadline import Deadline
from orchestrator.downstream.clients import GeneratorClient, GeneratorSession
from orchestrator.pipeline import SessionSpec
from orchestrator.requests import GeneratorInfo
from orchestrator.search.inference import Control, Extension, Rendered, Step, TargetScore
from orchestrator.settings import OrchestratorSettings
from orchestrator.stages import Stages
from orchestrator.truncation import Reading
from ragserve.serving.metrics import Metrics


@dataclass(frozen=True)
class Exchange:
    """One request on a decode session and its response: serialized bytes, without gRPC's frames."""

    kind: str
    sent: int
    received: int


@dataclass
class Recording:
    """What passed on one session."""

    exchanges: list[Exchange] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rendered: list[list[Rendered]] = field(default_factory=list)


class RecordingClient(GeneratorClient):
    """The orchestrator's own client, which keeps what its sessions exchange in `recording`."""

    def __init__(self, target: str, settings: OrchestratorSettings, metrics: Metrics) -> None:
        super().__init__(target, settings, metrics)
        self.recording = Recording()

    def session(self, spec: SessionSpec, deadline: Deadline, stages: Stages) -> GeneratorSession:
        """See `Generator`."""
        return _RecordingSession(self.recording, self, spec, deadline, stages, max_attempts=1)


class _RecordingSession(GeneratorSession):
    def __init__(self, recording: Recording, *arguments: Any, max_attempts: int) -> None:
        super().__init__(*arguments, max_attempts)
        self._recording = recording

    async def _exchange(self, request: Any) -> Any:
        response = await super()._exchange(request)
        kind = request.WhichOneof("request")
        self._recording.exchanges.append(Exchange(kind, request.ByteSize(), response.ByteSize()))
        return response

    def _step(self, step: Any, rows: Sequence[int] | None = None) -> Step:
        shown = super()._step(step, rows)
        self._recording.steps.append(shown)
        return shown

    async def render(self, sequences: Sequence[Sequence[int]]) -> list[Rendered]:
        """See `Inference`."""
        self._recording.rendered.append(await super().render(sequences))
        return self._recording.rendered[-1]


class Replay:
    """A generator that gives recorded steps again, without computing or waiting; see `Generator`."""

    def __init__(self, info: GeneratorInfo, recording: Recording) -> None:
        self._info, self._recording = info, recording

    async def info(self, deadline: Deadline) -> GeneratorInfo:
        """See `Generator`."""
        return self._info

    @asynccontextmanager
    async def session(self, spec: SessionSpec, deadline: Deadline, stages: Stages) -> AsyncIterator[_ReplayedSession]:
        """See `Generator`."""
        yield _ReplayedSession(iter(self._recording.steps), iter(self._recording.rendered))


@dataclass(frozen=True)
class _ReplayedSession:
    steps: Iterator[Step]
    rendered: Iterator[list[Rendered]]
    reading: Reading = field(default_factory=Reading)  # not recorded

    async def open(self, control: Control, candidates: int) -> Step:
        return next(self.steps)

    async def advance(self, extensions: Sequence[Extension], candidates: int) -> Step:
        return next(self.steps)

    async def widen(self, rows: Sequence[int], candidates: int) -> Step:
        return next(self.steps)

    async def score(self, targets: Sequence[Sequence[int] | str]) -> list[TargetScore]:
        raise NotImplementedError("only RAG-token is replayed")

    async def render(self, sequences: Sequence[Sequence[int]]) -> list[Rendered]:
        return next(self.rendered)
