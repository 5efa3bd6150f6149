"""Stages of one step from those of whole answers; recorded steps give the recorded answer."""

from __future__ import annotations

import numpy as np
import pytest

from bench.replay import Recording
from bench.wire import AROUND, FORWARD, SELECT, Measured, asked, bytes_table, per_step, replayed, times_table
from bench.workload import Workload
from orchestrator.requests import GenerationOptions, GeneratorInfo
from orchestrator.search.inference import Rendered, Step
from ragserve.token_rules import TokenRules

WORKLOAD = Workload(n_docs=2, document_tokens=40, new_tokens=4)
EOS = 2


def test_a_step_is_the_difference_of_medians() -> None:
    once = {"prefill": 3.0, FORWARD: 0.1, SELECT: 0.01, "queue": 0.5}
    short = [once, {**once, "queue": 0.4}, {**once, "queue": 9.0}]
    long = [{**once, FORWARD: 2.1, SELECT: 0.05, "queue": 0.52}] * 3
    found = per_step(short, long, 20)
    assert found == pytest.approx({**dict.fromkeys(AROUND, 0.0), FORWARD: 0.1, SELECT: 0.002, "queue": 0.001})


def test_the_goal_is_about_what_is_neither_forward_nor_selection() -> None:
    stages = {FORWARD: 0.04, SELECT: 0.01, **dict.fromkeys(AROUND, 0.0004)}
    rows = [Measured(precision, "greedy", 5, 14.0, 560.0, stages, 0.0001, 0.0002) for precision in ("int8", "float32")]
    assert "| int8, greedy, 5 documents | goal ≤ 2 met |" in times_table(rows)
    assert "| 1.60 | 11.60 | 0.10 | 0.20 |" in times_table(rows)
    assert bytes_table(rows).count("| greedy | 5 | 14 | 560 |") == 1


def step(chosen: int) -> Step:
    """One hypothesis; `chosen` is the best of the three tokens shown."""
    ids = np.array([[chosen, 3, 4]])
    log_probs = np.log(np.array([[[0.6, 0.1, 0.05], [0.5, 0.2, 0.05]]], np.float32))
    return Step(ids, log_probs, (np.zeros((2, 0), np.float32),), np.zeros(1, np.float32), np.zeros((1, 2), np.float32))


async def test_a_replay_runs_the_whole_search_each_time() -> None:
    recording = Recording(steps=[step(token) for token in (9, 8, 7, 6)], rendered=[[Rendered("a", ("a",) * 4)]])
    rules = TokenRules(decoder_start_token_id=EOS, eos_token_id=(EOS,))
    info = GeneratorInfo(
        trained_mode=None,
        vocab_size=100,
        token_rules=rules,
        sequence_rules=rules,
        bos_token_id=0,
        max_target_tokens=1024,
        max_context_tokens=1024,
        max_documents=100,
        max_hypotheses=512,
        defaults=GenerationOptions(),
        default_n_docs=None,
    )
    marginals, whole = await replayed(info, recording, 1, WORKLOAD)
    assert 0 < marginals < whole
    assert len(asked(1, WORKLOAD).sources.documents) == 2
    with pytest.raises(RuntimeError):  # an answer of one token more needs a step that was not recorded
        await replayed(info, recording, 1, Workload(n_docs=2, document_tokens=40, new_tokens=5))
