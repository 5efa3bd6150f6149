"""The demo's passages: English Wikipedia lead summaries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Summary:
    """The lead of one Wikipedia article."""

    title: str
    text: str
    description: str
    topic: str


def load_summaries(path: Path) -> list[Summary]:
    """All summaries in the file's order, white space made single."""
    entries = json.loads(path.read_text(encoding="utf-8")).values()
    return [
        Summary(
            title=entry["title"],
            text=" ".join(entry["extract"].split()),
            description=entry.get("description") or "",
            topic=entry.get("topic") or "",
        )
        for entry in entries
    ]


def write_passages(summaries: list[Summary], path: Path) -> None:
    """The summaries as JSON lines that `ragserve kb build` reads; the title is the id."""
    with path.open("w", encoding="utf-8") as file:
        for summary in summaries:
            metadata = {"description": summary.description, "topic": summary.topic}
            row = {"id": summary.title, "title": summary.title, "text": summary.text, "metadata": metadata}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
