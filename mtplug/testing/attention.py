"""Checks of position encodings and attention backends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from mtplug_kernels import attention, positions, reference
from torch import Tensor

from mtplug.config.build import component_from_overrides
from mtplug.nn.attention import AttentionBackend, AttentionCall
from mtplug.nn.positions import PositionEncoding, Stack
from mtplug.testing.material import (
    TINY_TRANSFORMER,
    WordsTask,
    loss_of,
    random_batch,
)
from mtplug.testing.models import decodes_as_a_whole
from mtplug.testing.subject import Subject, close, equal, reached, require
from mtplug.training.checkpoints import load_weights, weights


def check_position_encoding(name: str, *settings: str, dim: int = 16) -> None:
    """Check a position encoding against `mtplug-plugins docs position_encoding`.

    Args:
        name: of the encoding.
        settings: such as `max_positions=64`; it has to reach 24 positions.
        dim: model size.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("position_encodings", name, settings)
    stack = Stack(dim, heads=2, layers=2, causal=False)

    def build(seed: int = 1) -> Any:
        torch.manual_seed(seed)
        return subject.build(stack, kind=PositionEncoding)

    encoding = build()
    with torch.no_grad():
        with subject.promise("embed"):
            whole = encoding.embed(0, 24)
            if whole is not None:
                close(whole, torch.zeros(24, dim), "embed(0, 24)", math.inf)
                require(bool(whole.isfinite().all()), "embed(0, 24) is not finite")
        with subject.promise("absolute"):
            for start, length in ((0, 1), (7, 1), (3, 11), (0, 24)):
                part = encoding.embed(start, length)
                require((part is None) == (whole is None), "embed gives numbers only sometimes")
                if part is not None:
                    close(part, whole[start : start + length], f"embed({start}, {length})", 1e-6)
        with subject.promise("schemes"):
            for layer in range(stack.layers):
                _attends(encoding.schemes(layer), stack)
        with subject.promise("determinism"):
            numbers = _numbers(encoding, stack)
            equal(_numbers(build(), stack), numbers, "numbers of two encodings of one seed")
        with subject.promise("save"):
            other = build(seed=2)
            load_weights(other, {k: v.clone() for k, v in weights(encoding).items()}, "the check")
            close(_numbers(other, stack), numbers, "numbers", 1e-6)
    position = [f"position.name={name}", *(f"position.{setting}" for setting in settings)]
    small = [*TINY_TRANSFORMER, f"dim={dim}", *position]
    with subject.promise("incremental"):
        torch.manual_seed(1)
        model = component_from_overrides("architectures", "transformer", small).build(WordsTask())
        with torch.no_grad():
            decodes_as_a_whole(model.eval(), random_batch())
    with subject.promise("gradients"):
        batch = random_batch()
        reached(model, lambda: loss_of(model.train(), batch), part="position")


def _attends(schemes: Any, stack: Stack) -> None:
    """Does the reference understand these schemes, with heads of this stack's shape?"""
    require(isinstance(schemes, tuple), f"schemes gives {type(schemes).__name__}, not a tuple")
    x = torch.zeros(1, stack.heads, 3, stack.head_size)
    try:
        positions.as_schemes(schemes)
        out = attention(x, x, x, schemes, backend="reference")  # which checks the schemes' shapes
    except (TypeError, ValueError, RuntimeError) as error:
        require(False, str(error))
    require(bool(out.isfinite().all()), "attention with it is not finite")  # type: ignore[union-attr]


def _numbers(encoding: Any, stack: Stack) -> Tensor:
    """Everything that an encoding says, in one row."""
    parts = [encoding.embed(0, 24)]
    for layer in range(stack.layers):
        for scheme in encoding.schemes(layer):
            parts += [v for v in vars(scheme).values() if isinstance(v, Tensor)]
    return torch.cat([p.detach().flatten() for p in parts if p is not None] + [torch.zeros(1)])


@dataclass(frozen=True)
class AttentionCase:
    """One call of a backend: sizes, and what is said about it."""

    queries: int
    keys: int
    where: dict[str, Any]


ATTENTION_CASES = (
    AttentionCase(7, 7, {}),
    AttentionCase(7, 5, {}),
    AttentionCase(9, 9, {"causal": True}),
    AttentionCase(1, 6, {"causal": True, "query_offset": 5}),
    AttentionCase(3, 8, {"causal": True, "query_offset": 4}),
    AttentionCase(70, 65, {"key_lengths": (65, 3)}),
    AttentionCase(6, 6, {"causal": True, "key_lengths": (6, 2)}),
    AttentionCase(4, 6, {"causal": True, "key_lengths": (6, 3), "query_offset": 2}),
    AttentionCase(5, 5, {"scale": 0.7}),
)
"""What every backend has to do. A new keyword needs its cases here and a line in `defined_attention`."""

SCHEME_CASES = (
    AttentionCase(9, 9, {}),
    AttentionCase(9, 9, {"causal": True}),
    AttentionCase(1, 6, {"query_offset": 5}),
    AttentionCase(6, 6, {"key_lengths": (6, 2)}),
)
PACKED = (4, 1, 4)
"""Lengths of the sentences of the packed cases."""
OTHER = (2, 5, 3)
"""Lengths of the keys' sentences where they are not the queries'."""


def defined_attention(inputs: list[Tensor], where: dict[str, Any]) -> Tensor:
    """Attention of q, k and v, query by query and in loops, as the contract's sentence reads."""
    q, k, v = inputs
    rows, heads, queries, size = q.shape
    lengths = where.get("key_lengths")
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for b in range(rows):
        seen = int(lengths[b]) if lengths is not None else k.shape[2]
        for i in range(queries):
            last = where.get("query_offset", 0) + i + 1 if where.get("causal") else seen
            visible = slice(0, min(seen, last))
            for h in range(heads):
                scores = k[b, h, visible] @ q[b, h, i] * where.get("scale", 1 / math.sqrt(size))
                out[b, h, i] = scores.softmax(0) @ v[b, h, visible]
    return out


def check_attention_backend(name: str, *settings: str, device: str = "cpu") -> None:
    """Check an attention backend against `mtplug-plugins docs attention_backend`.

    What the backend's `why_not` excludes is not asked of it.

    Args:
        name: of the backend.
        settings: its own.
        device: where to compute; the definition is computed on the CPU in float64.

    Raises:
        ContractBroken: the first promise that is not kept, or it can do nothing on this device.
    """
    subject = Subject("attention_backends", name, settings)
    backend = subject.build(kind=AttentionBackend)
    with subject.promise("why_not"):
        reason = backend.why_not(AttentionCall(device, gradient=False))
        require(isinstance(reason, str), f"why_not gives {reason!r}, not text")
        require(not reason, f"it can do nothing on {device}: {reason}")
        require(isinstance(backend.rank(AttentionCall(device)), int), "rank gives no number")
    for number, case in enumerate(ATTENTION_CASES):
        torch.manual_seed(number)
        sizes = (case.queries, case.keys, case.keys)
        inputs = [torch.randn(2, 2, n, 16, device=device) for n in sizes]
        where = _on(device, case.where)
        said = f"with {case.queries} queries, {case.keys} keys, {case.where or 'nothing else'}"
        exact = [x.double().cpu().requires_grad_() for x in inputs]
        truth = defined_attention(exact, where)
        _agrees(subject, backend, inputs, where, exact, truth, said, "definition")
        if "key_lengths" in where:
            with subject.promise("padding"), torch.no_grad():
                noisy = [x.clone() for x in inputs]
                for row, length in enumerate(case.where["key_lengths"]):
                    noisy[1][row, :, length:] = 50.0
                    noisy[2][row, :, length:] = -70.0
                same = backend(*inputs, **where)
                close(backend(*noisy, **where), same, f"results {said}", 1e-6)
    schemes = _schemes(device)
    together = tuple(schemes[name] for name in ("QueryTable", "KeyTable"))
    for position in ((), *((made,) for made in schemes.values()), together):
        scheme = " and ".join(type(s).__name__ for s in position) or "no scheme"
        for case in SCHEME_CASES if position else ():
            sizes = (case.queries, case.keys, case.keys)
            inputs = [torch.randn(2, 2, n, 16, device=device) for n in sizes]
            said = f"with {scheme}, {case.where or 'nothing else'}"
            _as_reference(subject, backend, inputs, position, case.where, said, "schemes")
        for causal, keys in ((True, PACKED), (False, PACKED), (False, OTHER)):
            if position and keys is OTHER:
                continue  # positions are for self-attention
            inputs = [torch.randn(1, 2, sum(n), 16, device=device) for n in (PACKED, keys, keys)]
            where = {"causal": causal, "cu_seqlens": tuple(map(_starts, (PACKED, keys)))}
            said = f"packed, with {scheme}, causal={causal}, sentences of {keys} keys"
            _as_reference(subject, backend, inputs, position, where, said, "packed")
    if backend.why_not(AttentionCall(device, gradient=False, dropout=True)):
        return
    with subject.promise("dropout"), torch.no_grad():
        torch.manual_seed(1)
        q, k = (torch.randn(8, 8, 32, 16, device=device) for _ in "qk")
        out = backend(q, k, torch.ones_like(q), dropout_p=0.5)
        require(float(out.std()) > 1e-3, "dropout_p=0.5 changes nothing")
        require(
            abs(float(out.mean()) - 1) < 0.1, f"weights sum to {float(out.mean()):.2f} on average"
        )
    if not backend.why_not(AttentionCall(device, dropout=True)):
        with subject.promise("dropout"):
            # Linear in v: what v gets back, times v, is what came out, times what it got.
            v, change = torch.randn_like(q).requires_grad_(), torch.randn_like(q)
            out = backend(q, k, v, dropout_p=0.5)
            (back,) = torch.autograd.grad(out, v, change)
            close((back * v).sum() / 100, (out * change).sum() / 100, "gradients and weights left")


def _agrees(subject, backend, inputs, where, exact, truth, said: str, promise: str) -> None:
    """Shape, result and gradients of a call, against `truth` made of `exact`."""
    position = where.get("position", ())
    kinds = frozenset(type(s).__name__ for s in position)
    call = AttentionCall(inputs[0].device.type, kinds, True, False, "cu_seqlens" in where)
    gradient = not backend.why_not(call)
    leaves = [x.clone().requires_grad_(gradient) for x in inputs]
    with torch.set_grad_enabled(gradient), subject.promise("shape"):
        out = backend(*leaves, **where)
        require(out.dtype == inputs[0].dtype, f"{out.dtype} {said}")
        require(out.shape == inputs[0].shape, f"{tuple(out.shape)} {said}")
    with subject.promise(promise):
        close(out.detach().double().cpu(), truth.detach(), f"results {said}", 1e-4)
    if gradient:
        with subject.promise("gradients"):
            change = torch.randn_like(truth)
            wanted = torch.autograd.grad(truth, exact, change)
            found = torch.autograd.grad(out, leaves, change.to(out))
            for letter, a, b in zip("qkv", found, wanted, strict=True):
                close(a.double().cpu(), b, f"gradients of {letter} {said}", 1e-3)


def _starts(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _as_reference(subject, backend, inputs, position, where, said: str, promise: str) -> None:
    kinds = frozenset(type(scheme).__name__ for scheme in position)
    if backend.why_not(
        AttentionCall(inputs[0].device.type, kinds, False, False, "cu_seqlens" in where)
    ):
        return
    exact = [x.double().cpu().requires_grad_() for x in inputs]
    options = {**_on("cpu", where), "position": tuple(map(_exact, position))}
    truth = reference.attention(*exact, **options)
    told = {**_on(str(inputs[0].device), where), "position": position}
    _agrees(subject, backend, inputs, told, exact, truth, said, promise)


def _exact(scheme: Any) -> Any:
    values = vars(scheme).items()
    return type(scheme)(**{k: v.double().cpu() if isinstance(v, Tensor) else v for k, v in values})


def _on(device: str, where: dict[str, Any]) -> dict[str, Any]:
    moved = dict(where)
    if "key_lengths" in moved:
        moved["key_lengths"] = torch.as_tensor(moved["key_lengths"], device=device)
    if "cu_seqlens" in moved:
        moved["cu_seqlens"] = tuple(cu.to(device) for cu in moved["cu_seqlens"])
    return moved


def _schemes(device: str) -> dict[str, Any]:
    """One of each, for two heads of 16 features."""
    torch.manual_seed(99)

    def table(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    return {
        "ClippedBias": positions.ClippedBias(table(2, 7)),
        "Linear": positions.Linear(table(2).abs()),
        "QueryTable": positions.QueryTable(table(1, 7, 16)),
        "KeyTable": positions.KeyTable(table(2, 7, 16)),
        "TransformerXL": positions.TransformerXL(table(2, 16), table(2, 16), table(2, 16, 6)),
        "Rotary": positions.Rotary(),
    }
