"""Reads the text of Markdown (CommonMark, with tables), and the title and metadata of its front matter."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ragserve.reasons import reason_of
from retriever_svc.build.formats.document import Document, document_package
from retriever_svc.build.formats.html import html_to_text
from retriever_svc.build.formats.values import plain

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

INVISIBLE = frozenset(("image", "front_matter", "html_inline"))
ENDS = {"paragraph_close": "\n\n", "heading_close": "\n\n", "tr_close": "\n", "table_close": "\n", "hr": "\n"}
LIST_ENDS = ("bullet_list_close", "ordered_list_close")
# The parser starts over at every bracket that opens, so that many of them in one line would take hours.
MOST_NESTED = 1_000_000  # no limit: the parser leaves out, without a word, what is nested more deeply
BREAK = re.compile(r"<br\b", re.IGNORECASE)
# What YAML says of values that mean something else to it, and what these begin with or hold.
QUOTED = (("mapping values", "with a colon"), ("alias", "that begins with *"), ("tag", "that begins with !"))
FENCE_LINES = 1  # before the first line of the front matter
BRACKETS, MOST_BRACKETS = re.compile(r"[\[\]]"), 20_000


def read_markdown(text: str) -> Document:
    """The title (that of the front matter, in any case of letters, else the first heading) and the text without markup.

    The other keys of the front matter are metadata. Front matter that is not a YAML object stays text; a note says why.

    Raises:
        FailedPreconditionError: a parser is not installed.
        ValueError: it cannot be parsed.
    """
    if any(len(BRACKETS.findall(paragraph)) > MOST_BRACKETS for paragraph in text.split("\n\n")):
        many = f"a paragraph has more than {MOST_BRACKETS} brackets, and the file is read as plain text"
        return Document("", text.strip(), note=many)
    try:
        tokens = _parser().parse(text)
    except RecursionError:
        return Document("", text.strip(), note="it is nested too deeply for Markdown and is read as plain text")
    except IndexError as error:
        raise ValueError(
            f"cannot be read as Markdown: {reason_of(error, 'the parser fails')}; save it as .txt"
        ) from error
    if not tokens or tokens[0].type != "front_matter":
        return Document(_title({}, tokens), _text(tokens))
    try:
        front = _front_matter(tokens[0].content)
    except ValueError as error:
        text = f"{tokens[0].content}\n\n{_text(tokens)}".strip()
        return Document(_title({}, tokens), text, note=f"the front matter is read as text: {error}")
    return Document(_title(front, tokens), _text(tokens), front)


@cache
def _parser() -> MarkdownIt:
    document_package("markdown_it")
    document_package("mdit_py_plugins")
    from markdown_it import MarkdownIt  # noqa: PLC0415  (optional)
    from mdit_py_plugins.front_matter import front_matter_plugin  # noqa: PLC0415

    return (
        MarkdownIt("commonmark", {"maxNesting": MOST_NESTED})
        .enable(["table", "strikethrough"])
        .use(front_matter_plugin)
    )


def _front_matter(text: str) -> dict[str, Any]:
    """The entries of a YAML object that have a value. Raises ValueError, with the line, for anything else."""
    yaml = document_package("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        def compose_node(self, parent: Any, index: Any) -> Any:
            """Refuses aliases, by which a short text stands for a huge value."""
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="it has an alias", problem_mark=self.peek_event().start_mark)
            return super().compose_node(parent, index)

    try:
        values = plain(yaml.load(text, Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1 + FENCE_LINES}: " if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be read"
        said = f"{getattr(error, 'context', '')} {reason}"
        advice = next((f". Put quotes around a value {what}" for part, what in QUOTED if part in said), "")
        raise ValueError(f"it is not YAML ({place}{reason}){advice}") from error
    except (ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError(f"it has a value that cannot be read ({reason_of(error, 'it has no known form')})") from error
    if values is None and text.strip() and not text.partition("\n")[0].strip():
        raise ValueError("a blank line follows its first line, and it has no entry")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError("it is not a YAML object. Write lines such as 'title: Canberra'")  # noqa: TRY004
    return {key: value for key, value in values.items() if value is not None}


def _title(front: dict[str, Any], tokens: list[Token]) -> str:
    for key, value in front.items():
        if key.casefold() == "title" and not isinstance(value, dict | list) and str(value).strip():
            return str(front.pop(key)).strip()
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and (heading := _inline(inline).strip()):
            return " ".join(heading.split())
    return ""


def _text(tokens: list[Token]) -> str:
    pieces: list[str] = []
    numbers: list[int | None] = []  # of the next items of the lists that are open; None: a list without numbers
    for token in tokens:
        kind = token.type
        if kind == "inline":
            pieces.append(_inline(token))
        elif kind in ("fence", "code_block"):
            pieces.append(token.content.rstrip("\n") + "\n\n")
        elif kind == "html_block":
            pieces.append(html_to_text(token.content) + "\n\n")
        elif kind == "bullet_list_open":
            numbers.append(None)
        elif kind == "ordered_list_open":
            numbers.append(int(token.attrs.get("start", 1)))
        elif kind in LIST_ENDS:
            numbers.pop()
            pieces.append("\n")
        elif kind == "list_item_open":
            number = numbers[-1]
            pieces.append("- " if number is None else f"{number}. ")
            numbers[-1] = None if number is None else number + 1
        elif kind in ("th_close", "td_close"):
            pieces.append("\t")
        elif token.hidden and kind == "paragraph_close":
            pieces.append("\n")
        else:
            pieces.append(ENDS.get(kind, ""))
    lines = "".join(pieces).replace("\t\n", "\n")
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n").rstrip()


def _inline(token: Token) -> str:
    """The text of a paragraph or heading, without images, link targets and HTML tags."""
    return "".join(
        "\n" if _is_break(child) else child.content
        for child in token.children or ()
        if child.type not in INVISIBLE or _is_break(child)
    )


def _is_break(token: Token) -> bool:
    """Whether a line ends here; `<br>` does that too."""
    return token.type in ("softbreak", "hardbreak") or (
        token.type == "html_inline" and bool(BREAK.match(token.content))
    )
