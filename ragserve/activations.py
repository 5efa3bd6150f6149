"""The activation functions of transformers that have weights of their own: neither imported nor served."""

from __future__ import annotations

LEARNED = ("prelu", "xielu")
