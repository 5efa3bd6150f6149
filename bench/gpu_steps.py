"""Decode steps of one session on a device, as the generator's worker runs them: no thread, no service."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from bench.beams import CANDIDATES, best_continuations
from bench.workload import Workload
from generator_svc.budget import Capacity
from generator_svc.commands import StepControl
from generator_svc.gpu.stepper import StaticStepper
from generator_svc.models.bart import Bart
from generator_svc.models.numerics import NUMERICS
from generator_svc.models.precision import Precision
from generator_svc.placement import build_runner
from generator_svc.runner import StepRows
from generator_svc.scheduler import Scheduler
from generator_svc.sessions import Session, Start
from generator_svc.steps import PlainStepper, Stepper, StepTask
from generator_svc.weights import TensorFile, WeightMap

WARM_UPS = 2  # searches: compile, capture, then replay


@dataclass(frozen=True)
class StepTimes:
    """Median milliseconds until a step's candidates are on the host, and of encoding the documents."""

    step_ms: float
    encode_ms: float


class StepBench:
    """One precision of a model on a device, with and without CUDA graphs."""

    def __init__(self, generator: Path, workload: Workload, device: str, precision: Precision) -> None:
        config = AutoConfig.from_pretrained(str(generator))
        weights = WeightMap(TensorFile(generator / "model.safetensors"))
        self._device = torch.device(device)
        model = Bart(config, weights, self._device, NUMERICS[precision])
        capacity = Capacity()
        self._runner, stepper = build_runner(model, self._device, capacity.cache_bytes)
        self.steppers: dict[str, Stepper] = {"plain operators": PlainStepper(self._runner)}
        if isinstance(stepper, StaticStepper):
            self.steppers = {"on": stepper, "off": stepper.without_graphs(), **self.steppers}
        tokenizer = AutoTokenizer.from_pretrained(generator)
        self._contexts: list[list[int]] = [tokenizer(context)["input_ids"] for context in workload.contexts()]
        self._priors = np.array(workload.log_priors(), dtype=np.float32)
        self._start, self._end = int(config.decoder_start_token_id), int(config.eos_token_id)
        self._steps = workload.new_tokens

    @torch.inference_mode()
    def measure(self, graphs: str, beams: int, rounds: int) -> StepTimes:
        """Whole searches; the first step of each, of one hypothesis, is not counted."""
        stepper = self.steppers[graphs]
        found = [self._search(stepper, beams) for _ in range(WARM_UPS + rounds)][WARM_UPS:]
        steps = [seconds for _, own in found for seconds in own]
        return StepTimes(1000 * statistics.median(steps), 1000 * statistics.median(seconds for seconds, _ in found))

    def _search(self, stepper: Stepper, beams: int) -> tuple[float, list[float]]:
        """Seconds of encoding and of each step."""
        scheduler = Scheduler(Capacity())
        session = Session(tuple(map(tuple, self._contexts)), True, (Start((self._start,)),))
        scheduler.admit(session, 0.0)
        self._wait()
        begin = time.perf_counter()
        documents = tuple(self._runner.encode(self._contexts).documents)
        self._wait()
        encoding = time.perf_counter() - begin
        scheduler.encoded(session.documents)
        scheduler.started(session)
        totals, taken = np.zeros(1), []
        for _ in range(self._steps):
            self._runner.cache.grow(scheduler.slots.size)
            begin = time.perf_counter()
            controls = tuple(StepControl(banned=(self._end,)) for _ in session.hypotheses)
            rows = StepRows(documents, tuple(session.hypotheses), session.shared)
            (step,) = stepper.run([StepTask(rows, controls, self._priors, CANDIDATES)])
            output = step.select(range(len(controls)), CANDIDATES)
            taken.append(time.perf_counter() - begin)
            scheduler.finished(session, 0.0)
            chosen = output.token_ids, output.log_probs, self._priors.tolist()
            choices, totals = best_continuations(totals, *chosen, beams)
            scheduler.advance(session, choices, 0.0)
        return encoding, taken[1:]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
