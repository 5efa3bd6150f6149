"""The GPU experiment's logic, on the CPU and few vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import exact_search, gpu_index
from bench.exact_search import GROUP, ExactSearch


def vectors(n: int, dim: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)).half()


def brute_force(held: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.double().numpy() @ held.double().numpy().T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("least_queries", [1, 16])
@pytest.mark.parametrize("most_scores", [2**30, 4 * GROUP])
def test_equals_brute_force(
    n_queries: int, least_queries: int, most_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_search, "MOST_SCORES", most_scores)  # several products, joined
    held, queries = vectors(40 * GROUP), vectors(n_queries, seed=1)
    search = ExactSearch(held, float(held.float().norm(dim=1).max()), least_queries)
    scores, positions = search.search(queries, 50)
    expected_scores, expected = brute_force(held, queries, 50)
    assert positions.tolist() == expected.tolist()
    np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=1e-5, atol=1e-4)


def test_near_ties_beyond_the_first_candidates_are_found() -> None:
    held = torch.zeros(8 * GROUP, 2, dtype=torch.float16)
    held[:, 0] = 64  # in float16 all products round to the same
    held[:, 1] = torch.from_numpy(np.random.default_rng(0).permutation(8 * GROUP) / 2**16).half()
    queries = torch.tensor([[32.0, 1.0]]).half()
    _, positions = ExactSearch(held, 65.0).search(queries, 5)
    scores, _ = brute_force(held, queries, 5)
    found = held[positions[0]].double() @ queries[0].double()
    np.testing.assert_allclose(found.numpy(), scores[0], atol=1e-3)
    assert found.min() > 64 * 32 + 0.9 * float(held[:, 1].max())


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--device", "cpu", "--vectors", "5000", "--dim", "16", "--repeats", "1", "--k", "10"]
    assert gpu_index.main(few) == 0
    printed = capsys.readouterr().out
    assert "4,992 x 16 float16" in printed
    rows = [line.split("|") for line in printed.splitlines() if line.startswith(("| torch", "| FAISS"))]
    assert [(row[1].strip(), int(row[2])) for row in rows] == [
        ("torch", 1), ("torch, filled up to 16", 1), ("torch", 16), ("torch", 64), ("torch", 256),
        ("FAISS", 1), ("FAISS", 16), ("FAISS", 64), ("FAISS", 256),
    ]  # fmt: skip
    assert {float(row[-2].strip().rstrip("%")) for row in rows if row[1].strip() != "FAISS"} == {100.0}
    assert min(float(row[-2].strip().rstrip("%")) for row in rows) > 99


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_index.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out


def test_goals_are_judged_by_the_best_way() -> None:
    figures = [
        gpu_index.Figure("torch", 1, 0.012, 1.0),
        gpu_index.Figure("FAISS", 1, 0.030, 1.0),
        gpu_index.Figure("torch", 256, 0.2, 1.0),
        gpu_index.Figure("FAISS", 256, 0.1, 1.0),
    ]
    assert "floor: 1.20, met" in gpu_index.goals(figures, 0.010)
    assert "queries/s: 2,560, met" in gpu_index.goals(figures, 0.010)
    assert "floor: 12.00, not met" in gpu_index.goals(figures, 0.001)
