"""How long one step of cached decoding takes on a GPU: the kernel alone, and a call from Python.

    python benchmarks/attention_decoding.py [LENGTHS, such as 2048,16384]

bf16, causal, one query per head, 8 sequences of 16 heads with 64 features, a cache of LENGTHS keys; schemes as in
`mtplug-bench run attention`, and torch's scaled_dot_product_attention without positions. The kernels alone: a CUDA graph of the
call is replayed. All take turns in a random order; a turn is some uncounted calls and then 30. Microseconds of a
call, medians of 9 turns (quartiles).
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from mtplug_kernels import attention

from mtplug.bench.attention import _Size, scheme_of

ROUNDS, CALLS = 9, 30
BATCH, HEADS, SIZE = 8, 16, 64


def time_of(act: Callable[[], object]) -> float:
    """Microseconds of one of CALLS calls."""
    for _ in range(10):
        act()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        act()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / CALLS


def graph_of(act: Callable[[], object]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            act()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        act()
    return graph.replay


def acts_of(length: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator(device="cuda").manual_seed(0)

    def leaf(*dims: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*dims, generator=generator, device="cuda").to(dtype)

    q = leaf(BATCH, HEADS, 1, SIZE)
    k, v = (leaf(BATCH, HEADS, length, SIZE) for _ in range(2))
    shape = _Size(length, SIZE, True, BATCH * HEADS)
    acts: dict[str, Callable[[], object]] = {}
    for name in ("none", "t5_bias", "alibi", "shaw", "rope", "transformer_xl"):
        made = scheme_of(name, HEADS, shape, leaf)
        acts[name] = partial(
            attention, q, k, v, position=made, causal=True, query_offset=length - 1
        )
    acts["sdpa, none"] = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v)
    return acts


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit(f"attention_decoding.py: torch {torch.__version__} finds no NVIDIA GPU here")
    order = random.Random(0)
    print("| | keys | graph | call |\n|---|---|---|---|")
    for length in map(int, (sys.argv[1] if len(sys.argv) > 1 else "2048,16384").split(",")):
        with torch.no_grad():
            acts = acts_of(length)
            turns = {(name, "call"): act for name, act in acts.items()}
            turns |= {(name, "graph"): graph_of(act) for name, act in acts.items()}
            times: dict[tuple[str, str], list[float]] = {key: [] for key in turns}
            for _ in range(ROUNDS):
                for key in order.sample(list(turns), len(turns)):
                    times[key].append(time_of(turns[key]))
        for name in acts:
            cells = []
            for how in ("graph", "call"):
                low, middle, high = statistics.quantiles(times[name, how], n=4)
                cells.append(f"{middle:.0f} ({low:.0f}–{high:.0f})")
            print(f"| {name} | {length} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
