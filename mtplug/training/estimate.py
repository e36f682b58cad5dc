"""`mtplug-train --estimate`: parameters, memory and time of a run, measured before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.data.batching import Batch
from mtplug.training.precision import resolved
from mtplug.training.trainer import Trainer
from mtplug.training.units import duration
from mtplug.training.units import memory as in_units

UPDATES, SECONDS = 10, 20.0
"""Timing ends after so many updates, or so many seconds with at least two updates."""


def estimate(trainer: Trainer, report: Callable[[str], None]) -> dict[str, Any]:
    """Take some updates with a trainer, which is used up by it, and tell what the run will need.

    Nothing is written. All processes of the run call it.

    Args:
        trainer: new.
        report: is told line by line.

    Returns:
        `parameters`, `trainable`, `parts` (by name, parameters); `weights`, `gradients`, `optimizer`,
        `activations`, `criterion` (what it holds, such as a teacher), `peak` (bytes on each process's device;
        `peak` is None on CPUs);
        `seconds_per_epoch`, `updates_per_epoch`, `tokens_per_second` (target tokens).

    Raises:
        MtplugError: the largest batch does not fit into memory, or a loss is not finite.
    """
    run, processes, updater = trainer.run, trainer.processes, trainer.updater
    found = _parameters(trainer.model)
    report(f"model: {run.architecture.name}, {found['parameters']:,} parameters, "
           f"{found['trainable']:,} of them trainable")  # fmt: skip
    for name, count in found["parts"].items():
        report(f"  {name}: {count:,}")

    trainer.model.train()
    groups = trainer.groups_of_batches()
    trainer.step(next(groups))  # memory and caches are then as they stay
    memory = {
        "weights": _bytes(_tensors(trainer.model)),
        "gradients": _bytes(updater.parameters),
        "optimizer": _bytes(_tensors(updater.optimizer.state)) + _bytes(updater.ema),
    }
    batch = trainer.data.heaviest()
    memory["activations"], peak, halved = _activations(trainer, batch)
    memory["criterion"] = _bytes(_of_criterion(trainer))
    found |= memory | {"peak": peak}
    place = f"{trainer.device}" + (", of each process" if processes.count > 1 else "")
    report(f"memory on {place}: {in_units(sum(memory.values()))}")
    for name, size in memory.items():
        if size or name != "criterion":  # most have none
            report(f"  {name}: {in_units(size)}")
    tokens = batch.source_tokens.numel(), batch.target_tokens.numel()
    cut = f", which does not fit unless cut in {2**halved}" if halved else ""
    report(
        "  method: weights, gradients and optimizer are sizes of their tensors after an update; activations "
        f"are what forward passes keep for backward, in {resolved(run.training.precision, trainer.device)}, of the largest batch "
        f"({len(batch)} pairs, {tokens[0]} + {tokens[1]} tokens with padding{cut}), "
        + (
            f"which ran; at most {in_units(peak)} were in use"
            if peak is not None
            else "which ran; what operations need while they run, and Python and torch themselves, come on top"
        )
    )
    found |= _time(trainer, groups, report)
    return found


def _parameters(model: nn.Module) -> dict[str, Any]:
    """Counts of parameters: shared ones once, with the first part that has them."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"parameters": sum(parts.values()), "trainable": trainable, "parts": parts}


def _activations(trainer: Trainer, batch: Batch) -> tuple[int, int | None, int]:
    """Bytes kept for backward, the device's peak in bytes, and how often the batch was halved."""
    own = {_storage(p) for p in [*_tensors(trainer.model), *_of_criterion(trainer)]}
    kept: set[int] = set()
    now = most = 0
    backward = False

    def pack(tensor: Tensor) -> Tensor:
        nonlocal now, most, backward
        if backward:  # the next part of a batch that was cut
            kept.clear()
            now, backward = 0, False
        key = _storage(tensor)
        if key not in own and key not in kept:
            kept.add(key)
            now += _local(tensor).untyped_storage().nbytes()
            most = max(most, now)
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        nonlocal backward
        backward = True
        return tensor

    cuda = trainer.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(trainer.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        halved = trainer.updater.attempt(batch)
    return most, torch.cuda.max_memory_allocated(trainer.device) if cuda else None, halved


def _time(trainer: Trainer, groups: Any, report: Callable[[str], None]) -> dict[str, Any]:
    """Time of an epoch, from that of some updates on batches in the order of training."""
    processes, data = trainer.processes, trainer.data
    elapsed, updates, tokens = 0.0, 0, 0
    epoch = math.ceil(data.epoch_batches() / (trainer.run.training.accumulate * processes.count))
    for share in groups:
        if data.offset == 0:  # the epoch's last update, of which no later one is like
            break
        started = time.perf_counter()
        trainer.step(share)
        elapsed += time.perf_counter() - started
        own = [elapsed, sum(batch.target_count for batch, counts in share if counts)]
        together = processes.sum(own)
        updates, tokens = updates + 1, tokens + int(together[1])
        if updates >= UPDATES or (updates >= 2 and together[0] / processes.count > SECONDS):
            break
    if not updates:
        report("time: the epoch has too few updates to measure it")
        return {"seconds_per_epoch": None, "updates_per_epoch": None, "tokens_per_second": None}
    seconds = elapsed / updates * epoch
    limit = trainer.run.training.max_updates
    report(
        f"time: {duration(seconds)} an epoch of about {epoch:,.0f} updates, {tokens / elapsed:,.0f} target tokens "
        f"a second; {duration(elapsed / updates * limit)} for training.max_updates={limit} ({limit / epoch:.1f} epochs)"
    )
    report(f"  method: {updates} updates took {elapsed:.2f} s after one that was not counted; validation and "
           "checkpoints come on top")  # fmt: skip
    return {
        "seconds_per_epoch": seconds,
        "updates_per_epoch": epoch,
        "tokens_per_second": tokens / elapsed,
    }


def _local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _storage(tensor: Tensor) -> int:
    return _local(tensor).untyped_storage().data_ptr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_local(t).numel() * t.element_size() for t in tensors)


def _of_criterion(trainer: Trainer) -> list[Tensor]:
    """What a criterion holds, such as parameters or a teacher, and the model does not."""
    own = {_storage(tensor) for tensor in _tensors(trainer.model)}
    held = {_storage(t): t for t in _tensors(getattr(trainer.criterion, "__dict__", {}))}
    return [tensor for key, tensor in held.items() if key not in own]


def _tensors(value: Any) -> list[Tensor]:
    """All tensors of a module, or in dictionaries and lists such as an optimizer's state."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for one in inner for tensor in _tensors(one)]
