"""The trained state after each phase, so that a run that was stopped goes on with the next phase."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training.trainer import Trainer


def phase_done(directory: Path, name: str, trainer: Trainer, run: Callable[[], None]) -> None:
    """Load what this phase gave with this schedule before, or run it and keep what it gives."""
    weights, plan = directory / f"{name}.pt", directory / f"{name}.json"
    schedule = json.dumps(_plan(asdict(trainer.schedule), name), sort_keys=True)
    if weights.is_file() and plan.is_file() and plan.read_text(encoding="utf-8") == schedule:
        trainer.load_state(torch.load(weights, weights_only=True))
        return
    run()
    directory.mkdir(parents=True, exist_ok=True)
    plan.unlink(missing_ok=True)
    torch.save(trainer.state(), weights)
    plan.write_text(schedule, encoding="utf-8")


def _plan(schedule: dict[str, Any], phase: str) -> dict[str, Any]:
    """What decides the result of a phase: the reader does not know what follows."""
    later = ("rag_", "document_") if phase == "reader" else ()
    return {name: value for name, value in schedule.items() if not name.startswith(later)}
