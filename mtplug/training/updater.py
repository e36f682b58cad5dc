"""One update: gradients of a group of batches, over all processes, in the chosen precision.

With N processes an update takes the batches that one process with N-fold accumulation would, and its
gradient is the same sum: losses are sums over tokens, divided by the tokens of all.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.base import output_of
from mtplug.config.schema import TrainingConfig
from mtplug.criteria import Loss
from mtplug.data.batching import Batch
from mtplug.errors import MtplugError, UserError
from mtplug.optim.rates import lr_factor, split_rates
from mtplug.optim.tables import mark_tables
from mtplug.peft.files import named_as
from mtplug.training import checkpoints as ckpt
from mtplug.training.criterion_state import restore, saved, trained_parameters
from mtplug.training.precision import LossScale, autocast
from mtplug.training.processes import Processes


@dataclass
class Totals:
    """What one update saw, summed over processes.

    Attributes:
        loss, nll: sums over all batches, in nats.
        count, tokens: what they are divided by.
        padded: target positions, padding included.
        real: of these, those without padding.
        norm: of the gradient, before clipping.
        taken: false where fp16 overflowed and the update was left out.
        notes: of each process, summed: what `Updater.step` was told.
        parts: sums of `Loss.parts`, by name.
    """

    loss: float
    nll: float
    count: int
    tokens: int
    padded: int
    real: int
    norm: float
    taken: bool
    notes: list[float]
    parts: dict[str, float]


class Objective(nn.Module):
    """Model and criterion as one module, so that whatever wraps it sees every forward pass."""

    def __init__(self, model: nn.Module, criterion: Any):
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, batch: Batch) -> Loss:
        loss = self.criterion(self.model, batch)
        if not isinstance(loss, Loss):
            raise UserError(
                f"criterion {type(self.criterion).__name__} gives a {type(loss).__name__}; it has to be a "
                "mtplug.criteria.Loss"
            )
        return loss


class Updater:
    """Model, optimizer and processes.

    Args:
        model: on its device.
        criterion: see `mtplug.criteria`; the parameters of one that is a module are trained with the model's.
        optimizer_of: makes the optimizer of a list of parameters.
        config: the group `training`.
        processes: of the run.

    Raises:
        UserError: what was chosen does not go together.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        optimizer_of: Any,
        config: TrainingConfig,
        processes: Processes,
    ):
        self.model, self.config, self.processes = model, config, processes
        self.criterion = criterion
        self.objective: nn.Module = Objective(model, criterion)
        self.sharded = config.parallel == "fsdp" and processes.count > 1
        self.whole_copy = copy.deepcopy(model) if self.sharded and processes.main else None
        own = trained_parameters(criterion)
        if self.sharded and isinstance(criterion, nn.Module) and list(criterion.parameters()):
            raise UserError(
                f"training.parallel: fsdp would cut up the parameters of criterion {type(criterion).__name__}; "
                "set parallel=ddp"
            )
        if config.compile:
            self.objective.compile(dynamic=True)
        if self.sharded:
            _shard(self.objective)
        elif processes.count > 1:
            index = processes.device.index
            wrapper, saved = nn.parallel.DistributedDataParallel, self.objective.state_dict().keys()
            # Buffers that are not saved are tables that each process makes as long as its sentences need.
            tables = [name for name, _ in self.objective.named_buffers() if name not in saved]
            wrapper._set_params_and_buffers_to_ignore_for_model(self.objective, tables)
            self.objective = wrapper(self.objective, device_ids=None if index is None else [index])
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        # Those with a rate of their own come last, which is how the optimizer numbers them too.
        self._trained = sorted(trained, key=lambda named: lr_factor(named[1]))
        both = [*(p for _, p in self._trained), *own.values()]
        self.parameters: list[Tensor] = sorted(both, key=lr_factor)
        self._of_criterion = {id(p) for p in own.values()}
        self._frozen: list[nn.Parameter] = []
        # The names of all `Loss.parts` so far, the same in all processes.
        self._parts: list[str] = []
        for module in (model, criterion) if own else (model,):
            mark_tables(module, output_of(module)[0])
        self.optimizer: torch.optim.Optimizer = optimizer_of(self.parameters)
        if self.sharded and getattr(self.optimizer, "needs_whole_weights", False):
            raise UserError(
                "training.parallel: this optimizer needs whole weights; set parallel=ddp"
            )
        split_rates(self.optimizer)
        self.scale = LossScale() if config.precision == "fp16" else None
        self.ema: list[Tensor] = []
        if config.ema_decay:
            self.ema = [p.detach().clone() for _, p in self._trained]
        if self.ema and hasattr(self.optimizer, "averaged_weights"):
            raise UserError(
                "training.ema_decay: this optimizer averages the weights itself; set ema_decay=0"
            )

    def freeze(self, names: set[str]) -> None:
        """Leave the parameters of these names, and no others, as they are from now on."""
        parameters = [p for n, p in self._trained if n in names]
        # A backward pass that needs no gradients stops early. Several processes have agreed on whose
        # gradients they exchange, so there they are computed and thrown away.
        if self.processes.count == 1:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            for parameter in parameters:
                parameter.requires_grad_(False)
        self._frozen = parameters

    # --- an update ----------------------------------------------------------------------------

    def step(self, share: list[tuple[Batch, bool]], update: int, notes: list[float]) -> Totals:
        """One optimizer step on the mean loss over all tokens of all processes.

        Args:
            share: this process's batches, and whether each counts; as many in every process.
            update: its number, from 1.
            notes: numbers to be summed over processes along the way.

        Raises:
            MtplugError: out of memory, and no batch can be made smaller.
        """
        if begin := getattr(self.criterion, "begin_update", None):
            begin(update)
        losses = self._gradients_that_fit(share)
        own = [
            sum(float(loss.sum.detach()) for loss in losses),
            sum(float(loss.nll) for loss in losses),
            sum(loss.count for loss in losses),
            sum(loss.tokens for loss in losses),
            sum(batch.target_tokens.numel() for batch, counts in share if counts),
            sum(batch.target_count for batch, counts in share if counts),
        ]
        parts = dict.fromkeys(self._parts, 0.0)
        for loss in losses:
            for name, part in loss.parts.items():
                parts[name] = parts.get(name, 0.0) + float(part)
        fresh = float(len(parts) > len(self._parts))
        known = [parts[name] for name in self._parts]
        fresh, *summed = self.processes.sum([fresh, *known, *own, *notes])
        named, summed = summed[: len(known)], summed[len(known) :]
        total, nll, count, tokens, padded, real, *rest = summed
        if fresh:  # the first time that a part occurs, which it need not do in all processes
            self._parts = self.processes.union(set(parts))
            named = self.processes.sum([parts.get(name, 0.0) for name in self._parts])
        for frozen in self._frozen:
            frozen.grad = None
        scale = self.scale.value if self.scale else 1.0
        # DDP and FSDP average over processes; this makes it the mean over tokens.
        divisor = max(count, 1) * scale / self.processes.count
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.div_(divisor)
        clip = self.config.clip_norm or math.inf
        clipped = torch.nn.utils.clip_grad_norm_(self.parameters, clip, foreach=not self.sharded)
        norm = float(_full(clipped))
        taken = self.scale is None or math.isfinite(norm)
        if self.scale:
            self.scale.adapt(overflowed=not taken)
        if taken and math.isfinite(norm) and math.isfinite(total):
            self.optimizer.step()
            if self.ema:
                decay = ema_decay(self.config.ema_decay, update)
                torch._foreach_lerp_(self.ema, [p for _, p in self._trained], 1 - decay)
        sizes = (int(count), int(tokens), int(padded), int(real))
        found = dict(zip(self._parts, named, strict=True))
        return Totals(total, nll, *sizes, norm, taken, rest, found)

    def _gradients_that_fit(self, share: list[tuple[Batch, bool]]) -> list[Loss]:
        """Gradients, with batches halved where they do not fit into memory."""
        self.halved = 0
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._gradients(share)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self.processes.count > 1 or not any(len(b) > 1 for b, _ in share):
                    told = MtplugError(
                        f"out of memory ({str(error).splitlines()[0]}); set a smaller "
                        "training.max_tokens with a larger training.accumulate"
                    )
                    told.of_one_process = True
                    raise told from None
            self.halved += 1
            if self.processes.device.type == "cuda":
                torch.cuda.empty_cache()
            share = [(half, True) for batch, _ in share for half in batch.halves()]

    def attempt(self, batch: Batch) -> int:
        """Forward and backward of a batch that leave no trace: does it fit into memory?

        Returns:
            how often it has to be halved until it does.

        Raises:
            MtplugError: out of memory, and the batch can't be made smaller.
        """
        device = self.processes.device
        kept = [(b, b.clone()) for b in self.objective.buffers()]
        state = saved(self.criterion)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._gradients_that_fit([(batch, True)])
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        if any(state):
            restore(self.criterion, *state)
        return self.halved

    def _gradients(self, share: list[tuple[Batch, bool]]) -> list[Loss]:
        losses = []
        scale = self.scale.value if self.scale else 1.0
        for number, (batch, counts) in enumerate(share, start=1):
            with self._synchronised(number == len(share)):
                with autocast(self.processes.device, self.config.precision):
                    loss = self.objective(batch.to(self.processes.device))
                (loss.sum * (scale if counts else 0.0)).backward()
            if counts:
                losses.append(loss)
        return losses

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        """Gradients travel between processes after the last pass only."""
        if self.sharded:
            self.objective.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif self.processes.count > 1 and not last:
            return self.objective.no_sync()  # type: ignore[operator]
        return contextlib.nullcontext()

    # --- weights ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module | None]:
        """The model to validate with: whole, averaged where weights are averaged; main process only."""
        weights = self.weights()
        if not self.processes.main:
            yield None
        elif self.whole_copy is not None:
            ckpt.load_weights(self.whole_copy, weights, "the model")
            yield self.whole_copy
        elif self._averaged():
            own = {k: v.clone() for k, v in ckpt.weights(self.model).items()}
            ckpt.load_weights(self.model, weights, "the model")
            try:
                yield self.model
            finally:  # a checkpoint follows where a metric failed
                ckpt.load_weights(self.model, own, "the model")
        else:
            yield self.model
        self.processes.wait()

    def _averaged(self) -> list[Tensor]:
        """The averages of the model's trained parameters that translate in their place, if there are any."""
        if hasattr(self.optimizer, "averaged_weights"):
            averages = zip(self.parameters, self.optimizer.averaged_weights(), strict=True)
            return [average for p, average in averages if id(p) not in self._of_criterion]
        return self.ema

    def weights(self) -> dict[str, Tensor]:
        """What translates: all weights, averages of those that have one. All processes call."""
        found = {name: _full(t) for name, t in ckpt.weights(self.model).items()}
        if averaged := self._averaged():
            found |= {n: _full(t) for (n, _), t in zip(self._trained, averaged, strict=True)}
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What else a resumed run needs, as JSON and tensors. All processes call."""
        plain, tensors = ckpt.flatten_optimizer(self.optimizer.state_dict())
        tensors = {name: _full(t) for name, t in tensors.items()}
        if self._averaged():
            tensors |= {f"raw.{n}": _full(t) for n, t in ckpt.weights(self.model).items()}
        for rank, one in enumerate(self.processes.gather(torch.get_rng_state())):
            tensors[f"rng.cpu.{rank}" if rank else "rng.cpu"] = one
        if self.processes.device.type == "cuda":
            own = torch.cuda.get_rng_state(self.processes.device)
            for rank, one in enumerate(self.processes.gather(own)):
                tensors[f"rng.cuda.{rank}" if rank else "rng.cuda"] = one
        if self.scale:
            plain["loss_scale"] = self.scale.state()
        of_criterion = saved(self.criterion)
        if any(of_criterion):
            plain["criterion"] = of_criterion[0]
            tensors |= of_criterion[1]
        return plain, tensors

    def restore(
        self,
        weights: dict[str, Tensor],
        plain: dict[str, Any],
        tensors: dict[str, Tensor],
        where: Any,
    ) -> str:
        """Continue from what `weights` and `state` gave, on any number of processes.

        Returns:
            what could not be continued, in a line; empty: nothing.
        """
        raw = {n[4:]: t for n, t in tensors.items() if n.startswith("raw.")}
        weights = named_as(ckpt.weights(self.model), weights)
        ckpt.load_weights(self.model, raw or weights, where)
        if self.ema:
            for ema, (name, _) in zip(self.ema, self._trained, strict=True):
                ema.copy_(ckpt.like(weights[name], ema))
        state = ckpt.unflatten_optimizer(plain, tensors)
        told = ""
        if "criterion" in plain:
            restore(self.criterion, plain["criterion"], tensors, where)
        elif any(saved(self.criterion)):
            told = f"{where} has no state of criterion {type(self.criterion).__name__}, which starts afresh"
            state = self._numbered(state)
        if self.sharded:
            ordered = self._ordered()
            for index, values in state["state"].items():
                p = ordered[index]
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        values[key] = ckpt.like(value, p)
        self.optimizer.load_state_dict(state)
        if self.scale and "loss_scale" in plain:
            self.scale.restore(plain["loss_scale"])
        rank = self.processes.rank
        for key, setter in (("rng.cpu", torch.set_rng_state), ("rng.cuda", self._set_cuda)):
            name = f"{key}.{rank}" if rank else key
            if name in tensors:
                setter(tensors[name])
        return told

    def _numbered(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state that knows nothing of the criterion's parameters, in numbers that count them."""
        now = self.optimizer.state_dict()["param_groups"]
        of_model = [n for n, p in enumerate(self._ordered()) if id(p) not in self._of_criterion]
        groups = zip(state["param_groups"], now, strict=True)
        return {
            "state": {of_model[number]: values for number, values in state["state"].items()},
            "param_groups": [{**old, "params": new["params"]} for old, new in groups],
        }

    def _ordered(self) -> list[Tensor]:
        """Parameters in the order of the optimizer's numbers, which is one of its own where it puts them into groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _set_cuda(self, state: Tensor) -> None:
        if self.processes.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.processes.device)


def ema_decay(final: float, update: int) -> float:
    """The moving average's decay at an update, from 1: it rises to `final`, as in Marian, so that early averages
    are not mostly of the initial weights."""
    return min(final, (1 + update) / (10 + update))


def _shard(objective: nn.Module) -> None:
    """FSDP2: each layer of each stack by itself, the rest together."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    factors = {name: lr_factor(p) for name, p in objective.named_parameters()}
    for module in objective.modules():
        if isinstance(module, nn.ModuleList):
            for layer in dict.fromkeys(module):  # where layers are shared, each once
                if any(p.requires_grad for p in layer.parameters()):
                    fully_shard(layer)
    fully_shard(objective)
    for name, parameter in objective.named_parameters():  # which are others now
        parameter.lr_factor = factors[name]  # type: ignore[attr-defined]
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            # On CPUs, torch 2.8 takes the sum where it is asked for the mean.
            module.set_force_sum_reduction_for_comms(True)


def _out_of_memory(error: RuntimeError) -> bool:
    """Of an accelerator, or of the CPU, for which torch has no type of error."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that processes share, which is a `DTensor`."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
