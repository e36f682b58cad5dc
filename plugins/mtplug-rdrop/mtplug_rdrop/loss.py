"""R-Drop's loss over a large vocabulary without ever holding all logits of either pass.

Shapes: N positions, C model size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": (512, 32)}
"""Positions whose logits are held at a time, and for how many of them in float32: few, for a CPU's caches."""
CHUNK_ELSEWHERE = (512, 512)


class _LinearRDrop(torch.autograd.Function):
    """Gradients are formed together with the loss, while the logits are at hand.

    With p, q the distributions of the two passes and l = log p - log q, the derivative of
    KL(p ‖ q) + KL(q ‖ p) = Σ (p - q) l by the logits of p is p (l - KL(p ‖ q)) + p - q.
    """

    @staticmethod
    def forward(
        ctx: Any, copies_NC: Tensor, weight_VC: Tensor, target_N: Tensor, smoothing: float, alpha: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        device, N = copies_NC.device.type, len(target_N)
        rows, few = CHUNK.get(device, CHUNK_ELSEWHERE)
        weight = weight_VC.to(copies_NC.dtype)
        share = alpha / 4
        grad_copies = torch.empty_like(copies_NC)
        grad_weight = torch.zeros(weight.shape, device=weight.device)
        weight_room = torch.empty_like(weight)
        nll, log_sum, both = (torch.zeros((), device=weight.device) for _ in "abc")
        for start in range(0, N, rows):
            chunk = slice(start, start + rows)
            xs = [x[chunk] for x in copies_NC]
            logits = [torch.mm(x, weight.T) for x in xs]
            for n in range(0, len(xs[0]), few):
                part = slice(n, n + few)
                z, target = [x[part] for x in logits], target_N[chunk][part, None]
                log_p, log_q = (x.log_softmax(-1, dtype=torch.float32) for x in z)
                for x, log in zip(z, (log_p, log_q), strict=True):
                    nll -= log.gather(1, target).sum()
                    log_sum += (x[:, 0].float() - log[:, 0]).sum()
                ratio = log_p - log_q
                p, q = log_p.exp_(), log_q.exp_()
                kl_p = torch.linalg.vecdot(p, ratio)[:, None]
                kl_q = -torch.linalg.vecdot(q, ratio)[:, None]
                both += (kl_p + kl_q).sum()
                onehot = torch.full_like(kl_p, (smoothing - 1) / 2)
                # share · [p (l - KL) + p - q] + (p - onehot) / 2, and the same with p and q exchanged
                ratio *= share
                grad_p = (ratio + (share + 0.5 - share * kl_p)).mul_(p).sub_(q, alpha=share)
                grad_q = ratio.neg_().add_(share + 0.5 - share * kl_q).mul_(q).sub_(p, alpha=share)
                for x, grad in zip(z, (grad_p, grad_q), strict=True):
                    x.copy_(grad.scatter_add_(1, target, onehot))
            for x, grad, into in zip(xs, logits, grad_copies, strict=True):
                torch.mm(grad, weight, out=into[chunk])
                grad_weight += torch.mm(grad.T, x, out=weight_room)
        # CE = (1 - s) nll + s (log Σ exp - mean logit), and the mean needs only sums of features and weights.
        spread = smoothing / len(weight) / 2
        weight_sum = weight_VC.sum(0, dtype=torch.float32)
        x_sum = copies_NC.sum((0, 1), dtype=torch.float32)
        loss = ((1 - smoothing) * nll + smoothing * log_sum) / 2 - spread * (x_sum @ weight_sum)
        grad_weight -= spread * x_sum
        grad_copies -= (spread * weight_sum).to(grad_copies.dtype)
        ctx.save_for_backward(grad_copies, grad_weight)
        ctx.weight_dtype = weight_VC.dtype
        nll = nll / 2
        ctx.mark_non_differentiable(nll)
        return loss + share * both, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_copies, grad_weight = ctx.saved_tensors
        scale = grads[0]
        # in float32: a loss scale beyond 65,504 is no number of fp16, and the product may be
        scaled = (grad_copies.float() * scale).to(grad_copies.dtype)
        return scaled, (grad_weight * scale).to(ctx.weight_dtype), None, None, None


def linear_rdrop(
    copies_NC: Tensor, weight_VC: Tensor, target_N: Tensor, smoothing: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """(CE₁ + CE₂) / 2 + alpha / 4 · (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)) of logits `x @ weight.T`.

    Args:
        copies_NC: (2, N, C) features of both passes.
        weight_VC: output embeddings.
        target_N: int64 ids.

    Returns:
        Sums over the N positions in nats, float32: the loss, differentiable once, and the negative
        log-likelihood, mean of both passes.
    """
    device = copies_NC.device.type
    if torch.is_autocast_enabled(device):
        copies_NC = copies_NC.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):  # the sums above are in float32
        return _LinearRDrop.apply(copies_NC, weight_VC, target_N, smoothing, alpha)
