"""Cross-entropy over a large vocabulary without ever holding all logits.

Shapes: N positions, C model size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are formed together with the loss, chunk by chunk, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight_VC: Tensor, target_N: Tensor, smoothing: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        dtype = x_NC.dtype
        wide = torch.promote_types(dtype, torch.float32)
        weight = weight_VC.to(dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x_NC) if need_x else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        # Smoothing pulls every logit alike, so its part of the loss and of both gradients needs
        # only the sum of the weights and of the features, and no pass over the logits.
        spread = smoothing / len(weight)
        weight_sum = weight_VC.sum(0, dtype=wide)
        x_sum = torch.zeros(x_NC.shape[1], dtype=wide, device=x_NC.device)
        loss = torch.zeros((), dtype=wide, device=x_NC.device)
        nll = torch.zeros_like(loss)
        for start in range(0, len(x_NC), rows):
            x, target = x_NC[start : start + rows], target_N[start : start + rows, None]
            logits = x @ weight.T
            probabilities = torch.softmax(logits, -1, dtype=wide)
            # log Σ exp from the most probable entry, which cannot underflow
            highest, where = probabilities.max(-1, keepdim=True)
            lse = logits.gather(1, where).to(wide) - highest.log()
            right = logits.gather(1, target).to(wide)
            nll += (lse - right).sum()
            loss += (lse - (1 - smoothing) * right).sum()
            if smoothing:
                x_sum += x.sum(0, dtype=wide)
            if not (need_x or need_weight):
                continue
            # d loss / d logits = softmax - (1 - smoothing) · onehot - spread
            probabilities.scatter_add_(1, target, lse.new_full(target.shape, smoothing - 1))
            grad = probabilities.to(dtype)
            if grad_x is not None:
                torch.mm(grad, weight, out=grad_x[start : start + rows])
            if need_weight:
                grad_weight += grad.T @ x
        if smoothing:
            loss -= spread * (x_sum @ weight_sum)
            grad_weight -= spread * x_sum
            if grad_x is not None:
                grad_x -= (spread * weight_sum).to(dtype)
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.weight_dtype = weight_VC.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grads[0]
        if grad_x is not None:
            grad_x = grad_x * scale.to(grad_x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        else:
            grad_weight = None
        return grad_x, grad_weight, None, None, None


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, target_N: Tensor, smoothing: float = 0.0, rows: int = 256
) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross-entropy of logits `x @ weight.T`, and plain negative log-likelihood.

    The target distribution is `(1 - smoothing) · onehot + smoothing / V` (Szegedy et al. 2016).

    Args:
        x_NC: features, in the precision that the products shall have.
        weight_VC: output embeddings.
        target_N: int64 ids.
        smoothing: 0 … 1.
        rows: positions for which logits are held at a time.

    Returns:
        Sums over the N positions, in nats, float32 at least; only the first is differentiable,
        once.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        x_NC = x_NC.to(torch.get_autocast_dtype(x_NC.device.type))
    return _LinearCrossEntropy.apply(x_NC, weight_VC, target_N, smoothing, rows)
