"""The non-linearities of feed-forward layers, by the names that configurations give them."""

import functools
from typing import Any

import torch.nn.functional as F

ACTIVATIONS: dict[str, Any] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "swish": F.silu,
}
