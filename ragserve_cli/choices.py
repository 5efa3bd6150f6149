"""Options that several commands share; each is described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ragserve.options import Decoding, Mode, QuestionForm, Truncation

SEARCH, SAMPLING, CONTEXT, OUTPUT = "Search", "Sampling (token mode)", "Context", "Output"
DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 60.0  # seconds

EarlyStopping = Literal["heuristic", "first", "never"]
SearchKind = Literal["dense", "bm25", "weighted", "rrf"]


class QuestionCommand(TyperCommand):
    """A command whose arguments are sentences: several words without quotes are told how to stand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left over, of which there are none. Raises as typer does."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            message = str(getattr(error, "message", ""))
            if "unexpected extra argument" in message:
                texts = [one.name for one in self.params if one.param_type_name == "argument"]
                error.message = f"{message}: put the {' and the '.join(texts)} in quotes"
            raise


Question = Annotated[str, typer.Argument(help="What to ask.")]
TargetOption = Annotated[
    str, typer.Option("--target", metavar="HOST:PORT", envvar="RAGSERVE_TARGET", help="The orchestrator.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Deadline of the request.")]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Show scores, more of each passage and the time of every stage.", rich_help_panel=OUTPUT
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)]
ModelOption = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Model directory; unset: the embedded one.")
]

ModeOption = Annotated[Mode | None, typer.Option("--mode", help="Unset: as the checkpoint was trained.")]
DocsOption = Annotated[
    int | None,
    typer.Option(
        "--docs", metavar="K", help="Passages to retrieve; unset: the checkpoint's number, or as many as there are."
    ),
]
VersionOption = Annotated[
    int | None, typer.Option("--knowledge-version", metavar="N", help="Version of the knowledge base; unset: newest.")
]

FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only passages with this metadata: KEY=VALUE, KEY=A,B, KEY!=VALUE, KEY>=VALUE (also >, <=, <). May be "
        'repeated; all must hold. Quote a value with a comma: place="Paris, Texas".',
    ),
]

SearchKindOption = Annotated[
    SearchKind | None,
    typer.Option(
        "--search-kind",
        help="Find passages by vector (dense), by words (bm25), or by both. All but dense need a retriever that was "
        "started with --lexical, as by 'ragserve up --lexical' (demo and quickstart have that flag too).",
    ),
]

DecodingOption = Annotated[
    Decoding | None,
    typer.Option(
        "--decoding",
        help="How sequence mode ranks its answers; thorough scores each under every passage.",
        rich_help_panel=SEARCH,
    ),
]
BeamsOption = Annotated[
    int | None,
    typer.Option("--beams", metavar="N", help="Beams of the search; 1 searches greedily.", rich_help_panel=SEARCH),
]
ReturnsOption = Annotated[
    int | None,
    typer.Option(
        "--returns", metavar="N", help="Answers to return, at most as many as --beams.", rich_help_panel=SEARCH
    ),
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Longest answer in tokens, start token included.", rich_help_panel=SEARCH),
]
MinLengthOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Shortest answer in tokens, start token included.", rich_help_panel=SEARCH),
]
MaxNewOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Longest answer in tokens, start token not included.", rich_help_panel=SEARCH),
]
MinNewOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Shortest answer in tokens, start token not included.", rich_help_panel=SEARCH),
]
LengthPenaltyOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Beam search ranks answers by log-probability / length^X.", rich_help_panel=SEARCH),
]
EarlyStoppingOption = Annotated[
    EarlyStopping | None, typer.Option(help="When beam search stops, as in transformers.", rich_help_panel=SEARCH)
]
NgramOption = Annotated[
    int | None,
    typer.Option(
        "--no-repeat-ngram",
        metavar="N",
        help="No sequence of N tokens occurs twice; 0 allows it.",
        rich_help_panel=SEARCH,
    ),
]
RepetitionOption = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Values above 1 make tokens that were generated before less likely.", rich_help_panel=SEARCH
    ),
]
BadWordsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bad-words",
        metavar="IDS",
        help="Token ids that may not follow each other, such as 12,7; may be repeated.",
        rich_help_panel=SEARCH,
    ),
]

SampleOption = Annotated[bool, typer.Option("--sample", help="Sample instead of search.", rich_help_panel=SAMPLING)]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Divides the log-probabilities; turns sampling on, as the next three options do.",
        rich_help_panel=SAMPLING,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Sample from the N most probable tokens; 0: from all.", rich_help_panel=SAMPLING),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Sample from the most probable tokens that have probability P together.",
        rich_help_panel=SAMPLING,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="N", help="The same seed gives the same answer again.", rich_help_panel=SAMPLING)
]

QuestionFormOption = Annotated[
    QuestionForm | None,
    typer.Option(
        help="Form of the question that the generator reads: raw is as asked, decoded is as transformers feeds it.",
        rich_help_panel=CONTEXT,
    ),
]
TruncationOption = Annotated[
    Truncation | None,
    typer.Option(
        help="What a context that is too long loses: the end of its passage, or its right end.", rich_help_panel=CONTEXT
    ),
]
ContextTokensOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Longest context in tokens: question and passage together.", rich_help_panel=CONTEXT
    ),
]

StreamOption = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Print the answer's text as it becomes final; with --json, print one JSON object per event and line.",
        rich_help_panel=OUTPUT,
    ),
]
ExplainOption = Annotated[
    Path | None,
    typer.Option(
        "--explain",
        metavar="FILE.html",
        help="Write a page that shows which passage the model relied on for each token.",
        rich_help_panel=OUTPUT,
    ),
]
