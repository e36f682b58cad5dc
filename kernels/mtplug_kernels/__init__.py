"""Attention with relative positions, usable without mtplug.

`positions` says what a scheme is, `reference.attention` computes it in plain torch.
"""

from mtplug_kernels import positions, reference

__all__ = ["positions", "reference"]
