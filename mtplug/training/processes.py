"""The processes of one run: what `torchrun` started, or just this one."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mtplug.errors import UserError
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

    def union(self, names: set[str]) -> list[str]:
        """The names of all processes, in order."""
        if self.count == 1:
            return sorted(names)
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, names, group=_cpu_group())
        return sorted(set().union(*found))

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
        try:
            found = pick_device(f"cuda:{local}")
        except UserError as error:
            error.of_one_process = True
            raise
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if not dist.is_initialized():
        # The others wait while the first one validates, and while it writes the store.
        patience = timedelta(hours=12)
        backend = "nccl" if found.type == "cuda" else "gloo"
        store, rank, count = next(rendezvous("env://", timeout=patience))
        store.set_timeout(patience)
        # torchrun keeps one store over all its restarts (pytorch issue 135712): without a prefix of
        # its own, a restarted group finds the addresses of processes that are dead.
        own = dist.PrefixStore(_agreed_name(store, rank, count), store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=patience)
        _groups["cpu"] = dist.new_group(backend="gloo", timeout=patience)
    return Processes(dist.get_rank(), count, found)


def _agreed_name(store: dist.Store, rank: int, count: int) -> str:
    """A name for this start of the processes, the same in all of them and never used before.

    The store may hold what earlier starts left, and the count of restarts that torchrun tells differs
    between machines once one was replaced. So each process asks under a name of its own until the
    first one has answered that very question.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"mtplug/ask/{rank}", own)
        name = store.get(f"mtplug/answer/{own}").decode()
        store.set(f"mtplug/met/{name}/{rank}", "")
        return name
    missing = set(range(1, count))
    while missing:
        for other in sorted(missing):
            if store.check([f"mtplug/met/{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"mtplug/ask/{other}"]):
                asked = store.get(f"mtplug/ask/{other}").decode()  # may be one of an earlier start
                store.set(f"mtplug/answer/{asked}", own)
        time.sleep(0.01)
    return own


def leave() -> None:
    """End what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _groups.clear()
