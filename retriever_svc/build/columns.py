"""Finds id, title, text, metadata and vectors among the columns of a file, whatever they are called there."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ragserve.errors import InvalidInputError
from ragserve.passage_rules import IN_AN_ID, USUAL_NAMES
from retriever_svc.build.lines import NoColumnError, bad_row
from retriever_svc.build.reading import EMBEDDINGS, MadeId, Notify, ReadOptions, Row

RESERVED = (*USUAL_NAMES, "metadata")
PANDAS_INDEX = re.compile(r"__index_level_\d+__|")  # in Parquet; in CSV it has no name
VECTOR_VALUES = 32  # a list of at least as many floats is a vector, not metadata
KEPT_PLANS = 1000
FIRST_SURROGATE = 0xD800  # bytes of a file's name that are not UTF-8 become surrogates
NAMED = 20  # columns in an error


@dataclass(frozen=True)
class Plan:
    """Which columns of a file are what: the passage's columns by their own name, and the further ones."""

    columns: tuple[tuple[str, str], ...]  # (name of the passage's column, name in the file)
    further: tuple[str, ...]
    has_id: bool


@dataclass
class ColumnNames:
    """Gives the rows of a source the column names of a passage.

    A further column becomes an entry of the metadata under its name, where it has a value. Where a file has no ids,
    they are made of the file's name below `root` and the line. `is_pipe`: it is a copy of a pipe, named after a digest.
    """

    options: ReadOptions
    root: Path
    notify: Notify
    is_pipe: bool = False
    _plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)
    _noted: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _made_ids: bool = False
    _explained: set[Plan] = field(default_factory=set)  # without ids, and a note has said so
    _unexplained: tuple[Plan, Path] | None = None
    _file: tuple[Path | None, bool] = (None, True)  # the one being read, and whether its first row has an id

    def row(self, file: Path, line: int, values: Row) -> Row:
        """The values under the names of a passage's columns.

        Raises:
            InvalidInputError: the text's column is missing or several may be it, or a row has no id though others do.
        """
        plan = self.plan(file, line, tuple(values))
        found = {name: values[column] for name, column in plan.columns}
        if self._file[0] != file:
            self._file = (file, plan.has_id)
            self._unexplained = None if plan.has_id or plan in self._explained else (plan, file)
        if not plan.has_id:
            if self._file[1]:
                raise bad_row(file, line, "column 'id' is missing")
            found["id"] = self.made_id(file, line)
        for column in plan.further:
            value = values[column]
            if column == EMBEDDINGS and (vector := _as_vector(value)) is not None:
                found[column] = vector
            elif _is_vector(value):
                self._left_out(column)
            elif value is not None:
                found[column] = value
        return found

    def plan(self, file: Path, line: int, names: Sequence[str]) -> Plan:
        """Which columns are what. Raises as `row`."""
        key = tuple(names)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= KEPT_PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._make_plan(file, line, key)
            self._seen.update(names)
        return plan

    def made_id(self, file: Path, line: int | None = None) -> MadeId:
        """An id of the file's name below the source, and the line. Raises InvalidInputError where no id may be so."""
        name = self.name(file)
        if wrong := IN_AN_ID.search(name):
            code = ord(wrong[0])
            why = "is not UTF-8" if code >= FIRST_SURROGATE else f"holds the control character U+{code:04X}"
            raise bad_row(file, line or 1, f"the file's name {why}, and ids are made of it: rename the file")
        self._made_ids = True
        return MadeId(self.options.id_prefix + (name if line is None else f"{name}:{line}"))

    def accepted(self, identifier: str) -> None:
        """Note how ids are made, now that a row with such an id is good: before, an error may follow."""
        if self._unexplained is None:
            return
        plan, file = self._unexplained
        if not identifier.startswith(f"{self.options.id_prefix}{self.name(file)}:"):
            return
        self._unexplained = None
        self._explained.add(plan)
        what = "a digest of its content and the line" if self.is_pipe else "file and line"
        self.note(f"{file} has no column 'id': ids are made of {what}, as in {identifier}")

    def name(self, file: Path) -> str:
        """A file's name below the source."""
        inside = file != self.root and file.is_relative_to(self.root)
        return file.relative_to(self.root).as_posix() if inside else file.name

    def title(self, file: Path) -> str:
        """The title of a document that names none."""
        return "" if self.is_pipe else file.stem

    def report_unknown(self) -> None:
        """Note what the options say that had no effect: columns that no row had, a prefix of ids that none needed."""
        for flag, names in (
            ("--without-column", self.options.without_columns),
            ("--title-column", (self.options.title_column,)),
        ):
            for name in names:
                if name is not None and self._seen and name not in self._seen:
                    self.notify(f"no column is named {name!r} ({flag})")
        if self.options.id_prefix and self._seen and not self._made_ids:
            self.notify(f"no id begins with {self.options.id_prefix!r} (--id-prefix): all rows have ids of their own")

    def wanted(self, values: Row) -> Row:
        """The values of a document that are not left out by an option."""
        self._seen.update(values)
        return {name: value for name, value in values.items() if self.is_wanted(name)}

    def is_wanted(self, name: str) -> bool:
        """Whether a column is read at all."""
        return name not in self.options.without_columns and not PANDAS_INDEX.fullmatch(name)

    def _make_plan(self, file: Path, line: int, names: tuple[str, ...]) -> Plan:
        for name in names:
            if names.count(name) > 1:
                raise bad_row(file, line, f"column {name!r} is there twice")
        wanted = [name for name in names if self.is_wanted(name)]
        columns = {
            name: found
            for name in USUAL_NAMES
            if (found := self._find(file, line, name, wanted, getattr(self.options, f"{name}_column"))) is not None
        }
        if "text" not in columns:
            hint = f"the columns are {_listed(wanted)}; name the one that holds the text (--text-column)"
            raise bad_row(file, line, f"column {self.options.text_column or 'text'!r} is missing: {hint}")
        if "metadata" in wanted:
            columns["metadata"] = "metadata"
        further = tuple(name for name in wanted if name not in columns.values())
        for name in further:
            if name in RESERVED:
                hint = f"leave it out (--without-column {name})"
                raise bad_row(
                    file, line, f"column {name!r} cannot be metadata, because {columns[name]!r} is it: {hint}"
                )
        return Plan(tuple(columns.items()), further, "id" in columns)

    def _find(self, file: Path, line: int, name: str, wanted: list[str], said: str | None) -> str | None:
        if said is not None:
            if said not in wanted and name != "title":
                problem = f"column {said!r} (--{name}-column) is missing; the columns are {_listed(wanted)}"
                raise bad_row(file, line, problem, InvalidInputError if said in self._seen else NoColumnError)
            return said if said in wanted else None
        if name in wanted:
            return name
        taken = (self.options.id_column, self.options.title_column, self.options.text_column)
        found = [column for column in wanted if column.casefold() in USUAL_NAMES[name] and column not in taken]
        if len(found) > 1:
            raise bad_row(
                file, line, f"{' and '.join(map(repr, found))} may both be the {name}: say which (--{name}-column)"
            )
        if found:
            self.note(f"reading the column {found[0]!r} as the {name}")
        return found[0] if found else None

    def _left_out(self, column: str) -> None:
        self.note(f"column {column!r} holds vectors and is left out; name it {EMBEDDINGS!r} to use them")

    def note(self, message: str) -> None:
        """Tell a person, once."""
        if message not in self._noted and len(self._noted) < KEPT_PLANS:
            self._noted.add(message)
            self.notify(message)


def _listed(names: Sequence[str]) -> str:
    """The first names, shortened."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(map(reprlib.repr, names[:NAMED])) or "none") + more


def _is_vector(value: Any) -> bool:
    """Whether the value is that of a further column of vectors."""
    return isinstance(value, list) and len(value) >= VECTOR_VALUES and all(type(one) is float for one in value)


def _as_vector(value: Any) -> np.ndarray | None:
    """The vector in a column of that name: a list of numbers, or the JSON of one; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not all(type(one) in (float, int) for one in value):
        return None
    try:
        return np.array(value, dtype=np.float64)
    except (OverflowError, ValueError):
        return None
