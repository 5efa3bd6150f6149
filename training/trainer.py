"""Trains the generator in two phases: as a reader of one passage, then with the RAG-Token loss over retrieved ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from training.batches import Tensors, Texts, length_batches, tensors, token_chunks
from training.loss import document_loss, rag_token_loss, reader_loss, token_log_probs
from training.rows import RagExample, ReaderExample

DROPOUT = 0.05
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
SCALE_RATE = 20.0  # learning rate of the prior's scale, relative to the model's
LOWEST_RATE = 0.03  # of the peak, at the end


@dataclass(frozen=True)
class Schedule:
    """Length and size of the two phases. The rate rises over `warmup_steps` and falls linearly."""

    reader_steps: int = 340
    reader_batch: int = 48
    reader_rate: float = 5e-4
    rag_steps: int = 240
    rag_batch: int = 16
    rag_rate: float = 3e-4
    document_share: float = 0.5  # of each document's own loss in the second phase
    warmup_steps: int = 20
    context_tokens: int = 192
    pass_tokens: int = 5_000  # context tokens in one forward pass
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """Progress of a phase."""

    phase: str
    step: int
    steps: int
    loss: float


T = TypeVar("T", ReaderExample, RagExample)
Report = Callable[[Step], None]


class Trainer:
    """Holds the model and the learned scale of the prior, p(z|x) = softmax(scale * score)."""

    def __init__(
        self, model: T5ForConditionalGeneration, texts: Texts, schedule: Schedule, scale: float = 15.0
    ) -> None:
        self.model = model
        self._texts = texts
        self.schedule = schedule
        self._log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = DROPOUT
        model.train()

    @property
    def scale(self) -> float:
        """The factor on scores before the prior's softmax."""
        return float(self._log_scale.detach().exp())

    def state(self) -> dict[str, Tensor]:
        """The parameters, and the logarithm of the scale as `log_scale`."""
        return {**self.model.state_dict(), "log_scale": self._log_scale.detach()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._log_scale.data = state.pop("log_scale")
        self.model.load_state_dict(state)

    def train_reader(self, examples: list[ReaderExample], report: Report) -> None:
        """Phase 1: -log p(y|x,z) with a passage z that holds the answer."""
        plan = self.schedule

        def loss(batch: list[ReaderExample]) -> Tensor:
            inputs = self._inputs([(row.question, row.passage, row.target) for row in batch])
            return reader_loss(self._log_probs(inputs), inputs.mask)

        self._run("reader", examples, loss, (plan.reader_steps, plan.reader_batch, plan.reader_rate), report)

    def train_rag(self, examples: list[RagExample], report: Report) -> None:
        """Phase 2: -log p(y|x), marginalized over the retrieved passages at every token, and a share of their own."""
        plan = self.schedule

        def loss(batch: list[RagExample]) -> Tensor:
            rows = [(row.question, passage, row.target) for row in batch for passage in row.passages]
            inputs = self._inputs(rows)
            docs = len(batch[0].passages)
            scores = torch.tensor([row.scores for row in batch])
            log_priors = torch.log_softmax(self._log_scale.exp() * scores, dim=-1)
            shape = len(batch), docs, -1
            log_probs = self._log_probs(inputs).view(shape)
            mask = inputs.mask.view(shape)[:, 0]
            marginal = rag_token_loss(log_probs, log_priors, mask)
            return marginal + plan.document_share * document_loss(log_probs, mask)

        self._run("rag-token", examples, loss, (plan.rag_steps, plan.rag_batch, plan.rag_rate), report)

    def _run(
        self,
        phase: str,
        examples: list[T],
        loss: Callable[[list[T]], Tensor],
        plan: tuple[int, int, float],
        report: Report,
    ) -> None:
        steps, size, rate = plan
        torch.manual_seed(self.schedule.seed)
        rng = random.Random(f"{phase} {self.schedule.seed}")  # noqa: S311
        optimizer = torch.optim.AdamW(
            [{"params": list(self.model.parameters())}, {"params": [self._log_scale]}], weight_decay=WEIGHT_DECAY
        )
        step = 0
        while step < steps:
            for batch in length_batches(examples, self._length, size, rng):
                self._set_rate(optimizer, rate, step / steps, min(1.0, (step + 1) / self.schedule.warmup_steps))
                value = self._update(optimizer, batch, loss)
                step += 1
                report(Step(phase, step, steps, value))
                if step == steps:
                    break

    def _update(self, optimizer: torch.optim.Optimizer, batch: list[T], loss: Callable[[list[T]], Tensor]) -> float:
        """One step; returns the loss per example."""
        total = 0.0
        for chunk in token_chunks(batch, self._length, self.schedule.pass_tokens):
            part = loss(chunk) / len(batch)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    @staticmethod
    def _set_rate(optimizer: torch.optim.Optimizer, peak: float, done: float, warmup: float) -> None:
        rate = peak * warmup * max(LOWEST_RATE, 1 - done)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.param_groups[1]["lr"] = rate * SCALE_RATE

    def _length(self, example: ReaderExample | RagExample) -> int:
        """Context tokens of an example, all its passages together."""
        passages = example.passages if isinstance(example, RagExample) else (example.passage,)
        plan = self.schedule
        return max(len(self._texts.context(example.question, p, plan.context_tokens)) for p in passages) * len(passages)

    def _inputs(self, rows: list[tuple[str, int, str]]) -> Tensors:
        config = self.model.config
        contexts = [self._texts.context(question, z, self.schedule.context_tokens) for question, z, _ in rows]
        targets = [self._texts.target(answer) for _, _, answer in rows]
        return tensors(contexts, targets, int(config.pad_token_id or 0), int(config.decoder_start_token_id or 0))

    def _log_probs(self, inputs: Tensors) -> Tensor:
        """[n_rows, n_tokens]; bfloat16 products, float32 log-softmax."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                decoder_input_ids=inputs.decoder_input_ids,
            ).logits
        return token_log_probs(logits, inputs.targets)
