"""Training losses: the kind `criteria`."""

from mtplug.criteria.cross_entropy import (
    LabelSmoothedCrossEntropy,
    LabelSmoothedCrossEntropyConfig,
    Loss,
)

__all__ = ["LabelSmoothedCrossEntropy", "LabelSmoothedCrossEntropyConfig", "Loss"]
