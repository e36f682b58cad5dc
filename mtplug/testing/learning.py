"""Checks of criteria, optimizers and learning-rate schedules."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.base import Model
from mtplug.data.batching import Batch
from mtplug.data.tokenizers import PAD
from mtplug.errors import UserError
from mtplug.testing.material import (
    MeanWords,
    PackedMeanWords,
    WordsTask,
    logits_of,
    model_of,
    packed,
    padded,
    random_batch,
    rows_of,
)
from mtplug.testing.subject import Subject, close, equal, reached, require, same
from mtplug.training.checkpoints import flatten_optimizer, unflatten_optimizer
from mtplug.training.criterion_state import restore, saved, trained_parameters


def check_criterion(
    name: str, *settings: str, additive: bool = True, architecture: tuple[str, ...] = ()
) -> None:
    """Check a criterion against `mtplug-plugins docs criterion`.

    Args:
        name: of the criterion.
        settings: such as `smoothing=0.1`.
        additive: False for one that compares the sentences of a batch, whose `sum` then isn't that
            of its parts.
        architecture: name and settings of the model that it is checked on, for one that takes no other.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("criteria", name, settings)
    model, batch = model_of(architecture), random_batch()

    def made() -> Any:
        torch.manual_seed(1)
        criterion = subject.build(WordsTask())
        if fit := getattr(criterion, "fit", None):
            fit(iter([batch]))
        return criterion

    criterion = made()
    with subject.promise("loss"):
        torch.manual_seed(1)
        loss = criterion(model.train(), batch)
        require(loss.sum.ndim == 0 and bool(loss.sum.isfinite()), "`sum` is no finite scalar")
        require(loss.sum.requires_grad, "`sum` has no gradient")
        require(float(loss.count) > 0, f"`count` is {loss.count}")
        require(loss.nll.numel() == 1 and not loss.nll.requires_grad, "`nll` has a gradient")
        for part, value in loss.parts.items():
            scalar = value.numel() == 1 and not value.requires_grad
            require(scalar, f"part '{part}' is no scalar, or has a gradient")
    with subject.promise("gradients"):
        other, own = model_of(architecture), made()
        both = nn.ModuleDict({"model": other})
        if isinstance(own, nn.Module):
            both["criterion"] = own
        reached(both, lambda: own(other.train(), batch).sum)
    with subject.promise("determinism"):
        own = made()
        torch.manual_seed(1)
        equal(own(model, batch).sum, loss.sum, "losses of one seed")
    if isinstance(criterion, nn.Module):
        criterion.eval()
    with subject.promise("loss"):
        loss = criterion(model.eval(), batch)
    if model.autoregressive:
        with subject.promise("nll"):
            close(loss.nll.double().reshape(()), _nll(model, batch), "`nll` and its definition")
            same(float(loss.tokens), float(batch.target_lengths.sum()), "`tokens`")
    with subject.promise("direction"):
        before, after = _nll_trained(made(), batch, model_of(architecture))
        said = f"of the batch that it was trained on, from {before:.2f} to {after:.2f} nats"
        require(after < before, f"their negative log-likelihood went up {said}")
    with subject.promise("output_weight"):
        if not architecture:
            unfused = criterion(MeanWords(tied=False).eval(), batch)
            close(unfused.sum, loss.sum, "losses")
    with subject.promise("padding"):
        wide = criterion(model, padded(batch))
        close(wide.sum, loss.sum, "`sum` with and without more padding")
        same(float(wide.count), float(loss.count), "`count` with more padding")
    other = model if architecture else PackedMeanWords().eval()
    if other.takes_packed:
        with subject.promise("packed"), contextlib.suppress(UserError):
            row = criterion(other, packed(batch))
            close(row.sum, loss.sum, "`sum` of sentences in one row and apart")
            same(float(row.count), float(loss.count), "`count` of sentences in one row")
            close(row.nll, loss.nll, "`nll` of sentences in one row and apart")
    with subject.promise("batch"):
        parts = [criterion(model, rows_of(batch, rows)) for rows in ([0], [1, 2])]
        same(float(sum(p.count for p in parts)), float(loss.count), "`count` of two batches")
        same(float(sum(p.tokens for p in parts)), float(loss.tokens), "`tokens` of two batches")
        close(parts[0].nll + parts[1].nll, loss.nll, "`nll` of two batches and of both together")
        if additive:
            close(
                parts[0].sum + parts[1].sum, loss.sum, "`sum` of two batches and of both together"
            )
    with subject.promise("state"):
        _goes_on(made, batch, lambda: model_of(architecture))


def _goes_on(made: Callable[[], Any], batch: Batch, model_made: Callable[[], Model]) -> None:
    """A fresh criterion with the saved state of another goes on as that one does, and nothing stays untrained."""

    def losses(criterion: Any, model: Model) -> list[Tensor]:
        own = trained_parameters(criterion).values()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam([*trained, *own], lr=0.02)
        found = []
        for seed in range(2):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            loss = criterion(model.train(), batch)
            (loss.sum / loss.count).backward()
            optimizer.step()
            found.append(loss.sum.detach())
        return found

    criterion, model = made(), model_made()
    known = {id(p) for p in [*trained_parameters(criterion).values(), *model.parameters()]}
    start = {n: p.detach().clone() for n, p in _parameters_in(criterion).items()}
    losses(criterion, model)
    for name, parameter in _parameters_in(criterion).items():
        left = id(parameter) not in known and parameter.grad is not None
        if left and (name not in start or torch.equal(parameter, start[name])):
            module = isinstance(criterion, nn.Module)
            why = "it was not there from the start" if module else "the criterion is no nn.Module"
            raise AssertionError(f"{name} has a gradient, but is never trained: {why}")
    plain, tensors = saved(criterion)
    fresh, copy = made(), model_made()
    copy.load_state_dict(model.state_dict())
    if plain or tensors:
        restore(fresh, plain, {name: t.clone() for name, t in tensors.items()})
        again = saved(fresh)
        same(
            (again[0], again[1].keys()),
            (plain, tensors.keys()),
            "`state_dict()` after `load_state_dict`",
        )
        for name, tensor in tensors.items():
            equal(again[1][name], tensor, f"{name} saved and loaded, and saved at first,")
    said = "losses of one that goes on, and of a fresh one with its `state_dict`,"
    if not (plain or tensors):
        said = "losses of one that goes on, and of a fresh one, as it has no `state_dict`,"
    for a, b in zip(losses(fresh, copy), losses(criterion, model), strict=True):
        equal(a, b, said)


def _parameters_in(criterion: Any) -> dict[str, Tensor]:
    """Trainable parameters that are its attributes, or those of modules that are."""
    found: dict[str, Tensor] = {}
    if isinstance(criterion, nn.Module):
        found.update(criterion.named_parameters())
    for name, value in vars(criterion).items() if hasattr(criterion, "__dict__") else ():
        if isinstance(value, nn.Module):
            found.update((f"{name}.{n}", p) for n, p in value.named_parameters())
        elif isinstance(value, nn.Parameter):
            found[name] = value
    return {name: p for name, p in found.items() if p.requires_grad}


@torch.no_grad()
def _nll(model: Model, batch: Batch) -> Tensor:
    """Negative log-likelihood of the references, in nats."""
    log_probs = logits_of(model.eval(), batch).double().log_softmax(-1)
    right = log_probs.gather(2, batch.target_tokens[..., None])[..., 0]
    return -right[batch.target_tokens != PAD].sum()


def _nll_trained(criterion: Any, batch: Batch, model: Model) -> tuple[float, float]:
    """`_nll` of a model, or what the criterion gives for one without an order of tokens, before and after 20
    updates on one batch."""

    def nll() -> float:
        with torch.no_grad():
            ordered = model.eval().autoregressive
            return float(_nll(model, batch) if ordered else criterion(model, batch).nll)

    before = nll()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        loss = criterion(model.train(), batch)
        (loss.sum / loss.count).backward()
        optimizer.step()
    return before, nll()


def check_optimizer(name: str, *settings: str, updates: int = 50) -> None:
    """Check an optimizer against `mtplug-plugins docs optimizer`.

    Args:
        name: of the optimizer.
        settings: such as `lr=0.01`, with which `updates` steps get lower in a bowl.
        updates: see above.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("optimizers", name, settings)

    def model() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))

    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = (net(inputs) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    net = model()
    optimizer = subject.build(list(net.parameters()))
    with subject.promise("optimizer"):
        require(isinstance(optimizer, torch.optim.Optimizer), f"it is a {type(optimizer).__name__}")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        same(len(held), len(list(net.parameters())), "parameters that it steps")
        rates = [group["lr"] for group in optimizer.param_groups]
        require(all(rate > 0 for rate in rates), f"learning rates {rates}")
        peak = getattr(subject.selected.config, "lr", None)
        require(peak is None or peak in rates, f"learning rates {rates}, where lr is set to {peak}")
    with subject.promise("descends"):
        losses = steps(net, optimizer, updates)
        require(losses[-1] < losses[0], f"from {losses[0]:.4f} to {losses[-1]:.4f}")
    with subject.promise("determinism"):
        other = model()
        steps(other, subject.selected.build(list(other.parameters())), updates)
        for a, b in zip(other.parameters(), net.parameters(), strict=True):
            equal(a, b, "weights after the same gradients")
    with subject.promise("save"):
        plain, tensors = flatten_optimizer(optimizer.state_dict())
        copy = model()
        copy.load_state_dict(net.state_dict())
        resumed = subject.selected.build(list(copy.parameters()))
        read = unflatten_optimizer(
            json.loads(json.dumps(plain)), {k: v.clone() for k, v in tensors.items()}
        )
        resumed.load_state_dict(read)
        steps(copy, resumed, 3)
        steps(net, optimizer, 3)
        for a, b in zip(copy.parameters(), net.parameters(), strict=True):
            equal(a, b, "weights with a state loaded again and with the one kept")
    if hasattr(optimizer, "averaged_weights"):
        with subject.promise("average"), torch.no_grad():
            own = [p.clone() for p in net.parameters()]
            averages = optimizer.averaged_weights()
            same(len(averages), len(own), "averages")
            for p, then, average in zip(net.parameters(), own, averages, strict=True):
                equal(p, then, "weights before and after averages were asked for")
                same(average.shape, p.shape, "shape of an average")
                require(bool(average.isfinite().all()), "an average is not finite")
    with subject.promise("alone"):
        bare = model()
        stepped = subject.selected.build(list(bare.parameters()))
        left = next(bare.parameters())
        kept = left.detach().clone()
        for _ in range(2):
            (bare(inputs) - 1).square().mean().backward()
            left.grad = None
            stepped.step()
        equal(left, kept, "weights without a gradient before and after two steps")
    with subject.promise("rate"):
        moved = []
        for factor in (1.0, 0.01):
            start, some = model(), model()
            stepped = subject.selected.build(list(some.parameters()))
            for group in stepped.param_groups:
                group["lr"] *= factor
            steps(some, stepped, 1)
            both = zip(some.parameters(), start.parameters(), strict=True)
            moved.append(sum(float((p - q).detach().abs().sum()) for p, q in both))
        require(moved[1] < moved[0], "with a hundredth of the learning rate it moves as far")
        before = [p.detach().clone() for p in net.parameters()]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        steps(net, optimizer, 2)
        for now, then in zip(net.parameters(), before, strict=True):
            equal(now, then, "weights before and after updates of rate zero")


def check_lr_scheduler(name: str, *settings: str, max_updates: int = 100) -> None:
    """Check a schedule against `mtplug-plugins docs lr_scheduler`.

    Args:
        name: of the schedule.
        settings: such as `warmup_updates=10`.
        max_updates: what it is built for.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("lr_schedulers", name, settings)
    updates = range(1, max_updates + 1)
    schedule = subject.build(max_updates)
    with subject.promise("range"):
        factors = {update: schedule(update) for update in updates}
        for update, factor in factors.items():
            kind = type(factor).__name__
            require(isinstance(factor, int | float), f"the factor of update {update} is a {kind}")
            inside = math.isfinite(factor) and -1e-9 <= factor <= 1 + 1e-9
            require(inside, f"the factor of update {update} is {factor}")
        require(any(factors.values()), "the factor is 0 throughout")
    with subject.promise("memory"):
        fresh = subject.selected.build(max_updates)
        for update in (max_updates, 1, max_updates // 2, max_updates // 3):
            for made, whose in ((schedule, "the same"), (fresh, "a fresh")):
                same(float(made(update)), factors[update], f"{whose} schedule's update {update}")
    with subject.promise("state"):
        if hasattr(schedule, "validated"):
            told = [number % 7 == 3 for number in range(24)]
            for better in told[:16]:
                schedule.validated(better)
            fresh.restore(json.loads(json.dumps(schedule.state())))
            for made in (schedule, fresh):
                for better in told[16:]:
                    made.validated(better)
            for update in (1, max_updates, 10**6):  # long after any warm-up
                factor = float(schedule(update))
                require(-1e-9 <= factor <= 1 + 1e-9, f"the factor of update {update} is {factor}")
                same(float(fresh(update)), factor, f"a restored schedule's update {update}")
    with subject.promise("beyond"):
        factor = float(schedule(2 * max_updates))
        require(-1e-9 <= factor <= 1 + 1e-9, f"the factor of update {2 * max_updates} is {factor}")
