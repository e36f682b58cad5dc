"""What a call of the attention kernels costs in Python, measured without a GPU.

Triton compiles for sm_90 and gets a driver that launches nothing, so what is left is all that the host
does before a kernel starts. Short calls on a GPU are bound by it. Microseconds, medians of rounds in turns:

    python benchmarks/attention_calls.py [kernels/ of another version ...]

Each version runs in a process of its own, round by round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent.parent / "kernels"
ROUNDS, CALLS = 7, 200


def pretend() -> None:
    """Give Triton a GPU that does nothing."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Utils:
        def load_binary(self, *args):
            return 0, 0, 128, 0, 1024

        def get_device_properties(self, device):
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    class Launcher:
        def __init__(self, source, metadata):
            pass

        def __call__(self, *args, **options):
            pass

    class Driver:
        utils, launcher_cls = Utils(), Launcher

        def get_current_device(self):
            return 0

        def get_current_stream(self, device=0):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_active_torch_device(self):
            return torch.device("cpu")

    driver.set_active(Driver())


def measure() -> dict[str, float]:
    """Microseconds of a forward pass without gradients, and of a training step, of each scheme."""
    import torch

    pretend()
    from mtplug_kernels import api, attention, positions

    api.why_not_triton = lambda *args: ""
    torch.set_num_threads(1)
    q, k, v = (torch.randn(1, 2, 64, 64).bfloat16().requires_grad_() for _ in range(3))
    schemes = {
        "none": (),
        "t5_bias": positions.ClippedBias(torch.zeros(2, 21, requires_grad=True)),
        "alibi": positions.Linear(torch.ones(2)),
        "rope": positions.Rotary(),
        "shaw": positions.QueryTable(torch.zeros(1, 21, 64, requires_grad=True)),
    }
    grad = torch.ones_like(q)
    found = {}
    for name, scheme in schemes.items():

        def forward(scheme=scheme):
            with torch.no_grad():
                attention(q, k, v, scheme, backend="triton")

        def training(scheme=scheme):
            torch.autograd.grad(attention(q, k, v, scheme, backend="triton"), [q, k, v], grad)

        for what, act in (("forward", forward), ("training", training)):
            for _ in range(20):
                act()
            started = time.perf_counter()
            for _ in range(CALLS):
                act()
            found[f"{name} {what}"] = (time.perf_counter() - started) / CALLS * 1e6
    return found


def main() -> None:
    versions = [str(HERE), *sys.argv[1:]]
    times: dict[str, list[dict[str, float]]] = {version: [] for version in versions}
    for _ in range(ROUNDS):
        for version in versions:
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            environment |= {"PYTHONPATH": version, "PYTHONWARNINGS": "ignore", "MEASURE": "1"}
            command = [sys.executable, __file__]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            times[version].append(json.loads(done.stdout))
    for name in times[versions[0]][0]:
        row = [f"{name:18}"]
        for version in versions:
            low, middle, high = statistics.quantiles([t[name] for t in times[version]], n=4)
            row.append(f"{middle:6.0f} ({low:.0f}-{high:.0f})")
        print("  ".join(row))


if __name__ == "__main__":
    print(json.dumps(measure())) if os.environ.get("MEASURE") else main()
