from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import tiny
from training.batches import Texts
from training.checkpoints import phase_done
from training.corpus import Summary
from training.rows import RagExample, ReaderExample
from training.trainer import Schedule, Step, Trainer

CORPUS = [Summary(passage.title, passage.text, "", "") for passage in tiny.tiny_passages(6)]
SCHEDULE = Schedule(reader_steps=12, reader_batch=4, rag_steps=12, rag_batch=2, warmup_steps=2, context_tokens=48)
ALL_AT_ONCE = {"reader_batch": 6, "reader_rate": 2e-3, "rag_batch": 6, "rag_rate": 2e-3}
READER = [ReaderExample("who is it", index, summary.title) for index, summary in enumerate(CORPUS)]
RAG = [
    RagExample("who is it", (index, (index + 1) % 6, (index + 2) % 6), (0.9, 0.2, 0.1), summary.title)
    for index, summary in enumerate(CORPUS)
]


def trainer(schedule: Schedule = SCHEDULE) -> Trainer:
    texts = Texts(tiny.generator_tokenizer("t5"), CORPUS)
    return Trainer(tiny.tiny_generator("t5-gated"), texts, schedule)


def test_both_phases_lower_their_loss_and_fit_the_scale() -> None:
    trained, steps = trainer(replace(SCHEDULE, **ALL_AT_ONCE)), list[Step]()
    trained.train_reader(READER, steps.append)
    assert trained.scale == pytest.approx(15)
    trained.train_rag(RAG, steps.append)
    assert trained.scale != pytest.approx(15, abs=1e-3)
    for phase in ("reader", "rag-token"):
        losses = [step.loss for step in steps if step.phase == phase]
        assert len(losses) == 12
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_small_pass_gives_the_gradient_of_a_large_one() -> None:
    states = []
    for pass_tokens in (60, 100_000):
        texts = Texts(tiny.generator_tokenizer("t5"), CORPUS)
        schedule = Schedule(rag_steps=1, rag_batch=6, warmup_steps=1, context_tokens=48, pass_tokens=pass_tokens)
        model = tiny.tiny_generator("t5-gated")
        one = Trainer(model, texts, schedule)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0  # T5's attention keeps its share as a number
        losses = list[Step]()
        one.train_rag(RAG, losses.append)
        states.append(losses[0].loss)
    assert states[0] == pytest.approx(states[1], rel=0.02)  # bfloat16 products


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    straight = trainer()
    straight.train_reader(READER, lambda _step: None)
    straight.train_rag(RAG, lambda _step: None)

    first = trainer()
    phase_done(tmp_path, "reader", first, lambda: first.train_reader(READER, lambda _step: None))
    second = trainer()
    phase_done(tmp_path, "reader", second, pytest.fail)
    second.train_rag(RAG, lambda _step: None)

    assert second.scale == straight.scale
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_another_schedule_trains_again(tmp_path: Path) -> None:
    runs = []
    for steps in (1, 2, 2):
        one = Trainer(
            tiny.tiny_generator("t5-gated"),
            Texts(tiny.generator_tokenizer("t5"), CORPUS),
            Schedule(reader_steps=steps, reader_batch=2),
        )
        phase_done(tmp_path, "reader", one, lambda steps=steps: runs.append(steps))
    assert runs == [1, 2]
