"""Tests of the retriever are left out where FAISS or ONNX Runtime is not installed."""

from __future__ import annotations

from importlib.util import find_spec

_RETRIEVER = ["test_encoder.py", "test_retriever.py", "test_retriever_index.py"]
_MISSING = [name for name in ("faiss", "lance", "onnxruntime") if find_spec(name) is None]
collect_ignore = _RETRIEVER if _MISSING else []


def pytest_report_header() -> list[str]:
    """Says what is left out."""
    return [f"tests of the retriever are left out: no {', '.join(_MISSING)}"] if _MISSING else []
