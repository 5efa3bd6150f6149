"""Exact search over float16 vectors in torch: a product with all of them, and a selection that reads it once.

The largest of each group of scores is found first: the K best scores lie in the K groups with the largest of these, so
that only their members are sorted. The products are rounded to float16, therefore more candidates than K are scored
again in float32, and each answer is certified: what was left out scores less than the K-th. Where that cannot be said,
twice as many candidates are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GROUP = 128  # scores of which only the largest is compared at first
MOST_SCORES = 2**30  # in one product: indexes of its elements fit 32 bits
HALF_ULP = 2.0**-11  # of a float16, relative
FLOAT32_EPSILON = 2.0**-24


@dataclass
class ExactSearch:
    """Searches vectors [n_vectors, dim] in float16, n_vectors a multiple of `GROUP`, none longer than `longest`.

    With `least_queries` fewer queries are filled up with zeros, since products with one query may run in slower
    kernels than products with eight or sixteen, which read as much.
    """

    vectors: torch.Tensor
    longest: float
    least_queries: int = 1

    def __post_init__(self) -> None:
        # Partial sums in float16 would be off by more than `_certified` allows.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores in float32 and positions of the k best, [n_queries, k], of queries [n_queries, dim] in float16."""
        wanted = min(2 * k, len(self.vectors))
        while True:
            rounded, positions = self._candidates(queries, wanted)
            exact = self._score(queries, positions)
            order = exact.argsort(dim=1, descending=True)[:, :k]
            scores = exact.gather(1, order)
            if wanted == len(self.vectors) or self._certified(queries, scores[:, -1], rounded[:, -1]):
                return scores, positions.gather(1, order)
            wanted = min(2 * wanted, len(self.vectors))

    def _candidates(self, queries: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores in float16 and positions of the best `wanted`, best first."""
        n_queries = len(queries)
        if n_queries < self.least_queries:
            queries = torch.nn.functional.pad(queries, (0, 0, 0, self.least_queries - n_queries))
        rows = max(MOST_SCORES // len(queries) // GROUP * GROUP, GROUP)
        found = []
        for start in range(0, len(self.vectors), rows):
            products = (queries @ self.vectors[start : start + rows].T)[:n_queries]
            scores, places = _best(products, wanted)
            found.append((scores, places + start))
        scores, positions = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        scores, order = scores.topk(wanted, dim=1)
        return scores, positions.gather(1, order)

    def _score(self, queries: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Products in float32 [n_queries, n_positions]."""
        return torch.bmm(self.vectors[positions].float(), queries.float()[..., None]).squeeze(2)

    def _certified(self, queries: torch.Tensor, kth: torch.Tensor, last: torch.Tensor) -> bool:
        """Whether vectors whose rounded scores are at most `last` [n_queries] score less than the k-th."""
        last = last.float()
        rounding = last.abs() * HALF_ULP
        summing = 2 * queries.shape[1] * FLOAT32_EPSILON * self.longest * queries.float().norm(dim=1)
        return bool((kth > last + rounding + summing).all())


def _best(products: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and columns of the best `wanted`, or all, of products [n_queries, n_columns]."""
    wanted = min(wanted, products.shape[1])
    groups = products.view(len(products), -1, GROUP)
    best_groups = groups.amax(2).topk(min(wanted, groups.shape[1]), dim=1).indices
    members = groups.gather(1, best_groups[..., None].expand(-1, -1, GROUP)).flatten(1)
    scores, places = members.topk(wanted, dim=1)
    return scores, best_groups.gather(1, places // GROUP) * GROUP + places % GROUP
