"""The generator without its transport: opens decode sessions and answers their commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from generator_svc.budget import Capacity
from generator_svc.commands import Mode
from generator_svc.device import choose_device, pass_size, use_threads
from generator_svc.loading import LoadedGenerator, load_generator
from generator_svc.metrics import GeneratorMetrics
from generator_svc.models.precision import Precision
from generator_svc.options import EngineOptions
from generator_svc.placement import build_runner
from generator_svc.scheduler import Scheduler
from generator_svc.session import DecodeSession
from generator_svc.validation import Limits
from generator_svc.worker import Worker
from ragserve.errors import DeadlineExceededError, UnavailableError
from ragserve.serving.memory import keep_memory_low, keep_temporaries
from ragserve.serving.metrics import Metrics
from ragserve.token_rules import SpecialTokens

BESIDE_ARRAYS = 4096  # bytes of an answer: names, lengths, timings
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class GeneratorInfo:
    """What is loaded, and what decoding with it needs to know."""

    model_type: str
    trained_mode: Mode | None
    tokens: SpecialTokens
    limits: Limits
    defaults: Mapping[str, Any]
    device: str
    precision: Precision
    max_rows: int  # of all sessions together
    warnings: tuple[str, ...] = ()
    query_encoder: str = ""


class GeneratorEngine:
    """Loads a model and runs its sessions. `start` before anything else, `stop` at the end."""

    def __init__(self, directory: Path, options: EngineOptions, metrics: Metrics) -> None:
        self._directory = directory
        self._options = options
        self._metrics = GeneratorMetrics(metrics)
        self._loaded: LoadedGenerator | None = None
        self._worker: Worker | None = None

    async def start(self) -> None:
        """Load the model. Raises RagserveError as `load_generator` does."""
        device = choose_device(self._options.device, self._options.precision)
        use_threads(self._options.threads)
        keep_memory_low()
        self._loaded = await _in_passing(load_generator, self._directory, device, self._options.precision)
        keep_temporaries()
        shape, options = self._loaded.model.shape, self._options
        size = pass_size(device, options.step_rows, options.prefill_tokens)
        capacity = Capacity(
            max_sessions=options.max_sessions,
            max_rows=options.max_rows,
            cache_bytes=options.cache_bytes,
            encoder_cache_bytes=options.encoder_cache_bytes,
            document_token_bytes=shape.bytes_per_document_token,
            slot_bytes=shape.bytes_per_slot,
            step_rows=size.step_rows,
            prefill_tokens=size.prefill_tokens,
            idle_seconds=options.idle_seconds,
        )
        scheduler = Scheduler(capacity)
        runner, stepper = build_runner(self._loaded.model, device, options.cache_bytes)
        self._worker = Worker(runner, stepper, scheduler, self._metrics)
        self._metrics.watch(scheduler)
        self._worker.start()

    async def stop(self) -> None:
        """Stop after the pass in hand."""
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)
            self._worker = None

    @asynccontextmanager
    async def connect(self, seconds_left: float | None = None) -> AsyncIterator[DecodeSession]:
        """A session, freed when the block ends however it ends.

        Raises:
            UnavailableError: the model is not loaded.
            DeadlineExceededError: no time is left.
        """
        if self._worker is None or self._loaded is None:
            raise UnavailableError("the generator is not loaded")
        if seconds_left is not None and seconds_left <= 0:
            raise DeadlineExceededError("the deadline of the decode session passed")
        deadline = None if seconds_left is None else time.monotonic() + seconds_left
        session = DecodeSession(self._loaded, self.limits, self._worker, self._metrics, deadline)
        try:
            yield session
        finally:
            session.close()

    @property
    def limits(self) -> Limits:
        """What one session may ask for: the settings, within what the model can do."""
        shape, options = self._ready().model.shape, self._options
        return Limits(
            vocab_size=shape.vocab_size,
            max_context_tokens=min(options.max_context_tokens, shape.max_source_tokens or options.max_context_tokens),
            max_target_tokens=min(options.max_target_tokens, shape.max_target_tokens or options.max_target_tokens),
            max_documents=options.max_documents,
            max_hypotheses=options.max_hypotheses,
            max_targets=options.max_targets,
            max_question_characters=options.max_question_characters,
            max_passage_bytes=options.max_passage_bytes,
            max_drafts=options.draft_tokens,
            max_answer_bytes=options.max_message_bytes - BESIDE_ARRAYS,
        )

    def info(self) -> GeneratorInfo:
        """What is loaded."""
        loaded = self._ready()
        return GeneratorInfo(
            model_type=loaded.model_type,
            trained_mode=loaded.trained_mode,
            tokens=loaded.tokens,
            limits=self.limits,
            defaults=loaded.defaults,
            device=loaded.device.type,
            precision=self._options.precision,
            max_rows=self._options.max_rows,
            warnings=loaded.warnings,
            query_encoder=loaded.query_encoder,
        )

    def _ready(self) -> LoadedGenerator:
        if self._loaded is None:
            raise UnavailableError("the generator is not loaded")
        return self._loaded


async def _in_passing(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a call returns that runs in a thread which then ends, and with it the thread's OpenMP team.

    A team that stays counts as busy. Where there are then more threads than cores, libgomp lets the worker's team wait
    asleep instead of spinning, at each of the hundreds of barriers of a step, which took a third longer.
    """
    passing = ThreadPoolExecutor(1, thread_name_prefix="generator-loading")
    try:
        return await asyncio.wrap_future(passing.submit(call, *args, **kwargs))
    finally:
        passing.shutdown(wait=False)
