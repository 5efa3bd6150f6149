"""Prints answers, passages and timings for a person: a few lines each, or with `-v` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ragserve.results import Answer, AnswerScore, Hypothesis, Passage, Retrieval
from ragserve_cli import console
from ragserve_cli.text import excerpt, percent

TEXT_LINES = 4  # of a passage in a table
NARROWEST_TEXT = 20  # terminal cells
# How a stage of `timings_seconds` is called here, and what it is.
STAGES = {
    "queue": ("queue", "waiting for a free worker"),
    "encode": ("encode", "the query encoder"),
    "search": ("search", "the index"),
    "fetch": ("fetch", "reading the passages"),
    "prefill": ("prefill", "encoding the documents"),
    "decode_step": ("decode step", "the decoder's forward passes"),
    "select": ("select", "choosing candidate tokens"),
    "score": ("score", "log-probabilities of whole candidates"),
    "render": ("render", "turning tokens into text"),
    "marginalize": ("marginalize", "marginals and the search over tokens"),
    "time_to_first_token": ("time to first token", "from the start of the request to its first final token"),
    "retrieve": ("retriever", "the whole call to the retriever"),
    "wire": ("network", "of both calls, what the other service did not report: network and serialization"),
    "generator": ("generator", "all exchanges with the generator"),
    "other": ("unaccounted", "the rest of the request in the orchestrator"),
    "request": ("request", "the whole request"),
}


def show_answer(answer: Answer, *, with_text: bool = True, verbose: bool = False) -> None:
    """The answer (unless it was streamed already), other answers, passages and time."""
    if with_text:
        console.out.print(f"[bold]{escape(answer.answer.strip()) or '(empty answer)'}[/]", soft_wrap=True)
    _show_probability(answer.probability, answer.log_prob)
    if len(answer.hypotheses) > 1:
        console.out.print(_hypothesis_table(answer.hypotheses))
    show_passages(answer.passages, posterior=True, verbose=verbose, around=answer.answer.strip())
    show_timings(answer.timings_seconds, verbose=verbose)
    for warning in answer.warnings:
        console.warn(warning)
    for note in answer.notes:
        console.note(note)


def show_retrieval(found: Retrieval, *, verbose: bool = False) -> None:
    """The passages of a question."""
    show_passages(found.passages, posterior=False, verbose=verbose)
    show_timings(found.timings_seconds, verbose=verbose)
    for warning in found.warnings:
        console.warn(warning)


def show_score(score: AnswerScore, *, verbose: bool = False) -> None:
    """The probability of an answer, and what each token adds."""
    _show_probability(score.probability, score.log_prob)
    console.out.print(_token_table(score))
    show_passages(score.passages, posterior=True, verbose=verbose)
    show_timings(score.timings_seconds, verbose=verbose)
    for warning in score.warnings:
        console.warn(warning)


def show_passages(passages: Sequence[Passage], *, posterior: bool, verbose: bool, around: str = "") -> None:
    """The passages: a line each, or with `verbose` a table of all their figures and more of their text."""
    table = _passage_table(passages, posterior, around) if verbose else _passage_lines(passages, posterior, around)
    console.out.print(table)


def show_timings(timings: Mapping[str, float], *, verbose: bool) -> None:
    """How long it took: in one line, or with `verbose` a table of all stages and what each is."""
    if not timings:
        return
    if verbose:
        table = Table("stage", "ms", "what it is", box=None, pad_edge=False, style="dim", header_style="dim")
        table.columns[1].justify = "right"
        for stage, seconds in timings.items():
            name, meaning = STAGES.get(stage, (stage, ""))
            table.add_row(escape(name), f"{seconds * 1000:.1f}", meaning)
        console.out.print(table)
        return
    parts = [f"{STAGES[stage][0]} {timings[stage]:.2f} s" for stage in ("retrieve", "generator") if stage in timings]
    whole = f"{timings['request']:.2f} s" if "request" in timings else f"{sum(timings.values()):.2f} s"
    inner = f" ({', '.join(parts)})" if parts else ""
    console.out.print(f"[dim]{whole}{inner}[/]", soft_wrap=True)


def _show_probability(probability: float, log_prob: float) -> None:
    console.out.print(f"p(y|x) = {percent(probability)}   log p(y|x) = {log_prob:.4f}", style="dim")


def _token_table(score: AnswerScore) -> Table:
    """The answer's tokens; for one without text, its id."""
    table = Table("token", "log p", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.columns[1].justify = "right"
    pieces = score.pieces or ("",) * len(score.token_ids)
    for token, piece, value in zip(score.token_ids, pieces, score.token_log_probs, strict=True):
        table.add_row(escape(piece.strip()) or f"[dim]{token}[/]", f"{value:.3f}")
    return table


def _hypothesis_table(hypotheses: Sequence[Hypothesis]) -> Table:
    """All answers, best first, with the score that ranks them: it need not fall with the probability."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "score", "log p(y|x)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("answers by score", overflow="fold")
    for rank, one in enumerate(hypotheses, start=1):
        text = escape(one.text.strip()) or "(empty answer)"
        table.add_row(str(rank), f"{one.score:.4f}", f"{one.log_prob:.4f}", text)
    return table


def _passage_lines(passages: Sequence[Passage], posterior: bool, around: str) -> Table:
    """Rank, prior or posterior, title and the part of the text that shows the answer; a line each."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("posterior" if posterior else "prior", justify="right", no_wrap=True)
    table.add_column("passage", no_wrap=True, overflow="ellipsis")
    width = max(NARROWEST_TEXT, console.out.width - 16)
    best = max((passage.posterior or 0.0 for passage in passages), default=0.0)
    for rank, passage in enumerate(passages, start=1):
        figure = (passage.posterior or 0.0) if posterior else passage.prior
        style = "bold" if posterior and passage.posterior == best else None
        table.add_row(str(rank), f"{figure:.1%}", _line(passage, width, around), style=style)
    return table


def _line(passage: Passage, width: int, around: str) -> Text:
    title = excerpt(passage.title or passage.id, width // 3)
    text = excerpt(passage.text, width - len(title) - 2, around)
    line = Text.assemble((title, "cyan"), ": ", text) if title else Text(text)
    if around:
        line.highlight_words([around], "bold green", case_sensitive=False)
    return line


def _passage_table(passages: Sequence[Passage], posterior: bool, around: str) -> Table:
    table = Table(pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    for name in ("score", "prior", *(["posterior"] if posterior else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("title", max_width=console.out.width // 5, overflow="fold")
    table.add_column("text", overflow="fold")
    best = max((passage.posterior or 0.0 for passage in passages), default=0.0)
    cells = TEXT_LINES * max(NARROWEST_TEXT, console.out.width * 4 // 5 - 40)
    for rank, passage in enumerate(passages, start=1):
        figures = [
            f"{passage.score:.3f}",
            f"{passage.prior:.3f}",
            *([f"{passage.posterior or 0.0:.3f}"] if posterior else []),
        ]
        style = "bold" if posterior and passage.posterior == best else None
        text = excerpt(passage.text, cells, around)
        table.add_row(str(rank), *figures, escape(passage.title or passage.id), escape(text), style=style)
    return table


def show_whole_passage(passage: Passage) -> None:
    """A passage with everything that is stored with it."""
    named = passage.id and passage.id != passage.title
    console.out.print(f"[cyan]{escape(passage.title)}[/]" + (f"  [dim]{escape(passage.id)}[/]" if named else ""))
    console.out.print(escape(passage.text))
    for key, value in passage.metadata.items():
        console.out.print(f"[dim]{escape(key)}:[/] {escape(str(value))}")
