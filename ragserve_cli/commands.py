"""The commands of `ragserve` and their options."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ragserve import boundary
from ragserve.passage_rules import MAX_PASSAGE_BYTES, MAX_TEXT_BYTES
from ragserve.unfinished import remove_unfinished
from ragserve_cli import asking, building, changing, choices, console, interrupts
from ragserve_cli.flags import in_flags
from ragserve_cli.importing import import_command, quantize_command
from ragserve_cli.knowledge import kb

KnowledgeOption = Annotated[
    Path | None, typer.Option("--knowledge", metavar="KB", help="Knowledge base; unset: the embedded one.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML file with a table for each service: retriever, generator, orchestrator."
    ),
]
StartupOption = Annotated[
    float, typer.Option("--startup-timeout", metavar="SECONDS", help="How long the services may take to load.")
]
LogsOption = Annotated[bool, typer.Option("--logs", help="Show the services' logs.")]
STARTUP_SECONDS = 180.0
LexicalOption = Annotated[
    bool | None,
    typer.Option(
        "--lexical/--no-lexical",
        help="Whether the retriever builds a word index (BM25), which --search-kind bm25, weighted and rrf "
        "need; unset: as --config says, else not.",
    ),
]

DocumentsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="Your documents: a folder or a file of Markdown, text, HTML, PDF, JSONL, CSV, TSV or Parquet.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="KB", help="Knowledge base to make; unset: in ~/.local/share/ragserve.")
]

app = typer.Typer(
    help="Retrieval-Augmented Generation over gRPC: answers decoded from the exact marginal over passages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (changing.add, changing.delete, changing.versions, changing.rollback, changing.diff, changing.compact):
    kb.command(command.__name__)(command)
app.add_typer(kb, name="kb")
app.command("ask", cls=choices.QuestionCommand)(asking.ask)
app.command("score", cls=choices.QuestionCommand)(asking.score)
app.command("retrieve", cls=choices.QuestionCommand)(asking.retrieve)
app.command("info")(asking.info)
app.command("import-checkpoint")(import_command)
app.command("quantize-encoder")(quantize_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        import ragserve  # noqa: PLC0415  (only for this)

        print(f"ragserve {ragserve.__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar=boundary.DEBUG_VARIABLE, help="Show the traceback of an error as well."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Sets what holds for every command, and for the services that it starts."""
    if debug:
        os.environ[boundary.DEBUG_VARIABLE] = "1"


@app.command("up")
def up_command(
    config: ConfigOption = None,
    model: choices.ModelOption = None,
    knowledge: KnowledgeOption = None,
    lexical: LexicalOption = None,
    startup_timeout: StartupOption = STARTUP_SECONDS,
) -> None:
    """Run retriever, generator and orchestrator on this machine until Ctrl-C."""
    from ragserve_cli.plan import Assets  # noqa: PLC0415  (slow to import)
    from ragserve_cli.up import up  # noqa: PLC0415

    up(Assets(config, model, knowledge, lexical), startup_timeout)


@app.command("demo")
def demo_command(
    config: ConfigOption = None,
    model: choices.ModelOption = None,
    knowledge: KnowledgeOption = None,
    lexical: LexicalOption = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="One question a line; unset: the embedded ones.")
    ] = None,
    verbose: choices.VerboseOption = False,
    logs: LogsOption = False,
    startup_timeout: StartupOption = STARTUP_SECONDS,
) -> None:
    """Start the services with the embedded models, answer sample questions, then take yours.

    Usual ports that are taken are replaced by free ones.
    """
    from ragserve_cli.demo import demo  # noqa: PLC0415  (slow to import)
    from ragserve_cli.plan import Assets  # noqa: PLC0415

    assets = Assets(config, model, knowledge, lexical)
    demo(assets, questions, verbose=verbose, logs=logs, timeout=startup_timeout)


@app.command("quickstart")
def quickstart_command(  # noqa: PLR0913
    context: typer.Context,
    path: DocumentsArgument,
    *,
    out: OutOption = None,
    config: ConfigOption = None,
    model: choices.ModelOption = None,
    lexical: LexicalOption = None,
    source_format: building.FormatOption = None,
    id_column: building.IdColumnOption = None,
    title_column: building.TitleColumnOption = None,
    text_column: building.TextColumnOption = None,
    without_column: building.WithoutColumnOption = None,
    quotes: building.QuotesOption = "auto",
    id_prefix: building.IdPrefixOption = "",
    max_text_bytes: building.MaxTextOption = MAX_TEXT_BYTES,
    max_passage_bytes: building.MaxPassageOption = MAX_PASSAGE_BYTES,
    verbose: choices.VerboseOption = False,
    logs: LogsOption = False,
    startup_timeout: StartupOption = STARTUP_SECONDS,
) -> None:
    """Build a knowledge base from your documents, start the services on it, and answer your questions."""
    from ragserve_cli.plan import Assets  # noqa: PLC0415  (slow to import)
    from ragserve_cli.quickstart import Sources, quickstart  # noqa: PLC0415
    from retriever_svc.build import BuildOptions  # noqa: PLC0415

    build = BuildOptions(
        skip_bad_rows=True,
        reading=building.read_options(id_column, title_column, text_column, without_column, quotes, id_prefix),
        max_text_bytes=max_text_bytes,
        max_passage_bytes=max_passage_bytes,
        notify=building.notes_of(context),
    )
    sources = Sources.of(path, out, model, source_format, build)
    assets = Assets(config, sources.model, sources.out, lexical)
    quickstart(sources, assets, verbose=verbose, logs=logs, timeout=startup_timeout)


def run() -> int:
    """Runs the command that was given. An error becomes one line on stderr, in terms of the options, and a status."""
    interrupts.before_the_end(remove_unfinished)
    return boundary.guarded(_run, console.fail, lambda error: boundary.ending_of(in_flags(error, app, sys.argv[1:])))


def _run() -> int:
    logging.basicConfig(level=logging.WARNING, handlers=[console.LogWarnings()])
    app()
    return 0
