"""A criterion: cross-entropy that counts sure tokens less (focal loss, Lin et al. 2017)."""

from dataclasses import dataclass

import mtplug
from mtplug.criteria import Loss

MTPLUG_API = {"criteria": 1}


@dataclass
class FocalConfig:
    """Focal loss."""

    gamma: float = 1.0
    """0: plain cross-entropy; the greater, the less sure tokens count"""


class FocalLoss:
    def __init__(self, config: FocalConfig, task):
        self.gamma = config.gamma

    def __call__(self, model, batch):
        features = model(*batch.inputs)
        real = batch.target_tokens != 0  # (B, T); 0 is padding
        log_probs = model.project(features[real]).float().log_softmax(-1)  # (N, V)
        right = log_probs.gather(1, batch.target_tokens[real][:, None])[:, 0]
        loss = -((1 - right.exp()) ** self.gamma * right).sum()
        return Loss(loss, len(right), nll=-right.detach().sum())


@mtplug.hookimpl
def register_criteria(register):
    register("NAME", FocalLoss, FocalConfig)
