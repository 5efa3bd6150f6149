"""Valid files of documents."""

from __future__ import annotations

import io

import pypdf
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

HTML = """<!DOCTYPE html><html lang=en><head><meta charset="utf-8"><title>A page</title><script>1 < 2</script></head>
<body><nav><a href="/">Home</a></nav><main><h1>Heading</h1><p>One <b>bold</b> line &amp; more<br>é</p>
<ul><li>a<li>b</ul><pre> x
  y</pre><table><tr><td>1<td>2</table><!-- remark --></main></body></html>""".encode()
MARKDOWN = """---
title: The guide
date: 2020-01-02
tags: [a, b]
---
# First *heading*

See [the page](https://example.org/x), ![picture](a.png), `code`, <b>bold</b> é.

- one
  1. two

> quoted

```sh
# not a heading
```

| a | b |
|---|---|
| 1 | 2 |

<details>inside</details>
""".encode()


FONT = {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}


def pdf(pages: list[str], *, title: str = "", password: str = "") -> bytes:
    """A PDF file with a text on each page; an empty text stands for a page without any."""
    writer = pypdf.PdfWriter()
    font = DictionaryObject({NameObject(f"/{key}"): NameObject(f"/{value}") for key, value in FONT.items()})
    for text in pages:
        page = writer.add_blank_page(200, 200)
        if text:
            fonts = DictionaryObject({NameObject("/F1"): font})
            page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
            stream = DecodedStreamObject()
            stream.set_data(f"BT /F1 12 Tf 10 100 Td ({text}) Tj ET".encode())
            page[NameObject("/Contents")] = writer._add_object(stream)
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


PDF = pdf(["First page", "Second page"], title="Two pages")
