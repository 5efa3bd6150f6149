"""The most that answering several clients together can give: the model's passes alone, for one session and for 16.

In this process, without services, queues or arrivals: documents are encoded one pass after the other, then every step
has the rows of all sessions. No scheduler gains more from these kernels, for it has the same documents to encode, and
cannot step with more rows than there are. The rows of 16 sessions are measured as one session with 16 times the
documents.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from bench import report
from bench.ctranslate2_peer import Precision
from bench.decode_step import Ours
from bench.workload import Workload

ROUNDS = 5


@dataclass(frozen=True)
class Together:
    """Medians of the rounds: seconds of so many answers together, and what of it is encoding."""

    precision: Precision
    sessions: int
    seconds: float
    encoding: float

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.sessions / self.seconds


def together(generator: Path, precision: Precision, workload: Workload, counts: tuple[int, ...]) -> list[Together]:
    """Each number of sessions in turn, a few times."""
    tokenizer = AutoTokenizer.from_pretrained(generator)
    sides: dict[int, Ours] = {}
    model: Ours | None = None
    for count in counts:
        whole = replace(workload, n_docs=count * workload.n_docs)
        ids: list[list[int]] = [tokenizer(context)["input_ids"] for context in whole.contexts()]
        model = sides[count] = Ours(generator, ids, torch.tensor(whole.log_priors()), precision, like=model)
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count, side in sides.items():
            decoded = side.decode(1, workload.new_tokens - 1)
            seconds = decoded.first_token + decoded.step * (workload.new_tokens - 1)
            found[count].append((seconds, decoded.encoding or 0.0))
    medians = {
        count: [statistics.median(column) for column in zip(*rows, strict=True)] for count, rows in found.items()
    }
    return [Together(precision, count, *medians[count]) for count in counts]


def table(points: list[Together]) -> str:
    """Answers a second, and over those of one session."""
    rows = []
    for point in points:
        share = f"{100 * point.encoding / point.seconds:.0f} %"
        ratio = f"{point.per_second / points[0].per_second:.2f}×"
        rows.append([point.precision, str(point.sessions), f"{point.per_second:.3f}", share, ratio])
    head = ["precision", "sessions, passes alone", "answers/s", "of it encoding", "of the first"]
    return report.markdown(head, rows) + "\n"
