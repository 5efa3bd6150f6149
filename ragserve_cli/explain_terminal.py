"""Which passage the model relied on for each token, drawn in the terminal (Lewis et al. 2020, Figure 2)."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ragserve.results import Answer
from ragserve_cli import console
from ragserve_cli.text import excerpt

SHADES = ((0.75, "bold white on green"), (0.5, "black on bright_green"), (0.25, "green"), (0.05, ""), (0.0, "dim"))


def show_token_posteriors(answer: Answer) -> None:
    """A row for each token and a column for each passage, shaded by the posterior; then the passages' titles."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token")
    for rank in range(1, len(answer.passages) + 1):
        table.add_column(str(rank), justify="right", no_wrap=True)
    for token in answer.token_posteriors:
        table.add_row(escape(token.piece.strip()) or "␣", *(_cell(value) for value in token.posterior))
    console.out.print(table)
    for rank, passage in enumerate(answer.passages, start=1):
        title = excerpt(passage.title or passage.id or passage.text, console.out.width - 5)
        console.out.print(f"{rank:>3}  {escape(title)}", soft_wrap=True)


def _cell(probability: float) -> Text:
    style = next(style for least, style in SHADES if probability >= least)
    return Text(f" {probability:.0%} ", style=style)
