"""Cross-entropy over a large vocabulary without ever holding all logits.

Shapes: N positions, C model size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Positions whose logits are held at a time, and for how many of them in float32. On a CPU few, for its caches;
# elsewhere all at once, for the fewest kernels.
_ROWS = {"cpu": (1024, 64)}
_ROWS_ELSEWHERE = (256, 256)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are formed together with the loss, chunk by chunk, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        weight_VC: Tensor,
        target_N: Tensor,
        smoothing: float,
        rows: int,
        few: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = x_NC.dtype
        wide = torch.promote_types(dtype, torch.float32)
        weight = weight_VC.to(dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x_NC) if need_x else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        # Each chunk writes where the one before it did: fresh memory costs as much as a pass over it.
        rows = max(1, min(rows, len(x_NC)))
        room = x_NC.new_empty(rows, len(weight))
        wide_room = x_NC.new_empty(min(few, rows), len(weight), dtype=wide)
        weight_room = torch.empty_like(weight) if need_weight else None
        lse = x_NC.new_empty(len(x_NC), 1, dtype=wide)
        right = torch.empty_like(lse)
        for start in range(0, len(x_NC), rows):
            chunk = slice(start, start + rows)
            x = x_NC[chunk]
            logits = torch.mm(x, weight.T, out=room[: len(x)])
            parts = (logits, target_N[chunk, None], lse[chunk], right[chunk])
            for part, target, part_lse, part_right in zip(
                *(t.split(few) for t in parts), strict=True
            ):
                probabilities = torch.softmax(part, -1, dtype=wide, out=wide_room[: len(part)])
                # log Σ exp from the most probable entry, which cannot underflow
                highest = probabilities.amax(-1, keepdim=True)
                torch.sub(part.amax(-1, keepdim=True), highest.log_(), out=part_lse)
                part_right.copy_(part.gather(1, target))
                if not (need_x or need_weight):
                    continue
                # d loss / d logits = softmax - (1 - smoothing) · onehot - spread, in the place of the logits
                probabilities.scatter_add_(1, target, highest.new_full(target.shape, smoothing - 1))
                part.copy_(probabilities)
            if grad_x is not None:
                torch.mm(logits, weight, out=grad_x[chunk])
            if weight_room is not None:
                grad_weight += torch.mm(logits.T, x, out=weight_room)
        nll = (lse - right).sum()
        loss = (lse - (1 - smoothing) * right).sum()
        if smoothing:
            # Smoothing pulls every logit alike, so its part of the loss and of both gradients needs
            # only the sum of the weights and of the features, and no pass over the logits.
            spread = smoothing / len(weight)
            weight_sum, x_sum = weight_VC.sum(0, dtype=wide), x_NC.sum(0, dtype=wide)
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
            # in fp32: a loss scale beyond 65,504 is no number of fp16, and the product may be
            work = torch.promote_types(grad_x.dtype, torch.float32)
            grad_x = (grad_x.to(work) * scale).to(grad_x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        else:
            grad_weight = None
        return grad_x, grad_weight, None, None, None, None


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, target_N: Tensor, smoothing: float = 0.0, rows: int = 0
) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross-entropy of logits `x @ weight.T`, and plain negative log-likelihood.

    The target distribution is `(1 - smoothing) · onehot + smoothing / V` (Szegedy et al. 2016).

    Args:
        x_NC: features, in the precision that the products shall have.
        weight_VC: output embeddings.
        target_N: int64 ids.
        smoothing: 0 … 1.
        rows: positions for which logits are held at a time; 0: what suits the device.

    Returns:
        Sums over the N positions, in nats, float32 at least; only the first is differentiable,
        once.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        x_NC = x_NC.to(torch.get_autocast_dtype(x_NC.device.type))
    several, few = _ROWS.get(x_NC.device.type, _ROWS_ELSEWHERE)
    apply = _LinearCrossEntropy.apply
    if torch.compiler.is_compiling():
        # As many chunks as the batch has: traced, they would be compiled anew for each number of positions.
        apply = torch.compiler.disable(apply)
    return apply(x_NC, weight_VC, target_N, smoothing, rows or several, few)
