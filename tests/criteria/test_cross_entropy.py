"""Cross-entropy against torch's own, which smooths labels as Szegedy et al. (2016) do."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.data.tokenizers import PAD
from mtplug.testing.material import MeanWords, random_batch


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradient_are_those_of_torch(tied, smoothing):
    """`tied`: a model that shows its output weights has another way to the same numbers."""
    batch, results = random_batch(), []
    for ours in (True, False):
        model = MeanWords(tied=tied).eval()
        if ours:
            config = LabelSmoothedCrossEntropyConfig(smoothing)
            loss = LabelSmoothedCrossEntropy(config, None)(model, batch)
            total, nll = loss.sum, loss.nll
            assert (
                loss.count == loss.tokens == int((batch.target_tokens != PAD).sum())
                and not loss.parts
            )
            assert not nll.requires_grad
        else:
            logits = model.project(model(*batch.inputs)).transpose(1, 2)
            how = {"ignore_index": PAD, "reduction": "sum"}
            total = cross_entropy(logits, batch.target_tokens, label_smoothing=smoothing, **how)
            nll = cross_entropy(logits, batch.target_tokens, **how)
        total.backward()
        results.append([total, nll, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
