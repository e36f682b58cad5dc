"""Kernels run in Triton's interpreter here, which `tests/conftest.py` chooses.

Where a GPU is at hand, TRITON_INTERPRET=0 runs the same tests on it.
"""

import importlib.util
import os


def _repair_interpreted_dot() -> None:
    """Triton's interpreter keeps bfloat16 as uint16 and multiplies those integers: widen first."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        data = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    def create_dot(self, a, b, *rest):
        return original(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


if os.environ["TRITON_INTERPRET"] == "1" and importlib.util.find_spec("triton"):
    _repair_interpreted_dot()
