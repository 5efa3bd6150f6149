"""Shows versions of a knowledge base, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from ragserve.knowledge import KnowledgeVersion, VersionDiff
from ragserve_cli import console


def version_as_json(version: KnowledgeVersion) -> dict[str, Any]:
    """Plain types; `loaded` only where a retriever was asked."""
    return {key: value for key, value in asdict(version).items() if value is not None}


def versions_table(versions: Sequence[KnowledgeVersion]) -> Table:
    """One row for each version; a column for what is loaded where a retriever was asked."""
    asked = any(version.loaded is not None for version in versions)
    table = Table("version", "created", "passages", "operation", *(["loaded"] if asked else []))
    for version in versions:
        created = datetime.fromtimestamp(version.created_unix_seconds).astimezone().isoformat(" ", "seconds")
        row = [str(version.version), created, f"{version.passages:,}", version.operation]
        table.add_row(*row, *(["yes" if version.loaded else ""] if asked else []))
    return table


def show_diff(diff: VersionDiff) -> None:
    """Counts, then ids: + added, ~ changed, - removed."""
    kinds = (
        ("+", "green", "added", diff.added_ids, diff.added),
        ("~", "yellow", "changed", diff.changed_ids, diff.changed),
        ("-", "red", "removed", diff.removed_ids, diff.removed),
    )
    counts = ", ".join(f"[{style}]{sign}{count:,}[/] {name}" for sign, style, name, _, count in kinds)
    console.out.print(f"version {diff.from_version} to {diff.to_version}: {counts}", soft_wrap=True)
    for sign, style, name, ids, count in kinds:
        for identifier in ids:
            console.out.print(f"[{style}]{sign} {escape(identifier)}[/]", soft_wrap=True)
        if count > len(ids):
            console.out.print(f"[dim]{sign} … and {count - len(ids):,} more {name}[/]", soft_wrap=True)
