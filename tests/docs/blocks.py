"""The fenced blocks of a Markdown page, and what is to be done with each.

- `console`: lines that begin with `$ ` are commands, the lines below each are its output.
- `python`: a script. `text` directly after it: what the script prints.
- `json`, `jsonl`, `toml`, `yaml`: data that must parse.
- no language: a drawing.

An HTML comment before a block says what its reader need not see:

- `<!-- not run: REASON -->`: the block is only read.
- `<!-- keep running -->`: the last command goes on, with the rest of the page beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

LANGUAGES = ("", "console", "python", "text", "json", "jsonl", "toml", "yaml")
COMMAND = re.compile(
    r"^\s*(\$ |ragserve |make |python3? |pip3? |kubectl |docker |git |grpcurl |curl |cp )", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` counts from 1; `expected` is the output of a script, None where none is shown."""

    language: str
    text: str
    line: int
    not_run: str = ""
    keep_running: bool = False
    expected: str | None = None


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order. Raises ValueError for one that hides a command from the tests."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    blocks: list[Block] = []
    for before, token in pairwise([None, *tokens]):
        if token is None or token.type not in ("fence", "code_block"):
            continue
        comment = before.content.strip() if before is not None and before.type == "html_block" else ""
        reason = re.fullmatch(r"<!-- not run: (\S.*?) -->", comment)
        block = Block(
            language=token.info.strip(),
            text=token.content,
            line=(token.map or [0])[0] + 1,
            not_run=reason.group(1) if reason else "",
            keep_running=comment == "<!-- keep running -->",
        )
        _check(page, block)
        if block.language == "text":
            if not blocks or blocks[-1].language != "python" or blocks[-1].expected is not None:
                raise ValueError(f"{page.name}:{block.line}: a text block shows what the python block before it prints")
            blocks[-1] = replace(blocks[-1], expected=block.text)
        else:
            blocks.append(block)
    return blocks


@dataclass(frozen=True)
class Command:
    """A command and the output that the page shows; `inputs` are what is typed at the prompt of ragserve."""

    line: str
    expected: str
    inputs: tuple[str, ...]


def commands(block: Block) -> list[Command]:
    """The commands of a console block. A `\\` at the end of a line goes on in the next one."""
    found: list[Command] = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, output = part.replace("\\\n", "").partition("\n")
        inputs = tuple(re.findall(r"^question> (.+)$", output, re.MULTILINE))
        found.append(Command(line.partition("  #")[0].strip(), output, inputs))
    return found


def _check(page: Path, block: Block) -> None:
    place = f"{page.name}:{block.line}"
    if block.language not in LANGUAGES:
        raise ValueError(f"{place}: the language {block.language!r} is not one of {', '.join(LANGUAGES)}")
    if block.language in ("", "text") and COMMAND.search(block.text):
        raise ValueError(f"{place}: commands belong in a console block, with '$ ' before each")
    if block.language == "console" and not block.text.startswith("$ "):
        raise ValueError(f"{place}: a console block begins with '$ '")
