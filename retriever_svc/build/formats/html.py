"""Reads the text of HTML: what a reader of the page sees, without navigation, scripts and styles."""

from __future__ import annotations

import codecs
import re
import warnings
from typing import TYPE_CHECKING

from ragserve.reasons import reason_of
from retriever_svc.build.formats.document import Document, decode, document_package

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from bs4.element import PageElement

# fmt: off
UNSEEN = frozenset((
    "script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "audio", "video", "map"
))
AROUND = frozenset(("title", "nav", "footer", "button", "select", "dialog"))  # in a page
PARAGRAPHS = frozenset((
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote", "section", "article"
))
BLOCKS = PARAGRAPHS | frozenset((
    "address", "body", "caption", "center", "dd", "details", "div", "dt", "fieldset", "figcaption", "figure",
    "header", "hr", "html", "li", "main", "summary", "tbody", "tfoot", "thead", "tr"
))
# fmt: on
# What comes before the ends of these decides how long html.parser takes: without them it starts over at every one.
OPENINGS = ((">", "<"), ("-->", "<!--"), ("]]>", "<!["))
CHARSETS = ("utf", "iso", "cp", "windows", "koi8", "gb", "big5", "euc", "shift", "mac", "ascii", "hz", "tis", "johab")
SPACES = re.compile(r"[\s\x00]+")
# Surrogates, which no text holds, so that no text is taken for them.
LINE_BREAK, PARAGRAPH_BREAK, KEPT_SPACE = "\ud800", "\ud801", "\ud802"
BREAKS = re.compile(f" *[{LINE_BREAK}{PARAGRAPH_BREAK}][{LINE_BREAK}{PARAGRAPH_BREAK} \t]*")


def read_html(raw: bytes) -> Document:
    """The title (`<title>`, else the first `<h1>`) and the text of a page.

    Raises:
        FailedPreconditionError: Beautiful Soup is not installed.
        ValueError: it cannot be parsed.
    """
    soup = _parse(_decode(raw))
    title = next((text for tag in (soup.title, soup.h1) if tag and (text := " ".join(tag.get_text().split()))), "")
    return Document(title, _content(soup))


def html_to_text(fragment: str) -> str:
    """The text of a piece of HTML in Markdown, where `<footer>` is text as well. Raises as `read_html`."""
    return text_of(_parse(fragment), UNSEEN)


def _parse(text: str) -> BeautifulSoup:
    bs4 = document_package("bs4")
    for end, opening in OPENINGS:
        closed = text.rfind(end) + len(end) if end in text else 0
        text = text[:closed] + text[closed:].replace(opening, "&lt;" + opening[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it looks like a file name, or like XML
        try:
            soup: BeautifulSoup = bs4.BeautifulSoup(text, "html.parser")
        except (bs4.ParserRejectedMarkup, RecursionError) as error:
            raise ValueError(f"cannot be read as HTML: {reason_of(error)}") from error
    return soup


def _decode(raw: bytes) -> str:
    """The text by its byte-order mark, the charset that the page names, or as UTF-8; else as browsers do."""
    dammit = document_package("bs4.dammit")
    try:
        return decode(raw)
    except UnicodeDecodeError:
        named = dammit.EncodingDetector.find_declared_encoding(raw, is_html=True, search_entire_document=False) or ""
    try:
        charset = codecs.lookup(named).name
        if charset.startswith(CHARSETS) and charset not in ("utf-8", "iso8859-1", "ascii"):
            return raw.decode(charset, "replace")
    except (LookupError, ValueError):
        pass
    return raw.decode("utf-8" if named == "utf-8" else "cp1252", "replace")


def _content(soup: BeautifulSoup) -> str:
    """The text of a page, or of the only part of it that is marked as the main one, where that has most of the text."""
    marked = (soup.find_all("main"), soup.find_all(role="main"), soup.find_all("article"))
    parts = [text_of(found[0]) for found in marked if len(found) == 1]
    for header in soup.find_all("header"):
        if not header.find_parent(("main", "article", "section")) and not header.find_parent(role="main"):
            header.name = "nav"
    page = text_of(soup)
    return next((part for part in parts if 2 * len(part) > len(page)), page)


def text_of(root: Tag, dropped: frozenset[str] = UNSEEN | AROUND) -> str:
    """The text below a tag: a line for each block, an empty line between paragraphs, `<pre>` as it is."""
    bs4 = document_package("bs4")
    pieces: list[str] = []
    preformatted = 0
    left: list[PageElement | str] = [root]
    while left:
        node = left.pop()
        if isinstance(node, bs4.Tag):
            name = node.name
            if (name in dropped or node.has_attr("hidden")) and node is not root:
                continue
            preformatted += name == "pre"
            left.append("/" + name)
            left.extend(reversed(node.contents))
            pieces.append(_before(name))
        elif not isinstance(node, bs4.NavigableString):  # the end of a tag
            preformatted -= node == "/pre"
            pieces.append(_break(str(node)[1:]))
        elif not isinstance(node, bs4.element.PreformattedString) or isinstance(node, bs4.CData):
            pieces.append(str(node).replace(" ", KEPT_SPACE) if preformatted else SPACES.sub(" ", node))
    return _tidy("".join(pieces))


def _before(name: str) -> str:
    if name == "br":
        return "\n"
    return _break(name) + {"li": "- ", "td": "\t", "th": "\t"}.get(name, "")


def _break(name: str) -> str:
    if name in PARAGRAPHS:
        return PARAGRAPH_BREAK
    if name in BLOCKS:
        return LINE_BREAK
    return ""


def _tidy(text: str) -> str:
    """One line end or one empty line for the marks between blocks, however many there are."""
    text = BREAKS.sub(lambda found: "\n\n" if PARAGRAPH_BREAK in found.group() else "\n", text)
    lines = [line.replace(KEPT_SPACE, " ").rstrip() for line in text.replace("- \n", "- ").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
