"""BM25 of ours, bm25s and Lance's full-text index in the same run: `python -m bench.lexical demo/kb --questions FILE`.

Prints what each takes to build, to search and to follow an update, in seconds of all cores together (so that other
work on the machine hardly matters), and how far their first five agree. With questions (JSON lines of `question` and
`answers`) also how often dense, lexical and hybrid retrieval find a passage with an answer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import string
import tempfile
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import bm25s
import lance
import numpy as np
import pyarrow as pa

from bench.report import cpu_name
from retriever_svc.encoder import TextEncoder
from retriever_svc.lexical import (
    BM25_SCALE,
    WEIGHT,
    Bm25Index,
    Bm25Parameters,
    Candidates,
    indexed_text,
    reciprocal_rank_fusion,
    weighted_sum,
)
from retriever_svc.lexical.analysis import terms_of, words_of

UPDATED_ROWS = 100
CANDIDATES = 50  # of each search, before fusion
N_WORDS = 77  # of a synthetic passage, as in the demo's knowledge base
VOCABULARY = 200_000
PARAMETERS = Bm25Parameters()


class System(Protocol):
    """A text index of rows, counted from 0."""

    name: str

    def build(self, texts: Sequence[str]) -> None:
        """Index the texts."""

    def search(self, query: str, k: int) -> list[int]:
        """The k best rows."""

    def update(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Replace texts, so that the next search knows them."""


class Ours:
    """`retriever_svc.lexical`."""

    name = "ragserve"

    def build(self, texts: Sequence[str]) -> None:
        """Index the texts."""
        self.index = Bm25Index.build([(np.arange(len(texts)), texts)])

    def search(self, query: str, k: int) -> list[int]:
        """The k best rows."""
        return self.index.search(query, k)[0].tolist()

    def update(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Mask what was replaced, count what is new."""
        self.index = self.index.updated(np.empty(0, np.int64), np.asarray(rows), texts)


class Bm25s:
    """bm25s with its own tokenizer, or with our terms."""

    def __init__(self, *, our_terms: bool) -> None:
        self.name = "bm25s, our terms" if our_terms else "bm25s"
        self._our_terms = our_terms

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        if self._our_terms:
            return [terms_of(words_of(text)) for text in texts]
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords="english", return_ids=False, show_progress=False
        )
        return tokens

    def build(self, texts: Sequence[str]) -> None:
        """Index the texts."""
        self._texts = list(texts)
        self._index = bm25s.BM25(k1=PARAMETERS.k1, b=PARAMETERS.b, method="lucene")
        self._index.index(self._tokens(texts), show_progress=False)

    def search(self, query: str, k: int) -> list[int]:
        """The k best rows."""
        found, _ = self._index.retrieve(self._tokens([query]), k=k, show_progress=False)
        return [int(row) for row in found[0]]

    def update(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """It has no updates: everything is made again."""
        for row, text in zip(rows, texts, strict=True):
            self._texts[row] = text
        self.build(self._texts)


class LanceFullText:
    """The inverted index of a Lance dataset on disk."""

    name = "Lance"

    def build(self, texts: Sequence[str]) -> None:
        """Write a dataset and index it; only the latter is counted."""
        self._directory = tempfile.TemporaryDirectory()
        table = pa.table({"row": np.arange(len(texts)), "text": list(texts)})
        self._dataset = lance.write_dataset(table, f"{self._directory.name}/texts", enable_stable_row_ids=True)
        began = time.process_time()
        self._dataset.create_scalar_index("text", "INVERTED", with_position=False)
        self.build_seconds = time.process_time() - began

    def search(self, query: str, k: int) -> list[int]:
        """The k best rows."""
        found = self._dataset.scanner(columns=["row", "_score"], full_text_query=query, limit=k).to_table()
        return found.column("row").to_pylist()

    def update(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Write the rows; searches scan what is not indexed yet."""
        table = pa.table({"row": np.asarray(rows), "text": list(texts)})
        self._dataset.merge_insert("row").when_matched_update_all().execute(table)


@dataclass(frozen=True)
class Question:
    """A question and every spelling of its answer, normalized."""

    text: str
    answers: tuple[str, ...]


def normalize(text: str) -> str:
    """As SQuAD's exact match does: lower case, without punctuation and articles."""
    lowered = "".join(c for c in unicodedata.normalize("NFD", text).lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def load_questions(path: Path, texts: Sequence[str]) -> list[Question]:
    """Those of a file whose answer stands somewhere in the texts."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    asked = [Question(row["question"], tuple(filter(None, map(normalize, row["answers"])))) for row in rows]
    everything = " \n ".join(texts)
    return [question for question in asked if any(f" {answer} " in everything for answer in question.answers)]


def synthetic(n: int) -> tuple[list[str], list[str]]:
    """Passages of words by Zipf's law, and queries of five words of a passage.

    All are of one length, so that many scores are equal, and each system breaks the ties its own way.
    """
    rng = np.random.default_rng(0)
    chances = 1.0 / np.arange(1, VOCABULARY + 1)
    drawn = rng.choice(VOCABULARY, (n, N_WORDS), p=chances / chances.sum())
    texts = [" ".join([f"w{word}" for word in row]) for row in drawn]
    queries = [" ".join(f"w{word}" for word in rng.choice(drawn[row], 5)) for row in rng.integers(0, n, 200)]
    return texts, queries


def median_ms(call: Callable[[str], object], queries: Sequence[str]) -> float:
    """Median milliseconds of a call, after one to warm up."""
    call(queries[0])
    taken = []
    for query in queries:
        began = time.process_time()
        call(query)
        taken.append(time.process_time() - began)
    return 1000 * statistics.median(taken)


def compare(title: str, texts: Sequence[str], queries: Sequence[str]) -> None:
    """Time all systems on the same texts; print a table, of medians where there are many."""
    print(f"\n{title}: {len(texts)} passages, {len(queries)} queries\n")
    print("| system | build, s | k=5, ms | k=50, ms | update of 100 rows, s | k=5 then, ms | first 5 as ours |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    ours: list[set[int]] = []
    systems: list[System] = [Ours(), Bm25s(our_terms=False), Bm25s(our_terms=True), LanceFullText()]
    for system in systems:
        began = time.process_time()
        system.build(texts)
        built = getattr(system, "build_seconds", time.process_time() - began)
        first = [set(system.search(query, 5)) for query in queries]
        ours = ours or first
        same = statistics.mean(len(a & b) / max(len(a), 1) for a, b in zip(ours, first, strict=True))
        at_5, at_50 = (median_ms(partial(system.search, k=k), queries) for k in (5, 50))
        rows = random.Random(0).sample(range(len(texts)), UPDATED_ROWS)
        began = time.process_time()
        system.update(rows, [texts[row] for row in reversed(rows)])
        updated = time.process_time() - began
        then = median_ms(partial(system.search, k=5), queries)
        cells = [f"{built:.2f}", f"{at_5:.2f}", f"{at_50:.2f}", f"{updated:.3f}", f"{then:.2f}", f"{same:.3f}"]
        print(f"| {' | '.join([system.name, *cells])} |", flush=True)


@dataclass(frozen=True)
class Retrieval:
    """Dense and lexical search of the same rows, with the scales that make logits of their scores."""

    vectors: np.ndarray
    index: Bm25Index
    dense_scale: float
    lexical_scale: float

    def candidates(self, question: str, vector: np.ndarray) -> tuple[Candidates, Candidates]:
        """The best of each search."""
        scores = self.vectors @ vector
        order = np.argsort(-scores, kind="stable")[:CANDIDATES]
        dense = Candidates(order, scores[order], lambda rows: scores[rows], self.dense_scale)
        found = self.index.search(question, CANDIDATES)
        return dense, Candidates(*found, lambda rows: self.index.scores(question, rows), self.lexical_scale)


def ablation(
    retrieval: Retrieval, encoder: TextEncoder, questions: Sequence[Question], texts: Sequence[str], weight: float
) -> None:
    """Recall of dense, BM25 and hybrid, and the scale that fits their priors; print a table."""
    found: dict[str, list[tuple[np.ndarray, list[bool]]]] = {}
    for question in questions:
        dense, lexical = retrieval.candidates(question.text, encoder.encode_queries([question.text])[0])
        ranked = {
            "dense": (dense.row_ids[:5], dense.scores[:5]),
            "BM25": (lexical.row_ids[:5], lexical.scores[:5]),
            f"weighted, {weight}": weighted_sum(dense, lexical, weight, 5),
            "reciprocal ranks": reciprocal_rank_fusion([dense.row_ids, lexical.row_ids], 5),
        }
        for name, (rows, scores) in ranked.items():
            holds = [any(f" {answer} " in texts[row] for answer in question.answers) for row in rows]
            found.setdefault(name, []).append((scores.astype(np.float64), holds))
    print(f"\nrecall on {len(questions)} questions whose answer stands in some passage\n")
    print("| retrieval | @1 | @5 | fitted scale of the prior |\n|---|---:|---:|---:|")
    for name, results in found.items():
        at_1, at_5 = (statistics.mean(any(holds[:k]) for _, holds in results) for k in (1, 5))
        print(f"| {name} | {at_1:.3f} | {at_5:.3f} | {fit_scale(results):.3g} |")


def fit_scale(results: Sequence[tuple[np.ndarray, list[bool]]]) -> float:
    """The scale with the largest mean log p(z|x) of the first passage that holds an answer."""
    useful = [(scores, holds.index(True)) for scores, holds in results if any(holds)]

    def mean_log_prior(scale: float) -> float:
        logits = [scores * scale for scores, _ in useful]
        logs = [row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in logits]
        return statistics.mean(float(row[first]) for row, (_, first) in zip(logs, useful, strict=True))

    return float(max(np.geomspace(0.05, 1000, 150), key=mean_log_prior))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.lexical", description=__doc__)
    parser.add_argument("knowledge", type=Path, help="a knowledge base")
    parser.add_argument("--questions", type=Path, help="JSON lines of question and answers")
    parser.add_argument("--encoder", type=Path, default=Path("demo/model/query_encoder"), help="for the ablation")
    parser.add_argument("--synthetic", type=int, default=100_000, help="synthetic passages; 0: none")
    parser.add_argument("--dense-scale", type=float, default=16.7, help="of the prior (default: the demo's)")
    parser.add_argument("--lexical-scale", type=float, default=BM25_SCALE, help="of the prior")
    parser.add_argument("--weight", type=float, default=WEIGHT, help="of BM25 in the weighted sum")
    chosen = parser.parse_args()
    table = lance.dataset(str(chosen.knowledge / "passages.lance")).to_table(columns=["title", "text", "embedding"])
    passages = zip(table.column("title").to_pylist(), table.column("text").to_pylist(), strict=True)
    texts = [indexed_text(title, text) for title, text in passages]
    padded = [f" {normalize(text)} " for text in texts]
    questions = load_questions(chosen.questions, padded) if chosen.questions else []
    queries = [question.text for question in questions[:200]] or [" ".join(text.split()[:5]) for text in texts[:200]]
    print(f"{cpu_name()}; bm25s {bm25s.__version__}, lance {lance.__version__}")
    compare(str(chosen.knowledge), texts, queries)
    if chosen.synthetic:
        compare("synthetic", *synthetic(chosen.synthetic))
    if questions:
        vectors = table.column("embedding").combine_chunks().flatten().to_numpy().astype(np.float32)
        index = Bm25Index.build([(np.arange(len(texts)), texts)])
        retrieval = Retrieval(vectors.reshape(len(texts), -1), index, chosen.dense_scale, chosen.lexical_scale)
        encoder = TextEncoder.load(chosen.encoder, device="cpu", threads=1)
        ablation(retrieval, encoder, questions, padded, chosen.weight)


if __name__ == "__main__":
    main()
