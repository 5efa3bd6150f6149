"""Markdown, HTML and PDF files: their titles and texts, and what cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.build import ReadOptions
from retriever_svc.build.sources import SourcePassage, read_rows
from tests.fuzz.corpora import pdf
from tests.retriever_svc.sources import read_passages, without_counts

GUIDE = """---
title: The guide
date: 2020-01-02
tags: [a, b]
draft:
---
```sh
# install first
pip install x
```

# First *heading*

See [the page](https://example.org/x?y=1), ![picture](a.png) `code` and <b>bold</b>.
<!-- a remark -->

<!--
another
-->

- one
- two
  1. three

| a | b |
|---|---|
| 1 | 2 |

<details><summary>More</summary>inside</details>
"""
GUIDE_TEXT = """# install first
pip install x

First heading

See the page,  code and bold.

- one
- two
1. three

a\tb
1\t2

More
inside"""
PAGE = """<!DOCTYPE html><html><head><title> A
 page </title><style>p {}</style><script>var x = "<p>no</p>";</script>
<body><header>Site</header><nav><a href=/>Home</a></nav>
<h1>Heading</h1><p>One <b>bold</b>
line.<br>Next &amp; last.</p><ul><li>a<li>b</ul><pre>  x = 1
  y = 2</pre><!-- remark --><table><tr><td>1<td>2</table><footer>(c)</footer></body></html>"""
PAGE_TEXT = "Heading\n\nOne bold line.\nNext & last.\n\n- a\n- b\n\n  x = 1\n  y = 2\n\n1\t2"


def read_one(source: Path) -> SourcePassage:
    (passage,) = read_passages(source)
    return passage


def test_markdown_reads_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(GUIDE)
    passage = read_one(tmp_path / "a.md")
    assert (passage.id, passage.title, passage.text) == ("a.md", "The guide", GUIDE_TEXT)
    assert json.loads(passage.metadata_json) == {"date": "2020-01-02", "tags": ["a", "b"]}
    (passage,) = read_passages(tmp_path / "a.md", options=ReadOptions(without_columns=("tags",)))
    assert json.loads(passage.metadata_json) == {"date": "2020-01-02"}


@pytest.mark.parametrize(
    ("text", "title", "start"),
    [
        ("```\n# install first\n```\n\n# Real\n\nx", "Real", "# install first"),
        ("no heading\n\n~~~\n# x\n~~~", "a", "no heading"),
        ("Setext\n======\n\nx", "Setext", "Setext"),
        ("---\ntitle: [1]\n---\n# H\nx", "H", "H"),
        ("---\njust: a: rule\n---\nx", "a", "just: a: rule"),
        ("---\n- a list\n---\nx", "a", "- a list"),
        ("---\na: &x 1\nb: *x\n---\nx", "a", "a: &x 1"),
        ("---\r\ntitle: T\r\n---\r\nx\r\n", "T", "x"),
        ("---\ntitle: 2020\n---\nx", "2020", "x"),
        ("---\nTitle: The guide\n---\nx", "The guide", "x"),
        ("---\nTITLE: A\n---\n# H", "A", "H"),
    ],
)
def test_titles_of_markdown(text: str, title: str, start: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(text.encode())
    passage = read_one(tmp_path / "a.md")
    assert passage.title == title
    assert passage.text.startswith(start)


def test_html_reads_as_it_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    passage = read_one(tmp_path / "a.html")
    assert (passage.id, passage.title, passage.text) == ("a.html", "A page", PAGE_TEXT)
    main = "<body><p>outside</p><main><header><h1>In</h1></header><p>most of the page</p></main><p>after</p>"
    (tmp_path / "a.html").write_text(main)
    assert (read_one(tmp_path / "a.html").title, read_one(tmp_path / "a.html").text) == ("In", "In\n\nmost of the page")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>All of the page.</p><article>One.</article>", "All of the page.\n\nOne."),
        ("<p>One.</p><article>All of the page.</article>", "All of the page."),
        ("<p>One.</p><main>All.</main><p>Two.</p>", "One.\n\nAll.\n\nTwo."),
        ("<main><p>One.</p><article>All of the page.</article></main>", "One.\n\nAll of the page."),
        ("<main></main><p>One.</p><article>All of the page.</article>", "All of the page."),
        ("<header>Site</header><div role=main><header>In</header>All of it</div>One", "In\nAll of it"),
        ("<article>One of two.</article><article>Two.</article>", "One of two.\n\nTwo."),
    ],
)
def test_the_main_part_of_a_page_is_read_alone_where_it_holds_most(body: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<body>{body}")
    assert read_one(tmp_path / "a.html").text == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<p>é 東京".encode(), "é 東京"),
        ("<p>é".encode("utf-16"), "é"),
        ('<meta charset="koi8-r"><p>Привет'.encode("koi8-r"), "Привет"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS"><p>東京'.encode("shift_jis"), "東京"),
        ('<meta charset="iso-8859-1"><p>“é”'.encode("cp1252"), "“é”"),
        ("<p>naïve".encode("latin-1"), "naïve"),
        ('<meta charset="no-such"><p>naïve'.encode("latin-1"), "naïve"),
        ('<meta charset="zip"><p>naïve'.encode("latin-1"), "naïve"),
    ],
)
def test_html_is_decoded_as_it_says(raw: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.htm").write_bytes(raw)
    assert read_one(tmp_path / "a.htm").text == text


def test_pages_of_a_pdf_are_passages(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["First page", "", "Third page"], title="Title of it"))
    notes: list[str] = []
    rows = list(read_passages(tmp_path / "a.pdf", notify=notes.append))
    assert notes == [f"{tmp_path}/a.pdf: there is no text on 1 of 3 pages (2); if they are images, run OCR first"]
    assert [(row.id, row.title, row.text, row.metadata_json) for row in rows] == [
        ("a.pdf:1", "Title of it", "First page", '{"page": 1}'),
        ("a.pdf:3", "Title of it", "Third page", '{"page": 3}'),
    ]
    (tmp_path / "b.pdf").write_bytes(pdf(["x"]))
    assert read_one(tmp_path / "b.pdf").title == "b"


def test_pdfs_without_readable_text_are_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(pdf(["", ""]))
    (tmp_path / "secret.pdf").write_bytes(pdf(["x"], password="p"))
    (tmp_path / "x.txt").write_text("x")
    notes: list[str] = []
    (row,) = read_rows(tmp_path, notify=notes.append)
    assert isinstance(row, SourcePassage)
    assert without_counts(notes) == [
        f"skipped {tmp_path}/scan.pdf: there is no text on its 2 pages; if they are images, run OCR first",
        f"skipped {tmp_path}/secret.pdf: it is encrypted: save a copy without a password",
    ]
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\nnothing")
    first, *_ = read_rows(tmp_path)
    assert isinstance(first, InvalidInputError)
    assert "bad.pdf:1: cannot be read as a PDF: " in first.message
    assert "Error" not in first.message


BLOCKED = """
import sys, pathlib
for name in ("bs4", "pypdf", "markdown_it", "mdit_py_plugins", "yaml"):
    sys.modules[name] = None
from ragserve.errors import FailedPreconditionError
from retriever_svc.build import ReadOptions
from retriever_svc.build.sources import read_rows
print(len(list(read_rows(pathlib.Path(sys.argv[1]) / "a.txt"))))
for name in ("a.md", "a.html", "a.pdf"):
    try:
        list(read_rows(pathlib.Path(sys.argv[1]) / name))
    except FailedPreconditionError as error:
        print(error.message)
"""


def test_the_extra_is_named_where_it_is_not_installed(tmp_path: Path) -> None:
    for name in ("a.txt", "a.md", "a.html"):
        (tmp_path / name).write_text("text")
    (tmp_path / "a.pdf").write_bytes(pdf(["x"]))
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "1"
    assert len(lines) == 4
    assert all("pip install 'ragserve[documents]'" in line for line in lines[1:])


FRONT_MATTER = [
    ("title: Incident report: outage", "it is not YAML (line 2: mapping values are not allowed here). Put quotes"),
    ("lang: en\ntitle: [a", "it is not YAML (line 3: "),
    ("a: &x 1\nb: *x", "it is not YAML (line 3: it has an alias). Put quotes around a value that begins with *"),
    ("title: *Canberra*", "it is not YAML (line 2: expected alphabetic or numeric character"),
    (
        "a: !x 1",
        "it is not YAML (line 2: could not determine a constructor for the tag '!x'). Put quotes around a value that "
        "begins with !",
    ),
    ("day: 2021-13-01", "it has a value that cannot be read (month must be in 1..12"),
    ("only a text", "it is not a YAML object."),
]


@pytest.mark.parametrize(("front", "said"), FRONT_MATTER)
def test_front_matter_that_is_read_as_text_is_noted(tmp_path: Path, front: str, said: str) -> None:
    file = tmp_path / "a.md"
    file.write_text(f"---\n{front}\n---\n# Outage\n")
    notes: list[str] = []
    (passage,) = read_passages(file, notify=notes.append)
    assert passage.text.startswith(front)
    (note,) = notes
    assert note.startswith(f"{file}: the front matter is read as text: {said}")
    assert "\n" not in note


def test_titles_of_front_matter_that_are_none_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ntitle: [1]\nTitle: Real\n---\nx")
    passage = read_one(tmp_path / "a.md")
    assert (passage.title, passage.metadata_json) == ("Real", '{"title": [1]}')


def test_markdown_that_is_read_as_plain_text_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("*one* " + "[" * 20_001)
    notes: list[str] = []
    (passage,) = read_passages(tmp_path / "a.md", notify=notes.append)
    assert passage.text.startswith("*one* [[")
    many = "a paragraph has more than 20000 brackets, and the file is read as plain text"
    assert notes == [f"{tmp_path}/a.md: {many}"]


def test_a_page_that_cannot_be_read_is_one_bad_row(tmp_path: Path) -> None:
    raw = pdf(["First page", "Second page", "Third page"])
    (tmp_path / "a.pdf").write_bytes(raw.replace(b"(Second page) Tj", b"(Second page\\) Tj"))
    first, second, third = read_rows(tmp_path / "a.pdf")
    assert isinstance(second, InvalidInputError)
    assert second.message.startswith(f"{tmp_path}/a.pdf:2: page 2 cannot be read")
    assert [row.text for row in (first, third) if isinstance(row, SourcePassage)] == ["First page", "Third page"]


def test_front_matter_without_an_entry_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\n# nothing yet\n---\n# Outage\n")
    notes: list[str] = []
    (passage,) = read_passages(tmp_path / "a.md", notify=notes.append)
    assert (passage.title, passage.text, notes) == ("Outage", "Outage", [])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("".join("  " * level + f"- level{level} word\n" for level in range(16)), "level15 word"),
        (">" * 25 + " quoted\n\nafter\n", "after"),
        ("> " * 2000 + "deep\n", "deep"),
        ("red<br>blue\n", "red\nblue"),
        ("---\n\n# After rule\n\n---\n\ntext\n", "# After rule"),
        ("<footer>\nthe end\n</footer>\n", "the end"),
        ("<button>\npress\n</button>\n", "press"),
    ],
)
def test_markdown_loses_no_text(text: str, kept: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(text)
    (row,) = read_rows(tmp_path / "a.md")
    assert isinstance(row, SourcePassage)
    assert kept in row.text
