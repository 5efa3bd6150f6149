"""What the kernels of a step are given in tests: on CPU the twins run on it, in tests/gpu Triton as well."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from generator_svc.candidates import score_step, select
from generator_svc.commands import StepControl, StepOutput
from generator_svc.gpu.kernels import Kernels, Paths, Selected, Selection, Tiles
from generator_svc.models.base import DocumentState, Shape
from generator_svc.models.numerics import Numerics

N_LAYERS = 3
DOCUMENT_TOKENS = (1, 5, 64, 65, 200)
TILE_COUNTS = (1, 2, 16, 4, 0)
PATHS = (1, 2, 33, 40, 64, 0)
N_SLOTS = 300
VOCABS = (16, 64, 512)  # whole vectors: at the end of others torch rounds equal columns differently on CPU


def shape_of(heads: int, dim: int, dtype: torch.dtype) -> Shape:
    return Shape(100, N_LAYERS, heads, dim, dim**-0.5, None, None, Numerics(dtype, dtype, dtype))


@dataclass(frozen=True)
class PathCase:
    """Rows of paths of different lengths, the last of them padding."""

    qkv: torch.Tensor
    slots: torch.Tensor
    paths: Paths
    bias: torch.Tensor | None


def path_case(shape: Shape, device: torch.device, *, biased: bool) -> PathCase:
    rng = torch.Generator().manual_seed(shape.head_dim)
    dtype = shape.numerics.activations
    qkv = torch.randn(len(PATHS), 3 * shape.inner, generator=rng).to(device, dtype)
    slots = torch.randn(N_SLOTS, 2 * shape.inner, generator=rng).to(device, dtype)
    table = torch.randperm(N_SLOTS, generator=rng)[: sum(PATHS)].split(list(PATHS))
    padded = torch.full((len(PATHS), max(PATHS)), 10**9)  # what a path leaves of the table is never read
    for row, own in enumerate(table):
        padded[row, : len(own)] = own
    bias = torch.randn(max(PATHS), shape.n_heads, generator=rng).to(device, dtype) if biased else None
    return PathCase(qkv, slots, Paths(padded.to(device), torch.tensor(PATHS, device=device)), bias)


def chain_case(shape: Shape, device: torch.device) -> PathCase:
    """Guessed tokens: each row's path goes on from another row's own slot, in no order of the rows."""
    rng = torch.Generator().manual_seed(shape.head_dim)
    dtype, n_rows, before = shape.numerics.activations, 24, 20
    qkv = torch.randn(n_rows, 3 * shape.inner, generator=rng).to(device, dtype)
    slots = torch.randn(before + n_rows, 2 * shape.inner, generator=rng).to(device, dtype)
    lengths = before + 1 + torch.randperm(n_rows, generator=rng)
    table = torch.arange(before + n_rows).expand(n_rows, -1).contiguous()  # slot i is that of the row of i + 1 tokens
    return PathCase(qkv, slots, Paths(table.to(device), lengths.to(device)), None)


@dataclass(frozen=True)
class DocumentCase:
    """Tiles of documents of different lengths; two read the same one, and one has no rows."""

    query: torch.Tensor
    tiles: Tiles
    documents: dict[int, DocumentState]


def document_case(shape: Shape, device: torch.device) -> DocumentCase:
    rng = torch.Generator().manual_seed(shape.head_dim)
    dtype = shape.numerics.documents
    sizes = [(N_LAYERS, 2, shape.n_heads, n, shape.head_dim) for n in DOCUMENT_TOKENS]
    states = [DocumentState(torch.randn(size, generator=rng).to(device, dtype).unbind(0)) for size in sizes]
    places = [state.place for state in states]
    counts = torch.tensor(TILE_COUNTS)
    columns = [torch.tensor([place[i] for place in places]) for i in range(2)] + [counts.cumsum(0) - counts, counts]
    query = torch.randn(sum(TILE_COUNTS), shape.inner, generator=rng).to(device, dtype)
    tiles = Tiles(*(column.to(device) for column in columns))
    return DocumentCase(query, tiles, dict(zip([address for address, _ in places], states, strict=True)))


@dataclass(frozen=True)
class SelectionCase:
    """Sessions of some documents and hypotheses, their logits laid out one after the other, then rows of padding."""

    sessions: tuple[tuple[torch.Tensor, tuple[StepControl, ...], torch.Tensor | None], ...]
    logits: torch.Tensor
    selection: Selection
    starts: tuple[int, ...]

    def expected(self, count: int) -> list[StepOutput]:
        """What `candidates` selects, session by session."""
        return [
            select(score_step(logits, controls, priors), range(len(controls)), count)
            for logits, controls, priors in self.sessions
        ]


def selection_case(seed: int, vocab: int, levels: int | None, device: torch.device) -> SelectionCase:
    """`levels` few makes ties, also at the last place; some logits are impossible."""
    rng = random.Random(seed)
    sessions, starts, n_rows = [], [], 0
    for _ in range(rng.randint(1, 4)):
        n_docs, n_hypotheses = rng.randint(1, 5), rng.randint(1, 3)
        columns = torch.tensor([[rng.gauss(0, 3) for _ in range(n_docs)] for _ in range(levels or vocab)])
        chosen = torch.tensor([[rng.randrange(len(columns)) for _ in range(vocab)] for _ in range(n_hypotheses)])
        logits = columns[chosen].permute(2, 0, 1).contiguous()
        logits[:, :, torch.rand(vocab, generator=torch.Generator().manual_seed(seed)) < 0.1] = -torch.inf
        logits[:, :, 0] = 0.0
        most = vocab if rng.random() < 0.2 else 5
        controls = tuple(
            StepControl(tuple(rng.sample(range(vocab), rng.randint(0, most)))) for _ in range(n_hypotheses)
        )
        priors = torch.randn(n_docs, generator=torch.Generator().manual_seed(seed)).log_softmax(0)
        sessions.append((logits.to(device), controls, priors.to(device) if n_docs > 1 else None))
        starts.append(n_rows)
        n_rows += n_docs * n_hypotheses
    return _laid_out(sessions, starts, n_rows + 3, vocab, device)


def _laid_out(sessions: list, starts: list[int], n_rows: int, vocab: int, device: torch.device) -> SelectionCase:
    logits = torch.full((n_rows, vocab), torch.nan)
    fields = {name: torch.zeros(n_rows, dtype=torch.long) for name in ("strides", "counts", "starts", "banned_counts")}
    log_priors, banned = torch.zeros(n_rows), []
    for start, (own, controls, priors) in zip(starts, sessions, strict=True):
        n_docs, n_hypotheses, _ = own.shape
        rows = slice(start, start + n_docs * n_hypotheses)
        logits[rows] = own.cpu().reshape(-1, vocab)
        log_priors[rows] = 0 if priors is None else priors.cpu().repeat_interleave(n_hypotheses)
        for i, control in enumerate(controls):
            fields["strides"][start + i], fields["counts"][start + i] = n_hypotheses, n_docs
            fields["starts"][start + i], fields["banned_counts"][start + i] = len(banned), len(control.banned)
            banned += control.banned
    selection = Selection(
        fields["strides"].to(device),
        fields["counts"].to(device),
        log_priors.to(device),
        fields["starts"].to(device),
        fields["banned_counts"].to(device),
        torch.tensor([*banned, 0]).to(device),
    )
    return SelectionCase(tuple(sessions), logits.to(device), selection, tuple(starts))


def check_selection(kernels: Kernels, case: SelectionCase, n_candidates: int) -> None:
    """The same ids as `candidates`, and its log-probabilities to 1e-5."""
    n_rows, vocab = case.logits.shape
    device = case.logits.device
    ids = torch.full((n_rows, n_candidates), -7, dtype=torch.int32, device=device)
    values = [torch.full(size, 7.0, device=device) for size in ((n_rows, n_candidates), (n_rows,), (n_rows,))]
    selected = Selected(ids, *values)
    kernels.select(case.logits, case.selection, selected)
    count = min(n_candidates, vocab)
    for start, (logits, controls, _), output in zip(case.starts, case.sessions, case.expected(count), strict=True):
        n_docs, n_hypotheses = len(logits), len(controls)
        firsts = slice(start, start + n_hypotheses)
        rows = slice(start, start + n_docs * n_hypotheses)
        assert selected.ids[firsts, :count].tolist() == output.token_ids.tolist()
        log_probs = selected.log_probs[rows, :count].view(n_docs, n_hypotheses, count).transpose(0, 1)
        close(log_probs, output.log_probs)
        close(selected.log_norms[rows].view(n_docs, n_hypotheses).T, output.log_normalizers)
        close(selected.mass[firsts], output.allowed_log_mass)


def close(ours: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(ours.cpu(), torch.as_tensor(expected), atol=1e-5, rtol=1e-5)
