"""How long each kernel of a training step takes on a GPU, by torch's profiler.

    python benchmarks/attention_kernels.py none,t5_bias,shaw [kernels/ of another version ...]

bf16, both directions, 4 sequences of 8,192 positions, 16 heads of 64 features, schemes as in `mtplug-bench run
attention`. Each version runs in a process of its own, in which the schemes take turns in a random order: a
step that does not count, then 4 in the profiler. Microseconds of a step, medians of 6 rounds (quartiles).
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent.parent
ROUNDS, STEPS = 6, 4


def measure(names: list[str]) -> None:
    """Print the table of the mtplug_kernels that Python finds first."""
    import torch
    from mtplug_kernels import attention
    from torch.profiler import ProfilerActivity, profile

    from mtplug.bench.attention import _act, _Size, scheme_of

    if not torch.cuda.is_available():
        sys.exit(f"attention_kernels.py: torch {torch.__version__} finds no NVIDIA GPU here")
    generator = torch.Generator(device="cuda").manual_seed(0)

    def leaf(*dims: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        made = torch.randn(*dims, generator=generator, device="cuda").to(dtype)
        return made.requires_grad_()

    shape = _Size(length=8192, size=64, causal=False, heads=64)
    acts = {}
    for name in names:
        q, k, v = (leaf(4, 16, shape.length, shape.size) for _ in range(3))
        made = scheme_of(name, 16, shape, leaf)
        tensors = [t for s in made for t in vars(s).values() if isinstance(t, torch.Tensor)]
        needed = [q, k, v, *(t for t in tensors if t.requires_grad)]
        acts[name] = _act(attention, q, k, v, made, False, True, needed)
        for _ in range(10):
            acts[name]()
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
    order = random.Random(0)
    for _ in range(ROUNDS):
        for name in order.sample(names, len(names)):
            acts[name]()
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                for _ in range(STEPS):
                    acts[name]()
                torch.cuda.synchronize()
            total = 0.0
            for kernel in seen.key_averages():
                if kernel.device_time_total:
                    times[name][kernel.key[:60]].append(kernel.device_time_total / STEPS)
                    total += kernel.device_time_total / STEPS
            times[name]["all"].append(total)
    for name in names:
        print(name)
        rows = sorted(times[name].items(), key=lambda row: -statistics.median(row[1]))
        for kernel, found in rows:
            low, middle, high = statistics.quantiles(found, n=4)
            print(f"  {middle:9.1f} ({low:.1f}-{high:.1f})  {kernel}")


if __name__ == "__main__":
    names, versions = sys.argv[1].split(","), [str(HERE / "kernels"), *sys.argv[2:]]
    if os.environ.get("MEASURE"):
        measure(names)
    else:
        for version in versions:
            path = os.pathsep.join([version, str(HERE), os.environ.get("PYTHONPATH", "")])
            print(version, flush=True)
            command = [sys.executable, __file__, sys.argv[1]]
            subprocess.run(
                command, env=os.environ | {"PYTHONPATH": path, "MEASURE": "1"}, check=True
            )
