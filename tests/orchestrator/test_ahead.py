"""Which steps that the generator has guessed a search may use."""

from __future__ import annotations

import numpy as np

from orchestrator.downstream.ahead import Ahead, may_draft
from orchestrator.search.inference import Control, Extension, Step

CONTROL = Control(banned=(2,))


def ahead() -> Ahead:
    rows, docs, width = 3, 2, 4
    numbers = np.arange(rows * docs * width, dtype=np.float32).reshape(rows, docs, width)
    step = Step(
        token_ids=np.arange(rows * width).reshape(rows, width),
        log_probs=numbers,
        requested_log_probs=(np.zeros((docs, 0), np.float32),) * rows,
        allowed_log_mass=np.arange(rows, dtype=np.float32),
        log_normalizers=numbers[:, :, 0],
    )
    return Ahead(step, (7, 8), CONTROL)


def test_rows_follow_the_choices() -> None:
    first = ahead()
    second = first.follow([Extension(0, 7, CONTROL)])
    assert second is not None
    third = second.follow([Extension(0, 8, CONTROL)])
    assert third is not None
    for row, one in enumerate((first, second, third)):
        assert one.row().token_ids.tolist() == [first.step.token_ids[row].tolist()]
        assert one.row().log_probs.tolist() == [first.step.log_probs[row].tolist()]
        assert one.row().allowed_log_mass.tolist() == [row]
    assert third.follow([Extension(0, 8, CONTROL)]) is None


def test_another_choice_control_or_number_of_hypotheses_needs_a_step() -> None:
    assert ahead().follow([Extension(0, 8, CONTROL)]) is None
    assert ahead().follow([Extension(0, 7, Control())]) is None
    assert ahead().follow([Extension(0, 7, CONTROL), Extension(0, 7, CONTROL)]) is None


def test_guesses_are_asked_for_where_they_can_be_of_use() -> None:
    assert may_draft([Extension(0, 7, CONTROL)])
    assert not may_draft([Extension(0, 7, CONTROL)] * 2)
    assert not may_draft([Extension(0, 7, Control(requested=(3,)))])
    assert not may_draft([Extension(0, 7, Control(requested=(3,), forced=(3,)))])
