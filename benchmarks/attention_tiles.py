"""How long a kernel of a training step takes on a GPU with other tiles than those of ``tuning.py``.

    python benchmarks/attention_tiles.py none/128/forward=128,64,8,2:128,64,8,3 t5_bias/64/backward_queries=64,64,4,3,168

For a scheme of `mtplug-bench run attention`, a head size and a kernel: the shipped tile and each of those given (queries,
keys, warps, stages and, if wanted, most registers of a thread). bf16, both directions, 4 sequences of 8,192 positions, 16
heads. All take turns in a random order, a step that does not count and then one in torch's profiler. Microseconds of the
kernel, medians of 8 rounds (least and most), beside the shipped tile's and the kernels of the whole step.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from mtplug_kernels import attention, operators, tuning

from mtplug.bench.attention import _act, _Size, scheme_of

ROUNDS, LENGTH = 8, 8192


class Case(NamedTuple):
    """One kernel with one tile; without numbers, the shipped one."""

    scheme: str
    size: int
    kernel: str
    numbers: tuple[int, ...] = ()


def cases_of(arguments: list[str]) -> list[Case]:
    found = []
    for argument in arguments:
        where, _, tiles = argument.partition("=")
        scheme, size, kernel = where.split("/")
        found.append(Case(scheme, int(size), kernel))
        for tile in tiles.split(":"):
            found.append(Case(scheme, int(size), kernel, tuple(map(int, tile.split(",")))))
    return found


def step_of(case: Case, length: int, made: dict) -> Callable[[], None]:
    """A training step in which the case's kernel has its tile; steps of one scheme share tensors."""
    key = case.scheme, case.size, length
    if key not in made:
        generator = torch.Generator(device="cuda").manual_seed(0)

        def leaf(*dims: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.randn(*dims, generator=generator, device="cuda").to(dtype).requires_grad_()

        shape = _Size(length, case.size, False, 64)
        q, k, v = (leaf(4, 16, length, case.size) for _ in range(3))
        position = scheme_of(case.scheme, 16, shape, leaf)
        tensors = [t for s in position for t in vars(s).values() if isinstance(t, torch.Tensor)]
        needed = [q, k, v, *(t for t in tensors if t.requires_grad)]
        made[key] = _act(attention, q, k, v, position, False, True, needed)

    def blocks(kernel: str, *rest) -> tuning.Blocks:
        if kernel == case.kernel and case.numbers:
            return tuning.Blocks(*case.numbers)
        return tuning.blocks(kernel, *rest)

    def step() -> None:
        operators.blocks = blocks
        made[key]()

    return step


def compiled(case: Case) -> str:
    """Compile what a step needs, for the cache on disk; what is wrong, if it cannot be."""
    try:
        step_of(case, 512, {})()
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit(f"attention_tiles.py: torch {torch.__version__} finds no NVIDIA GPU here")
    from torch.profiler import ProfilerActivity, profile

    cases = cases_of(sys.argv[1:])
    with ProcessPoolExecutor(
        min(14, os.cpu_count() or 1), multiprocessing.get_context("spawn")
    ) as pool:
        failed = dict(zip(cases, pool.map(compiled, cases), strict=True))
    made: dict = {}
    steps = {case: step_of(case, LENGTH, made) for case in cases if not failed[case]}
    times: dict[Case, dict[str, list[float]]] = {case: defaultdict(list) for case in steps}
    order = random.Random(0)
    for _ in range(ROUNDS):
        for case in order.sample(list(steps), len(steps)):
            steps[case]()
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                steps[case]()
                torch.cuda.synchronize()
            events = seen.key_averages()
            times[case]["all"].append(sum(e.device_time_total for e in events))
            times[case]["kernel"].append(
                sum(e.device_time_total for e in events if e.key == case.kernel)
            )
    for case in cases:
        if failed[case]:
            print(f"{case}: {failed[case]}")
            continue
        kernel, whole = times[case]["kernel"], statistics.median(times[case]["all"])
        shipped = statistics.median(times[case._replace(numbers=())]["kernel"])
        if not shipped:
            print(f"{case}: no such kernel in this step")
            continue
        print(
            f"{'/'.join(map(str, case[:3]))} {case.numbers or 'shipped'}: {statistics.median(kernel):.0f} "
            f"({min(kernel):.0f}-{max(kernel):.0f}) of {whole:.0f}, {statistics.median(kernel) / shipped:.3f} of shipped",
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
