"""The corpus of the hot-swap experiment, made from the Factbook: `python -m bench.hot_swap.corpus`.

Writes the passages on every office whose holder changed between the two editions, once with the old holders and once
with the new ones under the same ids, and a question on each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.hot_swap.factbook import Holder, Office, read_edition
from bench.hot_swap.packages import fetch_editions
from bench.processes import ROOT

DIRECTORY = ROOT / "demo/hot_swap"
VERSIONS = ("2015", "2026")  # of the world
OLD_EDITION_YEAR = 2015  # November
QUESTIONS = "questions.jsonl"


@dataclass(frozen=True)
class Change:
    """An office that someone else holds in the new edition; `office` is as the old one has it."""

    office: Office
    new: Holder


@dataclass(frozen=True)
class Question:
    """A question with its right answer in each version of the world; `id` is that of the passage that has it."""

    id: str
    text: str
    answers: Mapping[str, str]


def changes(old: Mapping[str, Office], new: Mapping[str, Office]) -> list[Change]:
    """The offices of both editions, by the same title, whose holder took it over after the old edition.

    Left out are those where both holders share a surname: the same person is back, or spelt otherwise, or a namesake.
    """
    pairs = ((old[key], new[key]) for key in old if key in new and old[key].title == new[key].title)
    return [
        Change(before, after.holder)
        for before, after in pairs
        if after.holder.since_year > OLD_EDITION_YEAR and not before.holder.surnames & after.holder.surnames
    ]


def passage(office: Office, holder: Holder) -> dict[str, str]:
    """The passage on an office, worded as the lead of an encyclopedia's article on it."""
    roles = " and ".join(office.roles)
    text = (
        f"The {office.title} of {office.country} is its {roles}. "
        f"The current {office.title} is {holder.name}, in office since {holder.since}."
    )
    return {"id": f"office:{office.key}", "title": f"{office.title.capitalize()} of {office.country}", "text": text}


def question(change: Change) -> dict[str, object]:
    """Asks who holds an office, as in section 4.5 of the paper (arXiv 2005.11401)."""
    office = change.office
    names = dict(zip(VERSIONS, (office.holder.name, change.new.name), strict=True))
    return {
        "id": f"office:{office.key}",
        "question": f"Who is the {office.title} of {office.country}?",
        "answers": names,
    }


def passages_file(version: str, directory: Path = DIRECTORY) -> Path:
    """JSON lines with the passages of a version, as `ragserve kb build` reads them."""
    return directory / f"offices-{version}.jsonl"


def load_questions(directory: Path = DIRECTORY) -> list[Question]:
    """The questions, in the order of their ids."""
    rows = map(json.loads, (directory / QUESTIONS).read_text(encoding="utf-8").splitlines())
    return [Question(row["id"], row["question"], row["answers"]) for row in rows]


def write(found: Iterable[Change], directory: Path) -> None:
    """The two files of passages and the questions."""
    directory.mkdir(parents=True, exist_ok=True)
    changed = list(found)
    _write(passages_file(VERSIONS[0], directory), (passage(change.office, change.office.holder) for change in changed))
    _write(passages_file(VERSIONS[1], directory), (passage(change.office, change.new) for change in changed))
    _write(directory / QUESTIONS, (question(change) for change in changed))


def main() -> None:
    """Make the files anew; they come out the same."""
    old, new = (read_edition(directory) for directory in fetch_editions())
    found = changes(old, new)
    write(found, DIRECTORY)
    print(f"{DIRECTORY}: {len(found)} offices that changed hands, of {len(old)} and {len(new)}")


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
