"""Suite `attention`: every position scheme in our kernels, against torch's and others' attention.

Within one process all sides of a size take turns, in an order drawn anew in each round, and medians
with their quartiles count. On a GPU a turn is several calls, none of which waits for the one before:
as in a model, Python's part counts where the GPU would else have to wait for it. A call that does not
count goes before, because a card's clock still follows the load of the side before it. A row's `of
plain` is its time over that of our own kernel (on a CPU: of sdpa) without any positions. Its TFLOP/s are those
of all pairs of positions (causal: of half), those too that a kernel leaves out.

Shapes: B batch, H heads, N queries and keys, D head size.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mtplug_kernels import positions
from torch import Tensor

import mtplug
from mtplug.errors import UserError
from mtplug.lifecycle import first_line
from mtplug.nn.attention import AttentionBackend, AttentionCall
from mtplug.nn.backends import FlexAttention, ReferenceAttention, SdpaAttention, TritonAttention
from mtplug.registry import require_range
from mtplug.training.precision import pick_device

TURN = 0.05  # seconds: shorter calls are made several times a turn, on a GPU
SCHEMES = ("none", "t5_bias", "alibi", "rope", "shaw", "transformer_xl", "deberta")
SIDES: dict[str, type[AttentionBackend]] = {
    "triton": TritonAttention,
    "sdpa": SdpaAttention,
    "flex": FlexAttention,
    "reference": ReferenceAttention,
}


@dataclass
class AttentionSuiteConfig:
    """Attention with relative positions: time, memory and TFLOP/s; forward, and with backward."""

    device: str = "auto"
    lengths: list[int] = field(default_factory=list)
    """N; empty: 1024 to 65536 on a GPU, 256 and 1024 on a CPU"""
    sizes: list[int] = field(default_factory=lambda: [64, 128])
    """D"""
    rows: int = 0
    """B times H, where H is 16, or B is 1 and H at most 16; 0: 64 on a GPU, 4 on a CPU"""
    schemes: list[str] = field(default_factory=lambda: list(SCHEMES))
    sides: list[str] = field(default_factory=lambda: [*SIDES, "flash_attn"])
    causal: list[bool] = field(default_factory=lambda: [False, True])
    passes: list[str] = field(default_factory=lambda: ["forward", "training"])
    """training is forward and backward, gradients of tables included"""
    rounds: int = 10
    """counted rounds of each size, at least 3, after two that are not"""
    seconds: float = 10.0
    """a size whose round takes longer than this over `rounds` is measured in fewer rounds; what takes longer for
    one call, fails or needs more memory than there is, is not measured at greater lengths"""
    workers: int = -1
    """processes that compile beforehand what will be measured, which takes longer than to measure it; 0: none; -1:
    on a GPU three quarters of the cores, at most 12"""

    def __post_init__(self) -> None:
        for name, given, known in (
            ("schemes", self.schemes, SCHEMES),
            ("sides", self.sides, (*SIDES, "flash_attn")),
            ("passes", self.passes, ("forward", "training")),
        ):
            if unknown := set(given) - set(known):
                raise ValueError(f"{name}: {unknown.pop()!r} is none of {', '.join(known)}")
        require_range(self, 1, math.inf, "lengths", "sizes")
        if self.rows < 0 or (self.rows > 16 and self.rows % 16):
            raise ValueError(f"rows must be from 0 to 16 or a multiple of 16, not {self.rows}")
        require_range(self, 3, math.inf, "rounds")
        require_range(self, 0, math.inf, "seconds")


@dataclass(frozen=True)
class _Size:
    length: int
    size: int
    causal: bool
    heads: int

    def flops(self, training: bool) -> float:
        """As flash attention's authors count: 4 N² D a head forward, 10 N² D more backward."""
        products = 14 if training else 4
        return products * self.length**2 * self.size * self.heads / (2 if self.causal else 1)


class AttentionSuite:
    """Rows of what ran; `left_out` says what did not, and why."""

    def __init__(self, config: AttentionSuiteConfig):
        self.config = config
        self.device = pick_device(config.device)
        gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if gpu else torch.float32
        self.heads = config.rows or (64 if gpu else 4)
        self.lengths = config.lengths or (
            [1024, 2048, 4096, 8192, 16384, 32768, 65536] if gpu else [256, 1024]
        )
        self._left_out: dict[tuple[str, str], list[str]] = {}
        self._given_up: dict[tuple[str, str, _Size, bool], str] = {}
        self._stopped_at = ""

    @property
    def left_out(self) -> list[str]:
        """A line for each side and reason, with the schemes it concerns."""
        told = [
            f"{side} ({', '.join(schemes)}): {reason}"
            for (side, reason), schemes in self._left_out.items()
        ]
        return [*told, self._stopped_at] if self.stopped else told

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C ended the run, of which the rows before are there."""
        return bool(self._stopped_at)

    def conditions(self) -> dict[str, Any]:
        """What a reader needs beside the rows."""
        found: dict[str, Any] = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "B x H": self.heads,
            "TFLOP/s": "of all pairs of positions (causal: of half), those too that a kernel leaves out",
        }
        if self.device.type == "cuda":
            query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm",
                     "--format=csv,noheader"]  # fmt: skip
            done = subprocess.run(query, capture_output=True, text=True)
            found["gpu state"] = done.stdout.strip() or "unknown"
        for package in ("triton", "flash_attn"):
            if importlib.util.find_spec(package):
                found[package] = getattr(importlib.import_module(package), "__version__", "?")
        return found

    def run(self) -> list[dict[str, Any]]:
        shapes = [
            (_Size(length, size, causal, self.heads), wanted == "training")
            for length in self.lengths
            for size in self.config.sizes
            for causal in self.config.causal
            for wanted in self.config.passes
        ]
        self._compile_ahead(shapes)
        rows = []
        for shape, training in shapes:
            try:
                rows += self._measure(shape, training)
            except KeyboardInterrupt:
                if not rows:
                    raise
                self._stopped_at = (
                    f"stopped at N={shape.length}, D={shape.size}, causal={shape.causal}, "
                    + ("training" if training else "forward")
                )
                break
        if not rows:
            raise UserError("nothing to measure: " + "; ".join(self.left_out))
        return rows

    def _compile_ahead(self, shapes: list[tuple[_Size, bool]]) -> None:
        """Fill the caches on disk of Triton and of torch.compile by several processes."""
        workers = self.config.workers
        if workers < 0:
            workers = min(12, 3 * (os.cpu_count() or 1) // 4) if self.device.type == "cuda" else 0
        if not workers:
            return
        tasks = [
            (replace(self.config, sides=[side], schemes=[scheme]), shape, training)
            for side in set(self.config.sides) & {"triton", "flex"}
            for scheme in self.config.schemes
            for shape, training in shapes
            if side == "flex" or shape.length == self.lengths[0]  # ours serve all lengths
        ]
        spawn = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(workers, spawn, _compiles_alone) as pool,
            contextlib.suppress(BrokenProcessPool),
        ):
            list(pool.map(_compile, tasks))

    def _measure(self, shape: _Size, training: bool) -> list[dict[str, Any]]:
        memory: dict[tuple[str, str], float] = {}
        calls: dict[tuple[str, str], int] = {}
        able = dict(self._sides(shape, training))
        for key, act in list(able.items()):
            try:
                memory[key] = self._warm(act)
                calls[key] = self._calls(act)
            except (torch.OutOfMemoryError, MemoryError):
                self._give_up(key, shape, training, "out of memory")
                del able[key]
            # a compiler that finds no way, such as FlexAttention's; a size that a scheme cannot have
            except (RuntimeError, ValueError) as error:
                self._give_up(key, shape, training, first_line(error))
                del able[key]
        rounds = self.config.rounds
        number = 0
        order = random.Random(0)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in able}
        while number < rounds:
            started = time.perf_counter()
            for key in order.sample(list(able), len(able)):
                times[key].append(self._time(able[key], calls[key]))
            number += 1
            taken = time.perf_counter() - started
            rounds = max(min(rounds, round(self.config.seconds / max(taken, 1e-9))), 3)
        for key, found in times.items():
            if (median := statistics.median(found)) > self.config.seconds:
                self._give_up(key, shape, training, f"took {median:.0f} s")
        plain = times.get(("triton", "none")) or times.get(("sdpa", "none"))
        return [
            self._row(shape, training, key, found, memory[key], plain)
            for key, found in times.items()
        ]

    def _give_up(self, key: tuple[str, str], shape: _Size, training: bool, why: str) -> None:
        """Don't try at greater lengths."""
        reason = f"N={shape.length}, D={shape.size}: {why}; not tried beyond"
        self._given_up[(*key, replace(shape, length=0), training)] = reason
        self._note(*key, reason)

    def _row(self, shape, training, key, found, memory, plain) -> dict[str, Any]:
        median = statistics.median(found)
        low, _, high = statistics.quantiles(found, n=4)
        row = {
            "N": shape.length,
            "D": shape.size,
            "causal": shape.causal,
            "pass": "training" if training else "forward",
            "side": key[0],
            "scheme": key[1],
            "ms": round(median * 1e3, 3),
            "rounds": len(found),
            "quartiles": f"{low * 1e3:.3f}-{high * 1e3:.3f}",
            "TFLOP/s": float(f"{shape.flops(training) / median / 1e12:.3g}"),
            "of plain": round(median / statistics.median(plain), 3) if plain else "",
        }
        if self.device.type == "cuda":
            row["peak MiB"] = round(memory / 2**20)
        return row

    def _sides(self, shape: _Size, training: bool) -> Iterator[tuple[tuple[str, str], Callable]]:
        generator = torch.Generator().manual_seed(0)

        def leaf(*dims: int, dtype: torch.dtype = self.dtype) -> Tensor:
            made = torch.randn(*dims, generator=generator).to(self.device, dtype)
            return made.requires_grad_(training)

        heads = min(16, self.heads)
        dims = (self.heads // heads, heads, shape.length, shape.size)
        q, k, v = leaf(*dims), leaf(*dims), leaf(*dims)
        for scheme in self.config.schemes:
            made = scheme_of(scheme, heads, shape, leaf)
            tensors = [t for s in made for t in vars(s).values() if isinstance(t, Tensor)]
            needed = [q, k, v, *(t for t in tensors if t.requires_grad)]
            call = AttentionCall(
                self.device.type, frozenset(type(s).__name__ for s in made), training
            )
            for side in self.config.sides:
                if side == "flash_attn":
                    attend, reason = self._flash_attn(scheme)
                elif self.device.type == "cpu" and side == "triton":
                    attend, reason = None, "needs a GPU (its interpreter says nothing about speed)"
                else:
                    backend = SIDES[side]()  # type: ignore[call-arg]
                    attend, reason = backend, backend.why_not(call)
                    if side in ("reference", "sdpa") and not reason:
                        reason = self._too_large(side, made, shape)
                given_up = self._given_up.get((side, scheme, replace(shape, length=0), training))
                reason = reason or given_up or ""
                if reason:
                    self._note(side, scheme, reason)
                    continue
                assert attend is not None
                yield (side, scheme), _act(attend, q, k, v, made, shape.causal, training, needed)

    def _too_large(self, side: str, made: tuple, shape: _Size) -> str:
        """Why a side that holds N² scores cannot be tried; it may still run out of memory."""
        if side == "sdpa" and all(
            isinstance(s, positions.Rotary | positions.TransformerXL) for s in made
        ):
            return ""
        squares = 4 if side == "reference" else 2
        needed = squares * self.heads * shape.length**2 * self.dtype.itemsize
        if self.device.type == "cuda":
            there = torch.cuda.get_device_properties(self.device).total_memory
        else:
            there = 8 * 2**30
        return f"N={shape.length} needs over {needed / 2**30:.0f} GiB" if needed > there else ""

    def _flash_attn(self, scheme: str) -> tuple[Callable | None, str]:
        if importlib.util.find_spec("flash_attn") is None:
            return None, "flash-attn is not installed"
        if scheme not in ("none", "alibi"):
            return None, "flash-attn has no such scheme"
        from flash_attn import flash_attn_func  # type: ignore[import-not-found]

        def attend(q, k, v, *, position, causal, scale=None):
            slopes = position[0].slopes.detach() if position else None
            out = flash_attn_func(
                *(x.transpose(1, 2) for x in (q, k, v)), causal=causal, alibi_slopes=slopes
            )
            return out.transpose(1, 2)

        return attend, ""

    def _note(self, side: str, scheme: str, reason: str) -> None:
        schemes = self._left_out.setdefault((side, reason), [])
        if scheme not in schemes:
            schemes.append(scheme)

    def _warm(self, act: Callable[[], None]) -> float:
        """Two rounds that don't count; returns the peak memory of the second beyond the inputs."""
        act()
        if self.device.type != "cuda":
            act()
            return math.nan
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        act()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _calls(self, act: Callable[[], None]) -> int:
        """So many make a turn."""
        if self.device.type != "cuda":
            return 1
        started = time.perf_counter()
        act()
        torch.cuda.synchronize()
        return math.ceil(TURN / (time.perf_counter() - started))

    def _time(self, act: Callable[[], None], calls: int) -> float:
        """Seconds of one of so many calls."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            act()
            return time.perf_counter() - started
        if calls > 1:
            act()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            act()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def plot(self, rows: list[dict[str, Any]], file: Path) -> None:
        """TFLOP/s over N for each size, one panel each."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        panels = list(dict.fromkeys((r["D"], r["causal"], r["pass"]) for r in rows))
        columns = min(4, len(panels))
        lines = math.ceil(len(panels) / columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(4.2 * columns, 3.4 * lines + 1), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        colours = dict(
            zip(SCHEMES, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False)
        )
        styles = {
            "triton": ("-", "o"), "sdpa": ("--", "s"), "flex": (":", "^"),
            "reference": ("-.", "x"), "flash_attn": ((0, (5, 1, 1, 1)), "D"),
        }  # fmt: skip
        handles: dict[str, Any] = {}
        for axis, panel in zip(axes.flat, panels, strict=False):
            here = [r for r in rows if (r["D"], r["causal"], r["pass"]) == panel]
            for side, scheme in dict.fromkeys((r["side"], r["scheme"]) for r in here):
                points = [r for r in here if (r["side"], r["scheme"]) == (side, scheme)]
                (handles[f"{side} {scheme}"],) = axis.plot(
                    [r["N"] for r in points], [r["TFLOP/s"] for r in points],
                    color=colours[scheme], linestyle=styles[side][0], marker=styles[side][1],
                )  # fmt: skip
            axis.set_xscale("log", base=2)
            axis.set_ylim(bottom=0)
            axis.set_xlabel("length N")
            axis.set_ylabel("TFLOP/s")
            axis.set_title(
                f"D = {panel[0]}, {'causal' if panel[1] else 'both directions'}, {panel[2]}"
            )
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=2 * columns,
            fontsize="small", handlelength=4,
        )  # fmt: skip
        figure.savefig(file, dpi=120)
        plt.close(figure)


def _compiles_alone() -> None:
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # each process would start its own


def _compile(task: tuple[AttentionSuiteConfig, _Size, bool]) -> None:
    """One call of what a suite will measure; what fails will fail there, too, and be told."""
    config, shape, training = task
    with contextlib.suppress(Exception):
        for _, act in AttentionSuite(config)._sides(shape, training):
            act()


def scheme_of(name: str, heads: int, shape: _Size, leaf: Callable[..., Tensor]) -> tuple:
    """A scheme as the position encoding of that name has it, with its usual sizes."""
    full = {"dtype": torch.float32}
    if name == "t5_bias":
        weight = leaf(32, heads, **full)
        table = positions.t5_table(weight, bidirectional=not shape.causal).detach()
        return (positions.ClippedBias(table.requires_grad_(weight.requires_grad)),)
    if name == "alibi":
        return (positions.Linear(positions.alibi_slopes(heads).to(leaf(1).device)),)
    if name == "rope":
        return (positions.Rotary(),)
    if name == "shaw":
        return (positions.QueryTable(leaf(1, 33, shape.size, **full)),)
    if name == "transformer_xl":
        vectors = leaf(heads, shape.size, **full), leaf(heads, shape.size, **full)
        return (positions.TransformerXL(*vectors, leaf(heads, shape.size, 64, **full)),)
    if name == "deberta":
        tables = leaf(heads, 129, shape.size, **full), leaf(heads, 129, shape.size, **full)
        return positions.QueryTable(tables[0]), positions.KeyTable(tables[1])
    return ()


def _act(attend, q, k, v, made, causal, training, needed) -> Callable[[], None]:
    gradient = torch.randn_like(v) if training else None

    def act() -> None:
        if not training:
            with torch.no_grad():
                attend(q, k, v, position=made, causal=causal)
            return
        out = attend(q, k, v, position=made, causal=causal)
        torch.autograd.grad(out, needed, gradient)

    return act


@mtplug.hookimpl
def register_benchmarks(register):
    register("attention", AttentionSuite, AttentionSuiteConfig)
