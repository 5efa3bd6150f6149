"""`ragserve kb`: builds, describes and searches knowledge bases without any service."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ragserve.errors import InvalidInputError
from ragserve.filters import Condition
from ragserve_cli import choices, console
from ragserve_cli.building import build
from ragserve_cli.filtering import parse_filters
from ragserve_cli.plan import demo_directory
from ragserve_cli.reach import reached
from ragserve_cli.text import excerpt, is_utf8

EXCERPT_CELLS = 160  # of a passage in the table of `kb search`, or two terminal lines if these are longer

KEY_CELLS, LISTED_KEYS = 40, 20  # of the metadata, in `kb info`

kb = typer.Typer(
    help="Build, describe and search knowledge bases.", no_args_is_help=True, pretty_exceptions_enable=False
)


SearchKindOption = Annotated[
    choices.SearchKind | None,
    typer.Option(
        "--search-kind",
        help="Find passages by vector (dense), by words (bm25), or by both. Indexes the words of KB for this search.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


kb.command("build")(build)


@kb.command("info")
def info(
    knowledge: Annotated[Path | None, typer.Argument(metavar="KB", help="Unset: the embedded one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a knowledge base holds."""
    from retriever_svc.knowledge import COUNTED_ROWS, describe, metadata_keys  # noqa: PLC0415  (slow to import)

    described = describe(knowledge or demo_directory() / "kb")
    found = {key: _plain(value) for key, value in asdict(described).items()}
    keys, nested = metadata_keys(described.path, described.version)
    if as_json:
        console.print_json({**found, "metadata_keys": keys, "nested_metadata_keys": nested})
        return
    table = Table(show_header=False, box=None)
    for key, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(key.replace("_", " "), escape(shown))
    counted = f" (of the first {COUNTED_ROWS:,} passages)" if described.passages > COUNTED_ROWS else ""
    table.add_row("metadata keys", escape(_listed(keys, nested) + counted))
    console.out.print(table)


@kb.command("search")
def search(  # noqa: PLR0913, PLR0917
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="[KB] QUERY",
            help="KB: directory of the knowledge base; left out: the embedded one. QUERY: a question.",
            show_default=False,
        ),
    ],
    k: Annotated[
        int | None, typer.Option("--k", "-k", help="Passages wanted; unset: 5 (--target: the checkpoint's), or all.")
    ] = None,
    knowledge: Annotated[
        Path | None, typer.Option("--knowledge", metavar="KB", help="The same as KB before QUERY.")
    ] = None,
    model: choices.ModelOption = None,
    target: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask the running orchestrator there instead of reading KB.")
    ] = None,
    filters: choices.FilterOption = None,
    knowledge_version: choices.VersionOption = None,
    search_kind: SearchKindOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Deadline of the request to --target.")
    ] = choices.DEFAULT_TIMEOUT,
    as_json: JsonOption = False,
) -> None:
    """Find the passages nearest to a question."""
    place, query = _place_and_query(values, knowledge, target)
    wanted = Wanted(query, k, parse_filters(filters), knowledge_version, search_kind, timeout)
    console.note(f"searching {place}{'' if place != demo_directory() / 'kb' else ', the embedded knowledge base'}")
    if isinstance(place, Path):
        rows, warnings = _search_files(wanted, place, model)
    else:
        rows, warnings = _search_running(place, wanted)
    if as_json:
        console.print_json({"query": query, "knowledge": str(place), "passages": rows, "warnings": list(warnings)})
        return
    table = Table("score", "prior", "id", "title", "text")
    cells = max(EXCERPT_CELLS, 2 * console.out.width)
    for row in rows:
        title, text = escape(row["title"]), escape(excerpt(row["text"], cells))
        table.add_row(f"{row['score']:.4f}", f"{row['prior']:.3f}", escape(row["id"]), title, text)
    console.out.print(table)
    for warning in warnings:
        console.warn(warning)


def _place_and_query(values: Sequence[str], knowledge: Path | None, target: str | None) -> tuple[Path | str, str]:
    """The knowledge base, or the address of the orchestrator that is asked, and the question.

    Raises:
        InvalidInputError: there are too many values, or two knowledge bases.
    """
    *before, query = values
    if not is_utf8(query):
        raise InvalidInputError("QUERY", "QUERY is not UTF-8 text")
    if len(before) > 1:
        raise InvalidInputError("QUERY", f"{values[2]!r} is one value too many: put QUERY in quotes")
    if before and target is not None:
        raise InvalidInputError("KB", "KB is read on this machine and --target asks a service: leave one out")
    if before and knowledge is not None:
        raise InvalidInputError("KB", "KB is given twice, also as --knowledge: leave one out")
    if before and not Path(before[0]).exists() and Path(query).is_dir():
        raise InvalidInputError("KB", f"KB stands before QUERY: ragserve kb search {query} {before[0]!r}")
    if target is not None:
        return target, query
    return (Path(before[0]) if before else knowledge or demo_directory() / "kb"), query


@dataclass(frozen=True)
class Wanted:
    """What is searched for."""

    query: str
    k: int | None
    filters: tuple[Condition, ...] | None
    knowledge_version: int | None
    search_kind: str | None
    timeout: float


def _search_files(wanted: Wanted, knowledge: Path, model: Path | None) -> tuple[list[dict[str, Any]], Sequence[str]]:
    from ragserve.responses import metadata  # noqa: PLC0415  (slow to import)
    from ragserve.results import Passage  # noqa: PLC0415
    from retriever_svc import filters  # noqa: PLC0415
    from retriever_svc.kinds import LookupOptions, SearchKind  # noqa: PLC0415
    from retriever_svc.loading import RetrievalOptions  # noqa: PLC0415
    from retriever_svc.search import search_offline  # noqa: PLC0415

    kind = SearchKind(wanted.search_kind or SearchKind.DENSE)
    conditions = tuple(filters.Condition(**vars(one)) for one in wanted.filters or ())
    hits, warnings = search_offline(
        model or demo_directory() / "model",
        knowledge,
        wanted.query,
        wanted.k,
        RetrievalOptions(knowledge_version=wanted.knowledge_version or 0, lexical=kind is not SearchKind.DENSE),
        LookupOptions(filters.Filter(conditions), kind=kind),
    )
    found = (
        Passage(
            *(hit.passage.id, hit.passage.title, hit.passage.text),
            score=hit.score,
            prior=math.exp(hit.log_prior),
            posterior=None,
            metadata=metadata(hit.passage.metadata_json),
        )
        for hit in hits
    )
    return [one.to_dict() for one in found], warnings


def _search_running(target: str, wanted: Wanted) -> tuple[list[dict[str, Any]], Sequence[str]]:
    from ragserve.client import Client  # noqa: PLC0415  (slow to import)

    with reached(target, timeout=wanted.timeout), Client(target, timeout_seconds=wanted.timeout) as client:
        found = client.retrieve(
            wanted.query,
            docs=wanted.k,
            filter=wanted.filters,
            knowledge_version=wanted.knowledge_version,
            search_kind=wanted.search_kind,
        )
    return [one.to_dict() for one in found.passages], found.warnings


def _listed(keys: Mapping[str, int], nested: Mapping[str, int]) -> str:
    """The most frequent keys with the number of passages that have them, and the keys of lists and objects."""
    listed = [f"{excerpt(key, KEY_CELLS)} ({count})" for key, count in keys.items()]
    listed += [
        f"{excerpt(key, KEY_CELLS)} ({count}, lists or objects: not filterable)" for key, count in nested.items()
    ]
    more = f" and {len(listed) - LISTED_KEYS} more" if len(listed) > LISTED_KEYS else ""
    return (", ".join(listed[:LISTED_KEYS]) or "none") + more


def _plain(value: Any) -> Any:
    """A value that JSON knows."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
