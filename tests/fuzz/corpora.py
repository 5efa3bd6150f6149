"""Valid files that the fuzzing begins with."""

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


def _pdf() -> bytes:
    writer = pypdf.PdfWriter()
    font = DictionaryObject({NameObject(f"/{key}"): NameObject(f"/{value}") for key, value in FONT.items()})
    for text in ("First page", "Second page"):
        page = writer.add_blank_page(200, 200)
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 10 100 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    writer.add_metadata({"/Title": "Two pages"})
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


FONT = {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}
PDF = _pdf()
