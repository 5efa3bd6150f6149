"""The command line: `ragserve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ragserve.errors import RagserveError
from ragserve_cli import asking, changing, console
from ragserve_cli.importing import import_command, quantize_command
from ragserve_cli.knowledge import kb

ModelOption = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Model directory; unset: the embedded one.")
]
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
STARTUP_SECONDS = 180.0
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

app = typer.Typer(
    help="Retrieval-Augmented Generation over gRPC: answers decoded from the exact marginal over passages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (changing.add, changing.delete, changing.versions, changing.rollback, changing.diff, changing.compact):
    kb.command(command.__name__)(command)
app.add_typer(kb, name="kb")
app.command("ask")(asking.ask)
app.command("score")(asking.score)
app.command("retrieve")(asking.retrieve)
app.command("info")(asking.info)
app.command("import-checkpoint")(import_command)
app.command("quantize-encoder")(quantize_command)


@app.command("up")
def up_command(
    config: ConfigOption = None,
    model: ModelOption = None,
    knowledge: KnowledgeOption = None,
    startup_timeout: StartupOption = STARTUP_SECONDS,
) -> None:
    """Run retriever, generator and orchestrator on this machine until Ctrl-C."""
    from ragserve_cli.up import up  # noqa: PLC0415  (slow to import)

    up(config, model, knowledge, startup_timeout)


@app.command("demo")
def demo_command(
    config: ConfigOption = None,
    model: ModelOption = None,
    knowledge: KnowledgeOption = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="One question a line; unset: the embedded ones.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the services' logs.")] = False,
    startup_timeout: StartupOption = STARTUP_SECONDS,
) -> None:
    """Start the services with the embedded models, answer sample questions, then take yours."""
    from ragserve_cli.demo import demo  # noqa: PLC0415  (slow to import)

    demo(config, model, knowledge, questions, verbose=verbose, timeout=startup_timeout)


def main() -> None:
    """Entry point: an error that a user can act on becomes one line on stderr and an exit status."""
    try:
        app()
    except RagserveError as error:
        sys.exit(console.report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
