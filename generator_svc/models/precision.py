"""The names of precisions, known without loading torch: a wrong flag and --help do not wait for it."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "int8", "bfloat16", "float16"]
