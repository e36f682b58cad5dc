"""The non-linearities of feed-forward layers, by the names that configurations give them."""

from typing import Any

import torch.nn.functional as F

ACTIVATIONS: dict[str, Any] = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}
