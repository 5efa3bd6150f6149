"""`ragserve kb build`: makes a knowledge base without any service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragserve.passage_rules import MAX_PASSAGE_BYTES, MAX_TEXT_BYTES, USUAL_NAMES
from ragserve.printable import counted
from ragserve_cli import choices, console, interrupts
from ragserve_cli.flags import parameters_of, worded
from ragserve_cli.plan import demo_directory

if TYPE_CHECKING:
    from retriever_svc.build import BuildOptions, ReadOptions

SPLIT, INPUT, SCALE = "Splitting", "Input", "Scale"

Precision = Literal["float32", "float16"]
Format = Literal[
    "jsonl", "json", "tsv", "csv", "parquet", "arrow", "lance", "text", "markdown", "html", "pdf", "folder"
]

SOURCE = (
    "Passages: JSONL, JSON (an array of objects), TSV (psgs_w100.tsv), CSV, Parquet, Arrow, Lance or a knowledge base, "
    "a text, Markdown, HTML or PDF file, or a folder of them; - for standard input."
)
QUOTES = (
    "Quotes that begin TSV and CSV fields: 'yes' ends the field at the next quote, on a later line if need be; "
    "'no' takes them as characters of the text; 'auto' is 'yes' but refuses texts whose lines read as records."
)
JSONL = (
    'JSONL has one object per line: {"id": "a1", "text": "…", "title": "…", "metadata": {"lang": "en", "year": 1990}}. '
    "Only text is required; further keys become metadata."
)
EMBEDDINGS = (
    "Vectors made by the model's passage encoder, in the order of SOURCE: a .npy file (a row each), or DPR pickles "
    "(files, in order, or a directory of them)."
)
Source = Annotated[Path, typer.Argument(help=f"{SOURCE} {JSONL}")]
Out = Annotated[Path, typer.Argument(help="Directory of the knowledge base to make; an empty one may be there.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Precision of the stored vectors.")]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Make a new version of OUT if it exists; old versions stay readable.")
]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Format of SOURCE; unset: by its name.", rich_help_panel=INPUT)
]
EmbeddingsOption = Annotated[
    list[Path] | None, typer.Option("--embeddings", metavar="FILE", help=EMBEDDINGS, rich_help_panel=INPUT)
]
AllowPickleOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Read pickles, which can run any code: only from whom you trust.", rich_help_panel=INPUT
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows", help="Leave bad rows out and count them, instead of refusing SOURCE.", rich_help_panel=INPUT
    ),
]


def _column(name: str) -> Any:
    unset = ", ".join(USUAL_NAMES[name])
    help_text = f"Column of the {name}s; unset: {unset}."
    return typer.Option(f"--{name}-column", metavar="NAME", help=help_text, rich_help_panel=INPUT)


IdColumnOption = Annotated[str | None, _column("id")]
TitleColumnOption = Annotated[str | None, _column("title")]
TextColumnOption = Annotated[str | None, _column("text")]
WithoutColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--without-column", metavar="NAME", help="Leave a column out; may be repeated.", rich_help_panel=INPUT
    ),
]
IdPrefixOption = Annotated[
    str,
    typer.Option(
        "--id-prefix",
        metavar="TEXT",
        help="Begins the ids that are made of a file's name, such as 2024/, so that files of one name differ.",
        rich_help_panel=INPUT,
    ),
]
Quotes = Literal["auto", "yes", "no"]
QuotesOption = Annotated[Quotes, typer.Option("--quotes", help=QUOTES, rich_help_panel=INPUT)]
MaxTextOption = Annotated[
    int,
    typer.Option(
        "--max-text-bytes",
        metavar="N",
        min=1,
        help="The most UTF-8 bytes of one text, before it is split. A line may have 6 times as many and 1 MiB.",
        rich_help_panel=INPUT,
    ),
]
WordsOption = Annotated[
    int | None,
    typer.Option("--split-words", metavar="N", help="To passages of N words (DPR: 100).", rich_help_panel=SPLIT),
]
SplitOption = Annotated[
    Literal["sentences", "none"] | None,
    typer.Option(
        "--split",
        help="sentences (if unset): texts that the encoder would not read to their end become passages ID#0, ID#1, "
        "...; none: every row stays one passage.",
        rich_help_panel=SPLIT,
    ),
]
MaxPassageOption = Annotated[
    int,
    typer.Option(
        "--max-passage-bytes",
        metavar="N",
        min=1,
        help="The most UTF-8 bytes that a passage may have: id, title, text and metadata, after the split.",
        rich_help_panel=INPUT,
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option("--split-tokens", metavar="N", help="To passages of N encoder tokens.", rich_help_panel=SPLIT),
]
OverlapOption = Annotated[
    int,
    typer.Option(
        "--overlap", metavar="M", help="Tokens that a passage shares with the one before.", rich_help_panel=SPLIT
    ),
]
ShardOption = Annotated[
    int,
    typer.Option(
        "--shard-passages",
        metavar="N",
        help="Passages finished together, which a build that goes on need not repeat; 0: 1024 (8192 with "
        "--embeddings), or a thousandth of SOURCE if more.",
        rich_help_panel=SCALE,
    ),
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine",
        help="Embed in this process, or on Ray Data (on the cluster that RAY_ADDRESS names, else on this machine).",
        rich_help_panel=SCALE,
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", help="Ray actors that embed; 0: as many as there is room for.", rich_help_panel=SCALE
    ),
]


def read_options(
    id_column: str | None,
    title_column: str | None,
    text_column: str | None,
    without: list[str] | None,
    quotes: Quotes,
    id_prefix: str,
) -> ReadOptions:
    """How the columns of a source are read, by the flags that build, add and quickstart share."""
    from retriever_svc.build.reading import ReadOptions  # noqa: PLC0415  (slow to import)

    return ReadOptions(id_column, title_column, text_column, tuple(without or ()), quotes, id_prefix)


def words_of(context: typer.Context) -> Callable[[str], str]:
    """Puts the flags of the command that runs in place of the names of options in a note."""
    shown = parameters_of(context.command)
    return lambda message: worded(message, shown)


def notes_of(context: typer.Context) -> Callable[[str], None]:
    """Tells notes with these flags."""
    words = words_of(context)
    return lambda message: console.note(words(message))


def build(  # noqa: PLR0913
    context: typer.Context,
    source: Source,
    out: Out,
    *,
    model: choices.ModelOption = None,
    precision: PrecisionOption = "float32",
    replace: ReplaceOption = False,
    source_format: FormatOption = None,
    embeddings: EmbeddingsOption = None,
    allow_pickle: AllowPickleOption = False,
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    text_column: TextColumnOption = None,
    without_column: WithoutColumnOption = None,
    quotes: QuotesOption = "auto",
    id_prefix: IdPrefixOption = "",
    skip_bad_rows: SkipOption = False,
    max_text_bytes: MaxTextOption = MAX_TEXT_BYTES,
    max_passage_bytes: MaxPassageOption = MAX_PASSAGE_BYTES,
    split: SplitOption = None,
    split_words: WordsOption = None,
    split_tokens: TokensOption = None,
    overlap: OverlapOption = 0,
    shard_passages: ShardOption = 0,
    engine: EngineOption = "local",
    workers: WorkersOption = 0,
) -> None:
    """Embed passages with the model's passage encoder and commit them as a versioned knowledge base.

    A build that was killed goes on where it was when the same command is given again.
    """
    from retriever_svc.build import BuildOptions  # noqa: PLC0415  (slow to import)

    options = BuildOptions(
        reading=read_options(id_column, title_column, text_column, without_column, quotes, id_prefix),
        split=split,
        split_tokens=split_tokens,
        overlap=overlap,
        embeddings=tuple(embeddings or ()),
        allow_pickle=allow_pickle,
        skip_bad_rows=skip_bad_rows,
        max_text_bytes=max_text_bytes,
        max_passage_bytes=max_passage_bytes,
        shard_passages=shard_passages,
        engine=engine,
        workers=workers,
        notify=notes_of(context),
    )
    _build(source, out, model, source_format, split_words, precision, replace, options)


def _build(
    source: Path,
    out: Path,
    model: Path | None,
    source_format: Format | None,
    split_words: int | None,
    precision: Precision,
    replace: bool,
    options: BuildOptions,
) -> None:
    from retriever_svc.build import build_knowledge_base  # noqa: PLC0415  (slow to import)

    resumable = source.is_file() or source.is_dir()  # a pipe cannot be read again
    told = interrupts.saying(lambda: interrupts.RESUMABLE if resumable else "stopped")
    with told, console.progress_bar("embedding", unit="passages") as bar:
        made = build_knowledge_base(
            source,
            out,
            model or demo_directory() / "model",
            source_format=source_format,
            split_words=split_words,
            precision=precision,
            replace=replace,
            progress=lambda progress: bar.update(progress.done, progress.total),
            build=options,
        )
    console.note(
        f"{out}: version {made.version}, {counted(made.passages, 'passage')} of {counted(made.dimension, 'dimension')}"
    )
