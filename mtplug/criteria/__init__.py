"""Training losses: the kind `criteria`."""

from mtplug.criteria.cross_entropy import (
    LabelSmoothedCrossEntropy,
    LabelSmoothedCrossEntropyConfig,
    Loss,
    smoothed_cross_entropy,
)

__all__ = [
    "LabelSmoothedCrossEntropy",
    "LabelSmoothedCrossEntropyConfig",
    "Loss",
    "smoothed_cross_entropy",
]
