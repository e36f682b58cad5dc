"""The processes of one run: what `torchrun` started, or just this one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mtplug.training.precision import pick_device


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: what it computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all processes, in float64."""
        if self.count == 1:
            return values
        # Some accelerators have no float64: these few numbers travel through the CPU group.
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=_cpu_group())
        return total.tolist()

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """A CPU tensor of each process, in all processes."""
        if self.count == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(found, tensor, group=_cpu_group())
        return found

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier(group=_cpu_group())


_groups: dict[str, dist.ProcessGroup] = {}


def _cpu_group() -> dist.ProcessGroup:
    return _groups["cpu"]


def join(device: str) -> Processes:
    """Meet the others that `torchrun` started; alone where it did not.

    Raises:
        UserError: there is no such device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes(0, 1, pick_device(device))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    found = pick_device(device)
    if found.type == "cuda" and found.index is None:
        found = pick_device(f"cuda:{local}")
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if not dist.is_initialized():
        # The others wait while the first one validates, and while it writes the store.
        patience = timedelta(hours=12)
        backend = "nccl" if found.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=patience)
        _groups["cpu"] = dist.new_group(backend="gloo", timeout=patience)
    return Processes(dist.get_rank(), count, found)


def leave() -> None:
    """End what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _groups.clear()
