"""Decode sessions without a service: they prune to M candidates as the real generator does, on numpy."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.search.inference import Control, Extension, Rendered, Step, TargetScore

Prefix = tuple[int, ...]
Distribution = Callable[[int, Prefix], np.ndarray]  # (document, tokens) -> float32 log-probabilities [vocab]
Normalizer = Callable[[int, Prefix], float]  # (document, tokens) -> logit less log-probability


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max()
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def float32_logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    """In float32 throughout, as torch on the generator."""
    peak = values.max(axis=axis, keepdims=True)
    total = np.exp(values - peak, dtype=np.float32).sum(axis=axis, dtype=np.float32)
    return np.log(total, dtype=np.float32) + np.squeeze(peak, axis=axis)


@dataclass(frozen=True)
class Hypothesis:
    tokens: Prefix
    document: int
    control: Control


@dataclass
class PrunedSession:
    """Implements `Inference` honestly over any distribution, and remembers what it was asked."""

    distribution: Distribution
    log_prior: np.ndarray
    sequence_mode: bool = False
    normalizer: Normalizer = lambda document, tokens: 3.0
    hypotheses: list[Hypothesis] = field(default_factory=list)
    widened: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    shipped: int = 0
    largest: int = 0  # bytes of a step on the wire, without framing

    async def open(self, control: Control, candidates: int) -> Step:
        documents = range(len(self.log_prior)) if self.sequence_mode else [0]
        self.hypotheses = [Hypothesis((), document, control) for document in documents]
        return self._step(range(len(self.hypotheses)), candidates)

    async def advance(self, extensions: Sequence[Extension], candidates: int) -> Step:
        parents = self.hypotheses
        self.hypotheses = [
            Hypothesis((*parents[one.parent].tokens, one.token), parents[one.parent].document, one.control)
            for one in extensions
        ]
        return self._step(range(len(self.hypotheses)), candidates)

    async def widen(self, rows: Sequence[int], candidates: int) -> Step:
        self.widened.append((tuple(rows), candidates))
        return self._step(rows, candidates)

    async def score(self, targets: Sequence[Sequence[int] | str]) -> list[TargetScore]:
        return [self._score(self.tokenize(one) if isinstance(one, str) else tuple(one)) for one in targets]

    async def render(self, sequences: Sequence[Sequence[int]]) -> list[Rendered]:
        return [Rendered(" ".join(f"t{t}" for t in one), tuple(f"t{t} " for t in one)) for one in sequences]

    def tokenize(self, text: str) -> Prefix:
        """t7 is token 7; any other word is some token."""
        vocab = len(self.distribution(0, ()))
        words = [word.removeprefix("t") for word in text.split()]
        return tuple(int(word) % vocab if re.fullmatch("[0-9]{1,9}", word) else len(word) % vocab for word in words)

    def _score(self, tokens: Prefix) -> TargetScore:
        rows = [
            [self.distribution(document, tokens[:i])[token] for i, token in enumerate(tokens)]
            for document in range(len(self.log_prior))
        ]
        return TargetScore(tokens, np.array(rows, np.float32))

    def documents_of(self, one: Hypothesis) -> Sequence[int]:
        return [one.document] if self.sequence_mode else range(len(self.log_prior))

    def log_probs(self, one: Hypothesis) -> np.ndarray:
        return np.stack([self.distribution(document, one.tokens) for document in self.documents_of(one)])

    def normalizers(self, one: Hypothesis) -> np.ndarray:
        return np.array([self.normalizer(document, one.tokens) for document in self.documents_of(one)], np.float32)

    def _step(self, rows: Sequence[int], candidates: int) -> Step:
        shown = [self._row(self.hypotheses[row], candidates) for row in rows]
        self.shipped += sum(one[1].size for one in shown)
        ids, log_probs, requested, mass = zip(*shown, strict=True)
        norms = np.stack([self.normalizers(self.hypotheses[row]) for row in rows])
        arrays = (*ids, *log_probs, *requested, np.array(mass), norms)
        self.largest = max(self.largest, 4 * sum(one.size for one in arrays))
        return Step(np.stack(ids), np.stack(log_probs), tuple(requested), np.array(mass, np.float32), norms)

    def _row(self, one: Hypothesis, candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        log_probs = self.log_probs(one)
        prior = np.zeros(1, np.float32) if self.sequence_mode else self.log_prior.astype(np.float32)
        marginal = float32_logsumexp(prior[:, None] + log_probs, axis=0)
        marginal[list(one.control.banned)] = -np.inf
        width = min(candidates, marginal.size)
        best = np.lexsort((np.arange(marginal.size), -marginal))[:width]
        allowed = np.isfinite(marginal[best])
        ids = np.where(allowed, best, -1)
        with np.errstate(divide="ignore"):
            mass = float32_logsumexp(marginal, axis=0)
        return ids, log_probs[:, best], log_probs[:, list(one.control.requested)], float(mass)


def seeded(*key: object) -> np.random.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True)
class Toy:
    """Random distributions of one kind: `shape` is flat, peaked, zipf, ties or disagree."""

    shape: str
    vocab: int
    seed: int = 0
    eos: int = 1

    def __call__(self, document: int, prefix: Prefix) -> np.ndarray:
        rng = seeded(self.seed, document if self.shape == "disagree" else 0, prefix)
        noise = seeded(self.seed, document, prefix).normal(size=self.vocab)
        match self.shape:
            case "flat":
                logits = 1e-3 * noise
            case "even":
                logits = np.zeros(self.vocab)
            case "peaked":
                logits = 0.3 * noise + 12.0 * (np.arange(self.vocab) == rng.integers(self.vocab))
            case "zipf":
                logits = -1.5 * np.log1p(rng.permutation(self.vocab)) + 0.5 * noise
            case "ties":
                logits = np.round(rng.normal(size=self.vocab))
            case "disagree":
                logits = 4.0 * rng.normal(size=self.vocab)
            case _:
                raise ValueError(self.shape)
        logits[self.eos] += 0.2 * len(prefix) * (1.0 + abs(logits.max()))
        return log_softmax(logits)
