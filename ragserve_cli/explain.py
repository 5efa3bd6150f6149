"""A self-contained HTML page about one answer: document posteriors by token (Lewis et al. 2020, Figure 2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape as escape_html
from importlib.resources import files
from pathlib import Path
from string import Template

from ragserve.files import file_errors
from ragserve.printable import printable
from ragserve.results import Answer, Passage, TokenPosterior
from ragserve_cli.text import percent

# From these probabilities on, a cell is so saturated that its figure needs the other ink (WCAG contrast 4.5).
STRONG, MIDDLE = 0.75, 0.5
FEW_TOKENS = 7  # up to which the cells may be wide


def write_page(path: Path, question: str, answer: Answer) -> None:
    """Write the page. Raises RagserveError where the file cannot be written."""
    page = render_page(question, answer)
    with file_errors("write the page of --explain to", path):
        path.write_text(page, encoding="utf-8", errors="backslashreplace")


def render_page(question: str, answer: Answer) -> str:
    """The page as HTML; everything that is not ours is escaped."""
    template = Template(files("ragserve_cli").joinpath("explain.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{question} – ragserve"),
        question=escape(question),
        answer=escape(answer.answer) or "(empty answer)",
        facts=_facts(answer),
        warnings="".join(f'<p class="warning">{escape(warning)}</p>' for warning in answer.warnings + answer.notes),
        heat_map=_heat_map(answer.passages, answer.token_posteriors),
        passages="".join(_passage(rank, found, answer.answer) for rank, found in enumerate(answer.passages, start=1)),
        tables=_other_answers(answer) + _timings(answer),
    )


def escape(text: str) -> str:
    """The text for HTML, with control characters and changes of direction shown as escapes."""
    return escape_html(printable(text))


def _facts(answer: Answer) -> str:
    facts = [
        ("log p(y|x)", f"{answer.log_prob:.3f}"),
        ("p(y|x)", escape(percent(answer.probability))),
        ("tokens", str(len(answer.token_ids))),
        ("documents", str(len(answer.passages))),
    ]
    if "request" in answer.timings_seconds:
        facts.append(("answered in", f"{answer.timings_seconds['request']:.2f} s"))
    if answer.knowledge_version:
        facts.append(("knowledge version", str(answer.knowledge_version)))
    return "".join(f"<li>{name} <b>{value}</b></li>" for name, value in facts)


def _heat_map(passages: Sequence[Passage], tokens: Sequence[TokenPosterior]) -> str:
    """Documents down, tokens across; the prior comes before the first token."""
    head = '<th class="corner" scope="col">document</th><th class="edge" scope="col">prior<br>p(z|x)</th>'
    head += '<th class="gap"></th>'
    head += "".join(f'<th scope="col">{_piece(token.piece)}</th>' for token in tokens)
    rows = []
    for index, passage in enumerate(passages):
        cells = _cell(passage.prior, f"{passage.title}: prior") + '<td class="gap"></td>'
        cells += "".join(_cell(token.posterior[index], f"{passage.title}: “{token.piece}”") for token in tokens)
        name = f'<span class="rank">{index + 1}</span>{escape(_name(passage, index))}'
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    width = "heat roomy" if len(tokens) <= FEW_TOKENS else "heat"
    return f'<table class="{width}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _cell(probability: float, label: str) -> str:
    ink = " strong" if probability >= STRONG else ""
    ink += " middle" if probability >= MIDDLE else ""
    style = f'class="cell{ink}" style="--p: {probability:.4f}"'
    return f'<td {style} title="{escape(label)}: {probability:.4f}">{_short(probability)}</td>'


def _short(probability: float) -> str:
    """Two digits; a little is not shown as nothing."""
    return "&lt;.01" if 0 < probability < 0.005 else f"{probability:.2f}"


def _piece(piece: str) -> str:
    """A token's text; an end token is named by its own name, spaces are kept by the style sheet."""
    return escape(piece.strip()) or "␣"


def _name(passage: Passage, index: int) -> str:
    return passage.title or passage.id or f"document {index + 1}"


def _passage(rank: int, passage: Passage, answer: str) -> str:
    """A passage with the answer marked where it stands in it."""
    number = f'<span class="rank">{rank}</span>'
    named = passage.id in ("", passage.title)
    ident = "" if named else f' <span class="id">{escape(passage.id)}</span>'
    bars = _bar("prior", passage.prior) + _bar("posterior", passage.posterior or 0.0)
    score = f'<div class="id">score {passage.score:.3f}</div>'
    title, text = escape(_name(passage, rank - 1)), _marked(passage.text, answer.strip())
    return f"<li><div><h3>{number}{title}{ident}</h3><p>{text}</p></div><div>{bars}{score}</div></li>"


def _marked(text: str, answer: str) -> str:
    """The text, escaped, with every occurrence of the answer marked."""
    if not answer:
        return escape(text)
    parts = re.split(f"({re.escape(answer)})", text, flags=re.IGNORECASE)
    return "".join(f"<mark>{escape(part)}</mark>" if index % 2 else escape(part) for index, part in enumerate(parts))


def _bar(name: str, probability: float) -> str:
    return (
        f'<div class="bar {name}"><span>{name}</span><i style="--p: {probability:.4f}"></i>'
        f"<b>{probability:.3f}</b></div>"
    )


def _other_answers(answer: Answer) -> str:
    if len(answer.hypotheses) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{escape(hypothesis.text)}</td><td>{hypothesis.score:.3f}</td><td>{hypothesis.log_prob:.3f}</td></tr>"
        for hypothesis in answer.hypotheses
    )
    head = (
        '<thead><tr><th scope="col">answer</th><th scope="col">score</th><th scope="col">log p(y|x)</th></tr></thead>'
    )
    return _section("answers", "Answers by falling score", f'<table class="plain">{head}<tbody>{rows}</tbody></table>')


def _timings(answer: Answer) -> str:
    slowest = sorted(answer.timings_seconds.items(), key=lambda item: -item[1])
    stages = "".join(
        f"<li>{escape(stage.replace('_', ' '))} <b>{seconds * 1000:.1f} ms</b></li>" for stage, seconds in slowest
    )
    return _section("timings", "Where the time went", f'<ul class="stages">{stages}</ul>') if stages else ""


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>'
