"""Kernels run in Triton's interpreter here, which `tests/conftest.py` chooses.

Where a GPU is at hand, TRITON_INTERPRET=0 runs the same tests on it.
"""

import importlib.metadata
import importlib.util
import os

import pytest
from packaging.version import Version

OLD_TRITON = bool(importlib.util.find_spec("triton")) and (
    Version(importlib.metadata.version("triton")) < Version("3.6")
)
"""Older than what was measured: more registers spill there."""


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


def _repair_interpreted_descriptors() -> None:
    """Triton's interpreter before 3.6 takes strides for bytes when it looks at their alignment."""
    from triton.runtime import interpreter

    interpreter.TensorDescHandle.validate = lambda self: None


def _patch_the_language_once_a_launch() -> None:
    """Triton's interpreter patches `tl` before each launch, and again, by looking at all of its members,
    whenever a kernel calls a function: a third of the time of small kernels. It is patched already then."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, ...]] = set()
    modules: dict = {}

    def once(fn):
        if fn not in modules:
            there = {id(value) for value in fn.__globals__.values()}
            modules[fn] = tuple(id(module) in there for module in (tl, tl.core))
        if modules[fn] in patched:
            return None  # nobody asks where a function is called
        patched.add(modules[fn])
        return patch(fn)

    def launched(self, *args, **kwargs):
        patched.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = once, launched


def _check_integers(checked: bool) -> None:
    """Triton's interpreter computes every integer in 64 bits, too, to tell of overflows: two fifths of the time of
    small kernels. Machine code has no such check."""
    from triton.runtime import interpreter

    options = interpreter.InterpreterOptions(sanitize_overflow=checked)
    interpreter.interpreter_builder.options = options


@pytest.fixture
def checked_integers():
    _check_integers(True)
    yield
    _check_integers(False)


if os.environ["TRITON_INTERPRET"] == "1" and importlib.util.find_spec("triton"):
    _repair_interpreted_dot()
    if OLD_TRITON:
        _repair_interpreted_descriptors()
    _patch_the_language_once_a_launch()
    _check_integers(False)
