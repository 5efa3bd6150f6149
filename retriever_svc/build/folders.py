"""Finds the files of a folder that are read: rows and documents, by the endings of their names."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ragserve.printable import counted
from retriever_svc.build.lines import UTF16_MARKS, open_binary
from retriever_svc.knowledge import DATASET_NAME

ROW_ENDINGS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
DOCUMENT_ENDINGS: Mapping[str, str] = {
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
}
ENDINGS: Mapping[str, str] = {**ROW_ENDINGS, **DOCUMENT_ENDINGS}
GZIPPED = ("jsonl", "json", "tsv", "csv")
# What describes the files beside it: dataset cards and licenses.
ABOUT_THE_DATA = ("license", "licence", "changelog", "citation", "notice")
SAVED_STATE = "state.json"  # names the files of a data set that Hugging Face's save_to_disk wrote
NAMED = 5  # files in a note
BROKEN_LINK = "broken link"
OTHER_JSON = ".json that is not an array of objects"
ARRAY_OF_OBJECTS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
PEEKED_BYTES = 4096


def format_of(name: str) -> str | None:
    """The format that a file's name says; None: it is none that is read."""
    stem, ending = os.path.splitext(name.lower())
    if ending == ".gz":
        inner = ROW_ENDINGS.get(os.path.splitext(stem)[1])
        return inner if inner in GZIPPED else None
    return ENDINGS.get(ending)


@dataclass
class FoundFiles:
    """The files of a folder and its subfolders, in the order of their names, and what is left out."""

    files: list[Path] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)  # by ending
    closed: list[tuple[Path, OSError]] = field(default_factory=list)  # folders that cannot be read, and why

    def notes(self) -> Iterator[str]:
        """What is read and what is left out, a line each."""
        kinds = Counter(format_of(path.name) or "" for path in self.files)
        named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        if named:
            yield f"reading {counted(len(self.files), 'file')}: {named}"
        if self.about:
            more = f" and {len(self.about) - NAMED} more" if len(self.about) > NAMED else ""
            named = ", ".join(islice(self.about, NAMED))
            yield f"left out because they describe the data files beside them: {named}{more}"
        if line := self.unread_line():
            yield line

    def unread_line(self) -> str:
        """How many files of which endings are not read; empty for none."""
        most = sorted(self.unread.items(), key=lambda kind: (-kind[1], kind[0]))[:NAMED]
        kinds = ", ".join(
            counted(count, ending) if ending == BROKEN_LINK else f"{count} {ending or 'without ending'}"
            for ending, count in most
            if count
        )
        return f"not read: {counted(self.unread.total(), 'other file')} ({kinds})" if kinds else ""


def files_in(folder: Path) -> FoundFiles:
    """The files below a folder that are read.

    Hidden files and folders are not, nor files of rows below a name that begins with `_`, knowledge bases and Lance
    datasets; links to folders are not followed. In a folder that holds files of rows, itself or below it, a file such
    as README.md describes them and is left out.
    """
    found = FoundFiles()
    known: list[Path] = []
    left = [folder]
    while left:
        directory = left.pop()
        try:
            shown = [entry for entry in os.scandir(directory) if not entry.name.startswith(".")]
        except OSError as error:
            found.closed.append((directory, error))
            continue
        left.extend(
            Path(entry.path) for entry in shown if entry.is_dir(follow_symlinks=False) and not _is_dataset(entry)
        )
        known.extend(_known(found, folder, [Path(entry.path) for entry in shown if _is_file(entry, found)]))
    with_rows = {parent for path in known if _has_rows(path) for parent in path.parents}
    for path in sorted(known, key=lambda path: path.relative_to(folder).parts):
        if path.parent in with_rows and _is_about(path):
            found.about.append(path.relative_to(folder).as_posix())
        else:
            found.files.append(path)
    return found


def looked_for() -> str:
    """The endings of files that are read, in words."""
    return f"{', '.join(ENDINGS)} (and {', '.join(f'.{name}.gz' for name in GZIPPED)})"


def _is_file(entry: os.DirEntry[str], found: FoundFiles) -> bool:
    """Whether it is a file. A link that leads nowhere or in a circle is counted."""
    try:
        is_file = entry.is_file()
        broken = entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:
        is_file, broken = False, True
    found.unread[BROKEN_LINK] += broken
    return is_file


def _known(found: FoundFiles, folder: Path, paths: Iterable[Path]) -> list[Path]:
    """The files of one directory that may be read."""
    known: list[Path] = []
    for path in paths:
        parts = path.relative_to(folder).parts
        if format_of(path.name) is None:
            found.unread[path.suffix.lower()] += 1
        elif format_of(path.name) == "json" and not _holds_objects(path):
            found.unread[OTHER_JSON] += 1
        elif not _has_rows(path) or not any(part.startswith("_") for part in parts):
            known.append(path)
    saved = _saved_files(known[0].parent) if known else None
    return known if saved is None else [path for path in known if path.name in saved or not _has_rows(path)]


def _holds_objects(path: Path) -> bool:
    """Whether a JSON file begins as an array of objects. Its reader says why it cannot be read."""
    try:
        with open_binary(path) as file:
            start = file.read(PEEKED_BYTES)
            return start.startswith(UTF16_MARKS) or ARRAY_OF_OBJECTS.match(start) is not None
    except (OSError, EOFError, zlib.error):
        return True


def _has_rows(path: Path) -> bool:
    return format_of(path.name) in ROW_ENDINGS.values()


def _is_about(path: Path) -> bool:
    name = path.name.lower()
    return not _has_rows(path) and (name.startswith("readme") or name.partition(".")[0] in ABOUT_THE_DATA)


def _saved_files(directory: Path) -> set[str] | None:
    """The files that a saved data set consists of; its caches beside them do not count. None: there is none."""
    try:
        body = json.loads((directory / SAVED_STATE).read_text(encoding="utf-8"))
        return {str(entry["filename"]) for entry in body["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _is_dataset(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".lance") or os.path.isdir(os.path.join(entry.path, DATASET_NAME))
