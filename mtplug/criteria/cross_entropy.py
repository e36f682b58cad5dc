"""Cross-entropy with label smoothing, and what every criterion gives.

One for models that are not autoregressive
has a static method `why_not(config, model) -> str`; see `mtplug.architectures.base.why_unfit`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import Tensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.data.batching import Batch
from mtplug.data.tokenizers import PAD
from mtplug.nn.loss import linear_cross_entropy
from mtplug.registry import require_fraction


@dataclass
class Loss:
    """What a criterion finds for a batch.

    Attributes:
        sum: differentiable sum over the batch; its gradient is divided by `count` over all
            batches of an update.
        count: what the sum is divided by, usually target tokens.
        nll: sum of negative log-likelihoods in nats, for perplexity; without gradient.
        tokens: what `nll` is divided by, where `count` is not target tokens, but sentences, say; 0: `count`.
        parts: sums by name, without gradient, of what `sum` is made of besides cross-entropy: divided by `count`
            as `sum` is, they are reported and drawn beside the loss of training.
    """

    sum: Tensor
    count: int
    nll: Tensor
    tokens: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kinds in (("sum", Tensor), ("nll", (Tensor, Real))):
            if not isinstance(value := getattr(self, name), kinds):
                raise TypeError(f"Loss.{name} has to be a tensor, not a {type(value).__name__}")
        for name in ("count", "tokens"):
            value = getattr(self, name)
            if not isinstance(value, int):  # a tensor or a number of numpy, unless it is no integer
                try:
                    setattr(self, name, operator.index(value))
                except TypeError:
                    raise TypeError(f"Loss.{name} has to be an int, not {value!r}") from None
        self.tokens = self.tokens or self.count


@dataclass
class LabelSmoothedCrossEntropyConfig:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7)."""

    smoothing: float = 0.1
    """share of the target distribution spread evenly over the vocabulary"""

    def __post_init__(self) -> None:
        require_fraction(self, "smoothing")


class LabelSmoothedCrossEntropy:
    """Sums over target tokens; padding counts nothing."""

    def __init__(self, config: LabelSmoothedCrossEntropyConfig, task: Any):
        self.smoothing = config.smoothing

    def __call__(self, model: Model, batch: Batch) -> Loss:
        features = model(*batch.inputs)
        real = batch.target_tokens != PAD
        target = batch.target_tokens[real]
        total, nll = smoothed_cross_entropy(model, features[real], target, self.smoothing)
        return Loss(total, len(target), nll.detach())


def smoothed_cross_entropy(
    model: Model, features_NC: Tensor, target_N: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sums over tokens of the smoothed loss and of the negative log-likelihood, in nats; all logits are held only where
    the model's `project` is more than a product."""
    if model.output_weight is not None:
        return linear_cross_entropy(features_NC, model.output_weight, target_N, smoothing)
    log_probs = model.project(features_NC).float().log_softmax(-1)
    nll = -log_probs.gather(1, target_N[:, None]).sum()
    return (1 - smoothing) * nll - smoothing * log_probs.mean(-1).sum(), nll


@mtplug.hookimpl
def register_criteria(register):
    register(
        "label_smoothed_cross_entropy", LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
    )
