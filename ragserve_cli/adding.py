"""Adds the passages of a file to a knowledge base, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragserve.errors import InvalidInputError, RagserveError
from ragserve_cli import console
from ragserve_cli.places import Place
from retriever_svc.build.lines import bad_row
from retriever_svc.build.reading import EMBEDDINGS, Notify, ReadOptions
from retriever_svc.build.sources import SourcePassage, no_passages, read_rows
from retriever_svc.splitting import by_words, split_passage


@dataclass(frozen=True)
class Source:
    """A file that was read through once: it holds so many passages, with different ids, and so many bad rows."""

    path: Path
    source_format: str | None
    split_words: int | None
    skip_bad_rows: bool
    reading: ReadOptions = field(default_factory=ReadOptions)
    passages: int = 0
    bad_rows: tuple[str, ...] = ()

    def read(
        self, bad_rows: list[str] | None = None, notify: Notify = lambda _message: None
    ) -> Iterator[SourcePassage]:
        """The passages, in order. What is wrong with the rows that are skipped is added to `bad_rows`."""
        cut = None if self.split_words is None else by_words(self.split_words)
        lines: dict[str, tuple[str, int]] = {}
        vectors_noted = False
        for row in read_rows(self.path, self.source_format, options=self.reading, notify=notify):
            if isinstance(row, InvalidInputError):
                self._skip(row, bad_rows)
                continue
            if row.vector is not None and not vectors_noted:
                vectors_noted = True
                notify(f"column '{EMBEDDINGS}' is left out: texts are embedded as they are added")
            for passage in split_passage(row, cut):
                file, line = lines.setdefault(passage.id, (passage.file, passage.line))
                if (file, line) != (passage.file, passage.line):
                    where = f"line {line}" if file == passage.file else f"{file}:{line}"
                    what = f"column 'id' is {passage.id!r}, as in {where}"
                    self._skip(bad_row(Path(passage.file), passage.line, what), bad_rows)
                    break
                yield passage

    def _skip(self, error: InvalidInputError, bad_rows: list[str] | None) -> None:
        if not self.skip_bad_rows:
            raise error
        if bad_rows is not None:
            bad_rows.append(error.message)


@dataclass(frozen=True)
class Added:
    """What was committed."""

    knowledge_version: int = 0
    inserted: int = 0
    updated: int = 0
    commits: int = 0


def read_source(
    path: Path,
    source_format: str | None,
    split_words: int | None,
    *,
    reading: ReadOptions | None = None,
    skip_bad_rows: bool = False,
) -> Source:
    """Read all of a file, so that nothing is committed of one that is bad; with `skip_bad_rows`, those are left out.

    Raises:
        NotFoundError: it is not there.
        InvalidInputError: a bad row, an id that comes twice, no rows, or `split_words` below 1.
    """
    if split_words is not None and split_words < 1:
        raise InvalidInputError("split_words", f"split_words is {split_words}; it must be at least 1")
    bad_rows: list[str] = []
    reading = reading or ReadOptions()
    reading.check()
    source = Source(path, source_format, split_words, skip_bad_rows, reading)
    passages = sum(1 for _ in source.read(bad_rows, console.note))
    if not passages:
        raise no_passages(path, len(bad_rows), bad_rows)
    return replace(source, passages=passages, bad_rows=tuple(bad_rows))


def add_passages(place: Place, source: Source, batch_passages: int, report: Callable[[int], None]) -> Added:
    """Commit the passages, so many at a time; `report` is told how many are embedded or sent.

    What a failure leaves is said: the batches before it are committed.
    """
    passages, done = source.read(), Added()
    sent = 0
    report(0)
    while batch := list(itertools.islice(passages, batch_passages)):
        begun = sent
        try:
            found = place.upsert(batch, lambda count, begun=begun: report(begun + count))  # type: ignore[misc]
        except RagserveError:
            if done.commits:
                console.note(f"the first {begun} passages are in version {done.knowledge_version}; adding all is safe")
            raise
        sent += len(batch)
        done = Added(
            found.knowledge_version,
            done.inserted + found.inserted,
            done.updated + found.updated,
            done.commits + 1,
        )
    return done
