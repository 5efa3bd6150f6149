from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generator_svc.candidates import score_step, select
from generator_svc.commands import StepControl, StepOutput
from generator_svc.kernels import native
from ragserve.errors import InternalError


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What selects: the kernels, or torch's operators as on other devices."""
    if not request.param:
        monkeypatch.setattr(native, "sums_usable", lambda _: False)
    elif native.library() is None:
        pytest.skip("the kernels need a C compiler and AVX2")


def brute_force(
    logits: np.ndarray, controls: list[StepControl], priors: np.ndarray | None, count: int
) -> list[tuple[list[int], np.ndarray, float]]:
    """For each hypothesis: ids, log-probabilities [n_docs, n_ids] and the allowed mass; all in float64."""
    exact = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    results = []
    for h, control in enumerate(controls):
        weighted = exact[:, h] + (0 if priors is None else priors.astype(np.float64)[:, None])
        marginal = np.logaddexp.reduce(weighted, axis=0)
        allowed = [i for i in range(len(marginal)) if i not in control.banned]
        # equal columns of logits are equal marginals, whatever the last bit says
        ranked = sorted(allowed, key=lambda i, m=marginal: (-round(m[i], 6), i))
        mass = np.logaddexp.reduce(marginal[allowed]) if allowed else -np.inf
        results.append((ranked[:count], exact[:, h], mass))
    return results


def check(
    output: StepOutput,
    expected: list[tuple[list[int], np.ndarray, float]],
    controls: list[StepControl],
    logits: np.ndarray,
) -> None:
    for h, (ids, exact, mass) in enumerate(expected):
        got = [int(i) for i in output.token_ids[h] if i >= 0]
        assert got == ids
        assert all(i == -1 for i in output.token_ids[h][len(ids) :])
        np.testing.assert_allclose(output.log_probs[h][:, : len(ids)], exact[:, ids], atol=1e-5)
        assert np.isneginf(output.log_probs[h][:, len(ids) :]).all()
        requested = list(controls[h].requested)
        np.testing.assert_allclose(output.requested[h], exact[:, requested], atol=1e-5)
        np.testing.assert_allclose(output.allowed_log_mass[h], mass, atol=1e-5)
        assert output.log_normalizers.shape == (len(controls), len(logits))
        restored = exact + output.log_normalizers[h][:, None]
        np.testing.assert_allclose(restored, logits[:, h], atol=1e-5)


@pytest.mark.usefixtures("way")
@given(
    seed=st.integers(0, 10**6),
    n_docs=st.integers(1, 4),
    n_hypotheses=st.integers(1, 3),
    vocab=st.integers(1, 40),
    count=st.integers(1, 50),
    levels=st.sampled_from([1, 2, 5, None]),
    weighted=st.booleans(),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_select_equals_brute_force(
    seed: int, n_docs: int, n_hypotheses: int, vocab: int, count: int, levels: int | None, weighted: bool
) -> None:
    """`levels` few makes ties, also at the last place."""
    rng = random.Random(seed)
    columns = [[rng.gauss(0, 3) for _ in range(n_docs)] for _ in range(levels or vocab)]
    logits = np.array(
        [[rng.choice(columns) for _ in range(vocab)] for _ in range(n_hypotheses)], dtype=np.float32
    ).transpose(2, 0, 1)
    controls = [
        StepControl(
            tuple(rng.choices(range(vocab), k=rng.randint(0, vocab))),
            tuple(rng.choices(range(vocab), k=rng.randint(0, 3))),
        )
        for _ in range(n_hypotheses)
    ]
    priors = np.log(np.random.default_rng(seed).dirichlet([1.0] * n_docs)).astype(np.float32) if weighted else None
    if not weighted:
        logits = logits[:1]
    scores = score_step(
        torch.from_numpy(np.ascontiguousarray(logits)), controls, None if priors is None else torch.from_numpy(priors)
    )
    everyone = list(range(n_hypotheses))
    check(select(scores, everyone, count), brute_force(logits, controls, priors, min(count, vocab)), controls, logits)
    last = [n_hypotheses - 1]
    widened = select(scores, last, vocab + 5)
    chosen = [controls[-1]]
    check(widened, brute_force(logits[:, last], chosen, priors, vocab), chosen, logits[:, last])


@pytest.mark.usefixtures("way")
def test_ties_at_the_last_place_go_to_the_smaller_ids() -> None:
    logits = torch.zeros(2, 1, 1000)
    logits[:, :, 700] = 3.0
    output = select(score_step(logits, [StepControl(banned=(1,))], torch.tensor([-0.5, -1.0])), [0], 5)
    assert output.token_ids.tolist() == [[700, 0, 2, 3, 4]]


@pytest.mark.usefixtures("way")
def test_impossible_tokens_come_last_and_banned_ones_never() -> None:
    logits = torch.full((1, 1, 6), -torch.inf)
    logits[0, 0, 4] = 0.0
    output = select(score_step(logits, [StepControl(banned=(0, 2))], None), [0], 6)
    assert output.token_ids.tolist() == [[4, 1, 3, 5, -1, -1]]
    assert output.allowed_log_mass.tolist() == [0.0]


@pytest.mark.usefixtures("way")
def test_everything_banned_leaves_nothing() -> None:
    output = select(score_step(torch.zeros(1, 1, 3), [StepControl(banned=(0, 1, 2))], None), [0], 2)
    assert output.token_ids.tolist() == [[-1, -1]]
    assert np.isneginf(output.allowed_log_mass).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_an_internal_error(value: float) -> None:
    logits = torch.zeros(2, 1, 4)
    logits[1, 0, 2] = value
    with pytest.raises(InternalError, match="NaN"):
        score_step(logits, [StepControl()], None)
