"""R-Drop against its equation, computed apart in float64."""

from types import SimpleNamespace

import pytest
import torch
from mtplug_rdrop import loss as rdrop_loss
from mtplug_rdrop.criterion import RDrop, RDropConfig
from torch import nn
from torch.distributions import Categorical, kl_divergence

import mtplug
from mtplug import testing


class Doubled(nn.Module):
    """A model whose second copy of a batch sees other features, as dropout would make them."""

    def __init__(self, only_projects):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Parameter(torch.randn(3, 4, 6))  # (B, T, C)
        self.second = nn.Parameter(torch.randn(3, 4, 6))
        self.output = nn.Parameter(torch.randn(9, 6))
        self.output_weight = None if only_projects else self.output

    def forward(self, source_tokens, source_lengths, prev_output_tokens):
        if len(prev_output_tokens) == 3:
            return self.first
        return torch.cat([self.first, self.second])

    def project(self, features):
        return features @ self.output.T


BATCH = SimpleNamespace(
    packed=False,
    source_tokens=torch.ones(3, 2, dtype=torch.long),
    source_lengths=torch.full((3,), 2),
    prev_output_tokens=torch.ones(3, 4, dtype=torch.long),
    target_tokens=torch.tensor([[3, 4, 5, 1], [6, 1, 0, 0], [8, 7, 1, 0]]),
)


def equation(model, alpha, smoothing):
    """Equation 4 of the paper, halved, position by position."""
    total = torch.zeros((), dtype=torch.float64)
    for b, t in (BATCH.target_tokens != 0).nonzero().tolist():
        rows = [f[b, t].double() @ model.output.double().T for f in (model.first, model.second)]
        p, q = (Categorical(logits=row) for row in rows)
        wanted = torch.full((9,), smoothing / 9, dtype=torch.float64)
        wanted[BATCH.target_tokens[b, t]] += 1 - smoothing
        total += sum(-(wanted * d.logits).sum() for d in (p, q)) / 2
        total += alpha / 2 * (kl_divergence(p, q) + kl_divergence(q, p)) / 2
    return total


@pytest.mark.parametrize(("alpha", "smoothing"), [(0.0, 0.0), (5.0, 0.0), (2.0, 0.1)])
@pytest.mark.parametrize("chunk", [(2, 1), (5, 2), (1000, 1000), None])
def test_loss_and_gradients_are_those_of_the_equation(alpha, smoothing, chunk, monkeypatch):
    monkeypatch.setattr(rdrop_loss, "CHUNK", {"cpu": chunk})
    model = Doubled(only_projects=chunk is None)
    loss = RDrop(RDropConfig(smoothing, alpha), None)(model, BATCH)
    truth = equation(model, alpha, smoothing)
    assert loss.count == 9
    torch.testing.assert_close(loss.sum.double(), truth, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(truth, parameters)
    for found, right in zip(torch.autograd.grad(loss.sum, parameters), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_autocast_costs_the_precision_of_the_products_only():
    model = Doubled(only_projects=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = RDrop(RDropConfig(0.1, 2.0), None)(model, BATCH)
    truth = equation(model, 2.0, 0.1)
    torch.testing.assert_close(loss.sum.double(), truth, rtol=1e-2, atol=0)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(truth, parameters)
    for found, right in zip(torch.autograd.grad(loss.sum, parameters), expected, strict=True):
        assert (found - right).norm() < 0.02 * right.norm()


def test_a_loss_scale_beyond_fp16_leaves_gradients_that_fit():
    """As the loss scale is after 2,000 updates without an overflow: each time that cost an update."""
    copies = (0.1 * torch.randn(2, 4, 8)).half().requires_grad_()
    target = torch.tensor([1, 2, 3, 4])
    loss, _ = rdrop_loss.linear_rdrop(copies, 0.1 * torch.randn(6, 8), target, 0.1, 5.0)
    small = torch.autograd.grad(loss, copies, torch.tensor(1.0), retain_graph=True)[0]
    (large,) = torch.autograd.grad(loss, copies, torch.tensor(2.0**17))
    fits = small.float().abs() * 2**17 < 65504
    assert fits.any() and large[fits].isfinite().all()


def test_it_keeps_the_contract_of_criteria():
    testing.check_criterion("rdrop")


def test_without_dropout_it_is_cross_entropy():
    from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
    from mtplug.testing.material import MeanWords, random_batch

    model = MeanWords()
    model.dropout.p = 0.0
    plain = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(), None)(
        model, random_batch()
    )
    loss = RDrop(RDropConfig(), None)(model.train(), random_batch())
    torch.testing.assert_close(loss.sum, plain.sum)


def test_a_run_trains_with_it_and_translates_without_the_plugin_option(tmp_path):
    run = testing.train(tmp_path, "criterion.name=rdrop", "criterion.alpha=1", updates=4)
    assert len(mtplug.load(run, device="cpu").translate(["ka lo"])) == 1


def test_negative_weight_is_refused(tmp_path):
    with pytest.raises(mtplug.UserError, match="criterion: alpha must not be negative"):
        testing.train(tmp_path, "criterion.name=rdrop", "criterion.alpha=-1")
