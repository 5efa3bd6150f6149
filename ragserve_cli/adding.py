"""Adds the passages of a source to a knowledge base, batch by batch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragserve.errors import InvalidInputError, RagserveError
from ragserve.passage_rules import DEFAULT_LIMITS, PassageLimits
from ragserve.printable import counted
from ragserve_cli import console, interrupts
from ragserve_cli.places import Place
from retriever_svc.build.lines import UnreadFileError, bad_row, skippable, skipped_note
from retriever_svc.build.reading import EMBEDDINGS, MadeId, Notify, ReadOptions
from retriever_svc.build.sources import SourcePassage, no_passages, read_rows, split_row
from retriever_svc.build.spool import Readable
from retriever_svc.splitting import Cut, SplitOptions, chunk_parent

NAMED = 5  # bad rows that are quoted
MOST_COMPARED = 100_000  # ids of one kind in the comparison of two versions, which a message holds
PASSAGE_FIELD = re.compile(r"passages\[(\d+)\]")
# A limit of the retriever, which is no flag of this command.
SETTING = re.compile(r"\((max_\w+)\)")
# What a retriever says of a passage, without the name of the field, which has no meaning in a file.
FIELD_NAME = re.compile(r"^passages\[\d+\](?:\.passage)?(?:\.([a-z]+)(?:_json)?)?")


@dataclass(frozen=True)
class Adding:
    """How a source is added.

    cut: splits the texts here; None: they stay whole, or the retriever splits them (split_later), which then checks
    their parts.
    """

    source_format: str | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    cut: Cut | None = None
    split_later: bool = False
    limits: PassageLimits = field(default_factory=PassageLimits)
    skip_bad_rows: bool = False

    @classmethod
    def of(
        cls,
        source_format: str | None,
        reading: ReadOptions,
        split: SplitOptions,
        encoder: Path | None,
        limits: PassageLimits = DEFAULT_LIMITS,
        *,
        skip_bad_rows: bool = False,
    ) -> Adding:
        """`encoder`: directory of the passage encoder; None: a retriever splits, embeds and stores."""
        split.check()
        reading.check()
        limits.check()
        cut = None if encoder is None else split.cut(encoder)
        later = encoder is None and not split.whole
        return cls(source_format, reading, split, cut, later, limits, skip_bad_rows)

    def passages(self, row: SourcePassage) -> list[SourcePassage]:
        """What a row becomes here. Raises InvalidInputError, with file and line, if some of it may not be stored."""
        return [row] if self.split_later else split_row(row, self.cut, self.limits)


@dataclass(frozen=True)
class Source:
    """A source that was read once: the number of its passages, as far as they are split here, and its bad rows."""

    found: Readable
    adding: Adding
    passages: int = 0
    bad_rows: tuple[InvalidInputError, ...] = ()
    refused: frozenset[str] = frozenset()  # ids ID#N beside a row ID: while texts are split, they name chunks of it
    made: frozenset[str] = frozenset()  # ids made of files' names

    def read(
        self,
        bad_rows: list[InvalidInputError] | None = None,
        ids: set[str] | None = None,
        notify: Notify = lambda _message: None,
    ) -> Iterator[list[SourcePassage]]:
        """The rows, in order, each as the passages that it becomes here.

        What is wrong with the rows that are skipped is added to `bad_rows`, and the ids of the others to `ids`.
        """
        places: dict[str, tuple[str, int]] = {}
        vectors_noted = False
        adding, found = self.adding, self.found
        rows = read_rows(found.path, adding.source_format, adding.limits, adding.reading, notify, found.pipe)
        for row in rows:
            if isinstance(row, InvalidInputError):
                self._skip(row, bad_rows)
                continue
            if row.vector is not None and not vectors_noted:
                vectors_noted = True
                notify(f"column '{EMBEDDINGS}' is left out: texts are embedded as they are added")
            try:
                passages = self._passages(row, places)
            except InvalidInputError as error:
                self._skip(error, bad_rows)
                continue
            if ids is not None:
                ids.add(row.id)
            yield passages

    def _passages(self, row: SourcePassage, places: dict[str, tuple[str, int]]) -> list[SourcePassage]:
        if row.id in self.refused:
            raise _bad(row, f"column 'id' is {row.id!r}, which names a part of {chunk_parent(row.id)!r}: rename one")
        passages = self.adding.passages(row)
        for name in dict.fromkeys([row.id, *(passage.id for passage in passages)]):
            file, line = places.setdefault(name, (row.file, row.line))
            if (file, line) != (row.file, row.line):
                where = f"line {line}" if file == row.file else f"{file}:{line}"
                raise _bad(row, f"column 'id' is {name!r}, as in {where}")
        return passages

    def _skip(self, error: InvalidInputError, bad_rows: list[InvalidInputError] | None) -> None:
        if not self.adding.skip_bad_rows:
            raise skippable(error)
        if bad_rows is not None:
            bad_rows.append(error)

    def skipped_note(self) -> str:
        """What was left out, and the first few reasons, a line each; empty for nothing."""
        if not self.bad_rows:
            return ""
        count, files = len(self.bad_rows), sum(isinstance(error, UnreadFileError) for error in self.bad_rows)
        rows = counted(count - files, "row") if count > files else ""
        return skipped_note(rows, files, count, [error.message for error in self.bad_rows[:NAMED]])


def _bad(row: SourcePassage, message: str) -> InvalidInputError:
    return bad_row(Path(row.file), row.line, message)


@dataclass
class Added:
    """What was committed, and which of it is longer than the passage encoder reads (the first few, by FILE:LINE).

    replaced_by_name: ids made of files' names whose earlier content is gone.
    """

    version_before: int = 0
    knowledge_version: int = 0
    inserted: int = 0
    updated: int = 0
    commits: int = 0
    removed_chunks: int = 0
    truncated_passages: int = 0
    truncated: list[str] = field(default_factory=list)
    replaced_by_name: list[str] = field(default_factory=list)


def read_source(found: Readable, adding: Adding, notify: Notify = lambda _message: None) -> Source:
    """Read all of a source, so that nothing is committed of one that is bad; bad rows may be left out.

    `notify` is told what is left out and what was taken for what.

    Raises:
        InvalidInputError: it is not there, a bad row, an id that comes twice or names a chunk of another row; no rows.
    """
    source, bad_rows, ids = Source(found, adding), list[InvalidInputError](), set[str]()
    passages = sum(len(row) for row in source.read(bad_rows, ids, notify))
    if not adding.split.whole:
        refused = frozenset(identifier for identifier in ids if chunk_parent(identifier) in ids)
        if refused:
            source, bad_rows = replace(source, refused=refused), []
            passages = sum(len(row) for row in source.read(bad_rows))
    if not passages:
        raise no_passages(found.shown, len(bad_rows), [error.message for error in bad_rows])
    made = frozenset(identifier for identifier in ids if isinstance(identifier, MadeId))
    return replace(source, passages=passages, bad_rows=tuple(bad_rows), made=made)


def add_passages(place: Place, source: Source, batch_passages: int, report: Callable[[int], None]) -> Added:
    """Commit the passages, `batch_passages` rows at a time; `report` is told how many are embedded or sent.

    After a failure, a note says which passages are committed.
    """
    rows, done, sent = source.read(), Added(), 0
    report(0)
    while batch := list(itertools.islice(rows, batch_passages)):
        in_doubt = _what_is_committed(done, sent, sum(map(len, batch)))
        try:
            with interrupts.saying(lambda text=in_doubt: f"stopped: {text}"):  # type: ignore[misc]
                sent += _add_batch(place, source, batch, done, lambda count, begun=sent: report(begun + count))  # type: ignore[misc]
        except RagserveError as error:
            if error.outcome_unknown:
                console.note(in_doubt)
            elif done.commits:
                console.note(_what_is_committed(done, sent, 0))
            raise
    done.replaced_by_name = _replaced_by_name(place, source, done)
    return done


def _add_batch(
    place: Place, source: Source, batch: Sequence[list[SourcePassage]], done: Added, report: Callable[[int], None]
) -> int:
    """Commit one batch and add what came of it to `done`; the number of its passages.

    A row that the retriever refuses is named, or left out where bad rows are.
    """
    rows = list(batch)
    while rows:
        try:
            found = place.upsert(rows, source.adding.split, report)
        except InvalidInputError as error:
            number = PASSAGE_FIELD.match(error.field)
            if number is None or int(number.group(1)) >= len(rows):
                raise
            refused = _in_the_file(error, rows.pop(int(number.group(1)))[0])
            if not source.adding.skip_bad_rows:
                raise skippable(refused) from error
            console.warn(f"skipped a row: {refused.message}")
            continue
        done.version_before = done.version_before or found.knowledge_version - 1
        done.knowledge_version = found.knowledge_version
        done.inserted += found.inserted
        done.updated += found.updated
        done.commits += 1
        done.removed_chunks += found.removed_chunks
        done.truncated_passages += found.truncated_passages
        done.truncated += _places(found.truncated_ids, rows)
        break
    return sum(len(row) for row in rows)


def _replaced_by_name(place: Place, source: Source, done: Added) -> list[str]:
    """The passages with ids made of files' names whose content this replaced: another file may have had the name."""
    if not source.made or not (done.updated or done.removed_chunks):
        return []
    try:
        found = place.diff(done.version_before, done.knowledge_version, MOST_COMPARED)
    except RagserveError as error:
        console.warn(f"cannot tell which passages with ids made of files' names were replaced: {error.message}")
        return []
    gone = (*found.changed_ids, *found.removed_ids)
    return sorted(name for name in gone if name in source.made or chunk_parent(name) in source.made)


def _in_the_file(error: InvalidInputError, row: SourcePassage) -> InvalidInputError:
    """What a retriever says of a passage, in the terms of the file."""
    named = FIELD_NAME.sub(lambda found: f"column '{found.group(1) or 'vector'}'", error.message)
    named = SETTING.sub(lambda found: f"('{found.group(1)}' of the retriever)", named)
    return _bad(row, named)


def _places(ids: Sequence[str], rows: Sequence[list[SourcePassage]]) -> list[str]:
    """Ids with file and line."""
    places = {one.id: f"{one.file}:{one.line}" for row in rows for one in row}
    found = (places.get(name) or places.get(chunk_parent(name) or "", "") for name in ids)
    return [f"{place} ({name!r})" for place, name in zip(found, ids, strict=True)]


def _what_is_committed(done: Added, committed: int, unknown: int) -> str:
    """Which passages are committed after a failure, and that nobody knows it of the `unknown` ones after them."""
    known = f"passages 1 to {committed} are committed (version {done.knowledge_version})" if done.commits else ""
    doubt = f"nobody knows whether passages {committed + 1} to {committed + unknown} are committed" if unknown else ""
    return f"{'; '.join(part for part in (known, doubt) if part)}. Adding all again is safe"
