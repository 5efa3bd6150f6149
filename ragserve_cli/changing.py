"""`ragserve kb add`, `delete`, `versions`, `rollback`, `diff`, `compact`: on files, or through a running retriever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragserve.checkpoint import load_manifest
from ragserve.errors import InvalidInputError
from ragserve.passage_rules import MAX_PASSAGE_BYTES, MAX_TEXT_BYTES, PassageLimits
from ragserve.printable import counted
from ragserve_cli import choices, console
from ragserve_cli.building import (
    FormatOption,
    IdColumnOption,
    IdPrefixOption,
    MaxPassageOption,
    MaxTextOption,
    OverlapOption,
    QuotesOption,
    SkipOption,
    SplitOption,
    TextColumnOption,
    TitleColumnOption,
    TokensOption,
    WithoutColumnOption,
    WordsOption,
    notes_of,
    read_options,
    words_of,
)
from ragserve_cli.knowledge import JsonOption
from ragserve_cli.plan import demo_directory
from ragserve_cli.text import is_utf8

if TYPE_CHECKING:
    from ragserve_cli.adding import Added

DEFAULT_BATCH = 10_000
ID_LIMIT = 1_000
USAGE = {"SOURCE": "add SOURCE", "ID": "delete ID...", "VERSION": "rollback VERSION", "A": "diff A [B]"}

RetrieverOption = Annotated[
    str | None,
    typer.Option("--retriever", metavar="HOST:PORT", help="Through the retriever there, instead of the files of KB."),
]
PLACE = "KB: directory of the knowledge base; left out with --retriever."


def _values(metavar: str, help_text: str) -> Any:
    return typer.Argument(metavar=metavar, help=f"{PLACE} {help_text}", show_default=False)


def add(  # noqa: PLR0913
    context: typer.Context,
    values: Annotated[list[str], _values("[KB] SOURCE", "SOURCE: passages, as for kb build.")],
    *,
    retriever: RetrieverOption = None,
    model: choices.ModelOption = None,
    split: SplitOption = None,
    split_words: WordsOption = None,
    split_tokens: TokensOption = None,
    overlap: OverlapOption = 0,
    max_text_bytes: MaxTextOption = MAX_TEXT_BYTES,
    max_passage_bytes: MaxPassageOption = MAX_PASSAGE_BYTES,
    source_format: FormatOption = None,
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    text_column: TextColumnOption = None,
    without_column: WithoutColumnOption = None,
    quotes: QuotesOption = "auto",
    id_prefix: IdPrefixOption = "",
    skip_bad_rows: SkipOption = False,
    batch_passages: Annotated[
        int, typer.Option("--batch-passages", metavar="N", min=1, help="Passages in one commit.")
    ] = DEFAULT_BATCH,
    as_json: JsonOption = False,
) -> None:
    """Add passages, and replace those whose ids are there, in commits of 10,000 rows (--batch-passages).

    Long texts are split as by kb build, and what an earlier text was split into is removed.
    """
    knowledge, (path,) = split_values(values, retriever, "SOURCE")
    from ragserve_cli.adding import Adding, add_passages, read_source  # noqa: PLC0415  (slow to import)
    from ragserve_cli.places import opened  # noqa: PLC0415
    from retriever_svc.build.spool import readable  # noqa: PLC0415
    from retriever_svc.knowledge import passage_encoder_directory  # noqa: PLC0415
    from retriever_svc.splitting import SplitOptions  # noqa: PLC0415

    own_model = _own_model(retriever, model)
    encoder = own_model and passage_encoder_directory(own_model)
    splitting = SplitOptions(split, split_words, split_tokens, overlap)
    reading = read_options(id_column, title_column, text_column, without_column, quotes, id_prefix)
    limits = PassageLimits(max_passage_bytes, max_text_bytes)
    adding = Adding.of(source_format, reading, splitting, encoder, limits, skip_bad_rows=skip_bad_rows)
    with readable(Path(path), source_format, console.note) as found:
        source = read_source(found, adding, notes_of(context))
        if skipped := source.skipped_note():
            console.warn(words_of(context)(skipped))
        with opened(knowledge, retriever, own_model) as place, console.progress_bar("adding", unit="passages") as bar:
            done = add_passages(place, source, batch_passages, _shown_by(bar, source.passages, batch_passages))
    _show_added(done, knowledge, retriever, as_json)


def _own_model(retriever: str | None, model: Path | None) -> Path | None:
    """The model that embeds what is added; None where a retriever does that."""
    if retriever:
        if model:
            raise InvalidInputError("--model", f"--model is {model}, and a retriever has its own model: leave it out")
        return None
    found = model or demo_directory() / "model"
    load_manifest(found)  # names the model directory where it is none
    return found


def _replaced_words(done: Added, where: str) -> str:
    """What was replaced because files have the same name, and how to get it back."""
    ids = done.replaced_by_name
    one = len(ids) == 1
    what = f"{counted(len(ids), 'passage')} with {'an id' if one else 'ids'} made of the file's name"
    begin = f"{'was' if one else 'were'} replaced{':' if one else ', beginning with'} {ids[0]}"
    back = f"'ragserve kb rollback {where} {done.version_before}'"
    return f"{what} {begin}. If this is another file, roll back with {back} and add the file with --id-prefix"


def _show_added(done: Added, knowledge: Path | None, retriever: str | None, as_json: bool) -> None:
    from retriever_svc.types import truncated_passages  # noqa: PLC0415  (slow to import)

    if done.replaced_by_name:
        console.warn(_replaced_words(done, f"--retriever {retriever}" if retriever else str(knowledge)))
    if done.truncated_passages:
        console.warn(truncated_passages(done.truncated_passages, done.truncated))
    if as_json:
        console.print_json(asdict(done))
        return
    what = f"{counted(done.inserted, 'passage')} added, {done.updated} replaced, in {counted(done.commits, 'commit')}"
    if done.removed_chunks:
        what += f"; {counted(done.removed_chunks, 'part')} of earlier texts removed"
    console.note(f"{retriever or knowledge}: version {done.knowledge_version}, {what}")


def _shown_by(bar: console.ProgressBar, passages: int, batch_passages: int) -> Callable[[int], None]:
    """Shows how many passages are embedded or sent, and that a batch of them is then committed."""

    def show(count: int) -> None:
        whole = count == passages or (count > 0 and count % batch_passages == 0)
        bar.update(count, passages, "committing" if whole else "adding")

    return show


def delete(
    values: Annotated[list[str], _values("[KB] ID...", "ID: of a passage.")],
    retriever: RetrieverOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete passages by id, in one commit. The id of a text that was split stands for all of its parts."""
    knowledge, ids = split_values(values, retriever, "ID", at_most=None)
    for identifier in ids:
        if not is_utf8(identifier):
            raise InvalidInputError("ID", f"{identifier!r} is not UTF-8 text")
    from ragserve_cli.places import opened  # noqa: PLC0415  (slow to import)

    with opened(knowledge, retriever) as place, console.progress_bar("deleting"):
        done = place.delete(ids)
    if as_json:
        console.print_json(asdict(done))
        return
    console.note(
        f"{retriever or knowledge}: version {done.knowledge_version}, {counted(done.deleted, 'passage')} deleted"
    )
    if done.missing_ids:
        console.warn(f"not there: {', '.join(done.missing_ids)}")


def versions(
    values: Annotated[list[str] | None, _values("[KB]", "")] = None,
    retriever: RetrieverOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the versions that can still be read, oldest first."""
    knowledge, _ = split_values(values, retriever, "", at_most=0)
    from ragserve_cli import changes  # noqa: PLC0415  (slow to import)
    from ragserve_cli.places import opened  # noqa: PLC0415

    with opened(knowledge, retriever) as place:
        found = place.versions()
    if as_json:
        console.print_json({"versions": [changes.version_as_json(version) for version in found]})
    else:
        console.out.print(changes.versions_table(found))


def rollback(
    values: Annotated[list[str], _values("[KB] VERSION", "VERSION: whose content is wanted.")],
    retriever: RetrieverOption = None,
    as_json: JsonOption = False,
) -> None:
    """Commit a new version with the content of an older one."""
    knowledge, (wanted,) = split_values(values, retriever, "VERSION")
    version = version_of(wanted)
    from ragserve_cli.places import opened  # noqa: PLC0415  (slow to import)

    with opened(knowledge, retriever) as place, console.progress_bar("rolling back"):
        made = place.rollback(version)
    if as_json:
        console.print_json({"knowledge_version": made})
    else:
        console.note(f"{retriever or knowledge}: version {made} has the content of version {version}")


def diff(
    values: Annotated[list[str], _values("[KB] A [B]", "A, B: versions; B left out: the newest.")],
    retriever: RetrieverOption = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Most ids of each kind.")] = ID_LIMIT,
    as_json: JsonOption = False,
) -> None:
    """Say which passages differ between two versions: + added, ~ changed, - removed."""
    knowledge, wanted = split_values(values, retriever, "A", at_most=2)
    old, new = version_of(wanted[0]), version_of(wanted[1]) if len(wanted) == 2 else 0
    from ragserve_cli import changes  # noqa: PLC0415  (slow to import)
    from ragserve_cli.places import opened  # noqa: PLC0415

    with opened(knowledge, retriever) as place, console.progress_bar("comparing"):
        found = place.diff(old, new, limit)
    if as_json:
        console.print_json(asdict(found))
    else:
        changes.show_diff(found)


def compact(
    values: Annotated[list[str] | None, _values("[KB]", "")] = None,
    retriever: RetrieverOption = None,
    keep_versions: Annotated[
        int | None, typer.Option(metavar="N", help="Newest versions that stay readable; unset: 10.")
    ] = None,
    keep_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Younger versions stay readable too; unset: 3,600.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rewrite small files and deleted rows, and remove versions that are neither among the newest nor young."""
    knowledge, _ = split_values(values, retriever, "", at_most=0)
    from ragserve_cli.places import opened  # noqa: PLC0415  (slow to import)

    with opened(knowledge, retriever) as place, console.progress_bar("compacting"):
        done = place.compact(keep_versions, keep_seconds)
    if as_json:
        console.print_json(asdict(done))
        return
    removed = f"{counted(done.versions_removed, 'old version')} removed, {counted(done.bytes_removed, 'byte')} freed"
    console.note(f"{retriever or knowledge}: version {done.knowledge_version}, {removed}")


def split_values(
    values: Sequence[str] | None, retriever: str | None, name: str, at_most: int | None = 1
) -> tuple[Path | None, list[str]]:
    """The knowledge base, which stands first unless a retriever is named, and the other values, called `name`.

    Raises:
        InvalidInputError: there are too few or too many.
    """
    given = list(values or ())
    knowledge = None
    if retriever is None:
        if not given:
            raise InvalidInputError("KB", "name the knowledge base, or a running retriever with --retriever HOST:PORT")
        knowledge = Path(given.pop(0))
    if at_most != 0 and not given:
        command, _, rest = USAGE[name].partition(" ")
        raise InvalidInputError(
            name,
            f"{name} is missing. Usage: 'ragserve kb {command} KB {rest}', or through a running retriever "
            f"'ragserve kb {command} --retriever HOST:PORT {rest}'",
        )
    if at_most is not None and len(given) > at_most:
        if retriever is None:
            raise InvalidInputError("KB", f"{given[at_most]!r} is one value too many after KB")
        command = f". Write: ragserve kb {USAGE[name].partition(' ')[0]} --retriever {retriever} " if name else ""
        rest = " ".join(given[-at_most:]) if name else ""
        raise InvalidInputError("KB", f"leave out KB ({given[0]!r}), as --retriever says where it is{command}{rest}")
    return knowledge, given


def version_of(text: str) -> int:
    """The number of a version. Raises InvalidInputError for what is none."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InvalidInputError("VERSION", f"{text!r} is not a version, a whole number from 1 on")
    return int(text)
