"""Kernels run in Triton's interpreter here, which must be chosen before triton is imported.

Where a GPU is at hand, TRITON_INTERPRET=0 runs the same tests on it.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
