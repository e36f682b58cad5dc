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
        weight = weight_VC.to(dtype)
        vocabulary = weight.shape[0]
        need_x, need_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x_NC) if need_x else None
        grad_weight = (
            torch.zeros(weight_VC.shape, dtype=torch.float32, device=weight.device)
            if need_weight
            else None
        )
        wide = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=x_NC.device)
        nll = torch.zeros_like(loss)
        for start in range(0, len(x_NC), rows):
            x, target = x_NC[start : start + rows], target_N[start : start + rows, None]
            logits = (x @ weight.T).to(wide)
            lse = logits.logsumexp(-1, keepdim=True)
            right = logits.gather(1, target)
            mean = logits.mean(-1, keepdim=True) if smoothing else 0.0
            nll += (lse - right).sum()
            loss += (lse - (1 - smoothing) * right - smoothing * mean).sum()
            if not (need_x or need_weight):
                continue
            # d loss / d logits = softmax - (1 - smoothing) * onehot - smoothing / V
            grad = logits.sub_(lse).exp_()
            if smoothing:
                grad.sub_(smoothing / vocabulary)
            grad.scatter_add_(1, target, grad.new_full(target.shape, smoothing - 1))
            grad = grad.to(dtype)
            if grad_x is not None:
                torch.mm(grad, weight, out=grad_x[start : start + rows])
            if grad_weight is not None:
                grad_weight += grad.T @ x
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
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_x, grad_weight, None, None, None


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, target_N: Tensor, smoothing: float = 0.0, rows: int = 512
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
