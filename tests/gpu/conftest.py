"""Tests of the retriever are left out where FAISS or ONNX Runtime is not installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

_RETRIEVER = ["test_encoder.py", "test_retriever.py", "test_retriever_index.py"]
_MISSING = [name for name in ("faiss", "lance", "onnxruntime") if find_spec(name) is None]
collect_ignore = _RETRIEVER if _MISSING else []


def pytest_report_header() -> list[str]:
    """Says what is left out."""
    return [f"tests of the retriever are left out: no {', '.join(_MISSING)}"] if _MISSING else []


def pytest_configure() -> None:
    """Triton's interpreter, as of 3.6: it fails with NumPy 2.4, and multiplies the bits of bfloat16 as integers."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import numpy as np  # noqa: PLC0415
    import triton.language as tl  # noqa: PLC0415
    from triton.runtime import interpreter  # noqa: PLC0415

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def float32(factor: Any) -> Any:
        if factor.dtype.scalar != tl.bfloat16:
            return factor
        values = interpreter._convert_float(factor.data, tl.bfloat16, tl.float32, None).view(np.float32)
        return interpreter.TensorHandle(values, tl.float32)

    interpreter._patch_lang_tensor = patch_with_index
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *more: dot(self, float32(a), float32(b), *more)
