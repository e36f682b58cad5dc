"""The fused loss against torch's own cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from mtplug.nn.loss import linear_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("count", "rows"), [(1, 64), (7, 64), (300, 128), (300, 0), (0, 0)])
def test_loss_and_gradients_equal_torchs(smoothing, count, rows):
    torch.manual_seed(count)
    x = torch.randn(count, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 12, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 31, (count,))
    loss, nll = linear_cross_entropy(x, weight, target, smoothing, rows)
    (3 * loss).backward()
    ours = loss.detach(), x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    truth = F.cross_entropy(x @ weight.T, target, label_smoothing=smoothing, reduction="sum")
    (3 * truth).backward()
    for mine, theirs in zip(ours, (truth.detach(), x.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(nll, F.cross_entropy(x @ weight.T, target, reduction="sum"))


def test_extreme_logits_give_finite_loss():
    x = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    loss, _ = linear_cross_entropy(x, torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]), 0.0)
    loss.backward()
    assert loss.item() == pytest.approx(1200.0)
    assert x.grad.flatten().tolist() == pytest.approx([2.0, -2.0])


def test_bf16_is_close_to_fp32():
    torch.manual_seed(0)
    x, weight = torch.randn(200, 32), torch.randn(50, 32) * 0.2
    target = torch.randint(0, 50, (200,))
    exact, _ = linear_cross_entropy(x, weight, target, 0.1)
    rough, _ = linear_cross_entropy(x.bfloat16(), weight, target, 0.1)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=5e-3)


def test_a_loss_scale_beyond_fp16_leaves_gradients_that_fit():
    x = (0.1 * torch.randn(4, 8)).half().requires_grad_()
    weight = torch.randn(6, 8).half()
    loss, _ = linear_cross_entropy(x, weight, torch.tensor([1, 2, 3, 4]))
    small = torch.autograd.grad(loss, x, torch.tensor(1.0), retain_graph=True)[0]
    (large,) = torch.autograd.grad(loss, x, torch.tensor(2.0**17))
    fits = small.float().abs() * 2**17 < 65504
    assert fits.any() and large[fits].isfinite().all()
    torch.testing.assert_close(large[fits].float(), small[fits].float() * 2**17)


def test_compiled_for_any_number_of_positions():
    """Its loop over chunks was unrolled: with `training.compile` nearly every batch was compiled anew, until torch gave
    up at the eighth."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    weight = torch.randn(5, 4, requires_grad=True)

    def doubled(x, target):
        loss, nll = linear_cross_entropy(2 * x, weight, target, 0.1)
        return loss + 0, nll.detach()

    run = torch.compile(doubled, backend=backend, dynamic=True)
    for count in (7, 9, 65, 130, 200, 300):
        x, target = torch.randn(count, 4, requires_grad=True), torch.randint(0, 5, (count,))
        run(x, target)[0].backward()
        compiled_gradient, x.grad = x.grad, None
        doubled(x, target)[0].backward()
        assert torch.equal(compiled_gradient, x.grad)
    assert len(compiled) < 6
