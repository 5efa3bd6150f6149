"""Prints answers, passages and timings for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from ragserve.results import Answer, AnswerScore, Passage, Retrieval
from ragserve_cli import console
from ragserve_cli.text import excerpt


def show_answer(answer: Answer, *, with_text: bool = True) -> None:
    """The answer (unless it was streamed already), other answers, passages and time."""
    if with_text:
        console.out.print(f"[bold]{escape(answer.answer.strip())}[/]", soft_wrap=True)
    console.out.print(f"log p(y|x) = {answer.log_prob:.4f}   p(y|x) = {math.exp(min(0.0, answer.log_prob)):.1%}")
    for hypothesis in answer.hypotheses[1:]:
        console.out.print(f"  {hypothesis.log_prob:9.4f}  {escape(hypothesis.text.strip())}", soft_wrap=True)
    show_passages(answer.passages, posterior=True)
    show_timings(answer.timings_seconds)
    for warning in answer.warnings:
        console.warn(warning)


def show_retrieval(found: Retrieval) -> None:
    """The passages of a question."""
    show_passages(found.passages, posterior=False)
    show_timings(found.timings_seconds)


def show_score(score: AnswerScore) -> None:
    """The probability of an answer, and what each token adds."""
    console.out.print(f"log p(y|x) = {score.log_prob:.4f}   p(y|x) = {math.exp(min(0.0, score.log_prob)):.1%}")
    added = "  ".join(
        f"{token}:{value:.3f}" for token, value in zip(score.token_ids, score.token_log_probs, strict=True)
    )
    console.out.print(f"by token: {added}", soft_wrap=True)
    show_passages(score.passages, posterior=True)
    show_timings(score.timings_seconds)
    for warning in score.warnings:
        console.warn(warning)


def show_passages(passages: Sequence[Passage], *, posterior: bool) -> None:
    """A table of passages with prior and, after an answer, posterior."""
    table = Table(pad_edge=False)
    for name in ("score", "prior", *(["posterior"] if posterior else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("title", ratio=1, overflow="fold")
    table.add_column("text", ratio=4, overflow="fold")
    best = max((passage.posterior for passage in passages), default=0.0)
    for passage in passages:
        figures = [f"{passage.score:.3f}", f"{passage.prior:.3f}", *([f"{passage.posterior:.3f}"] if posterior else [])]
        style = "bold" if posterior and passage.posterior == best else None
        table.add_row(*figures, escape(passage.title), escape(excerpt(passage.text)), style=style)
    console.out.print(table)


def show_timings(timings: Mapping[str, float]) -> None:
    """Stages with their times, in the order in which they are reported."""
    stages = "  ".join(f"{stage} {seconds * 1000:.0f} ms" for stage, seconds in timings.items())
    if stages:
        console.out.print(f"[dim]{escape(stages)}[/]")
