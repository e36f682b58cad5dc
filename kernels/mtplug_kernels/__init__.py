"""Attention with relative positions: plain-torch definitions and deterministic Triton kernels.

Works without Triton installed (``backend="reference"``); see ``docs/kernels.md`` for the design.
"""

from mtplug_kernels import positions, reference
from mtplug_kernels.api import attention, rotate

__all__ = ["attention", "positions", "reference", "rotate"]
