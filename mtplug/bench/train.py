"""Suite `train`: an update of our Transformer against torch.nn.Transformer and other toolkits, same sizes.

All sides make the same update (256 pairs of 16 tokens by default, label smoothing 0.1, Adam, no clipping of gradients)
and take turns. What counts on a CPU is the process's CPU time. Products of matrices are measured in the same
turns: what they reach bounds what any side can.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mtplug
from mtplug.architectures import Transformer, TransformerConfig
from mtplug.bench.peers.process import Worker
from mtplug.bench.peers.start import started
from mtplug.bench.rounds import (
    Side,
    Spent,
    bars,
    conditions_now,
    precisions_of,
    ratio_text,
    ratios,
    take_turns,
    timed,
)
from mtplug.config.build import component_from_overrides
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.data.batching import Batch, collate
from mtplug.errors import UserError
from mtplug.registry import require_range
from mtplug.tasks.sized import SizedTask
from mtplug.training.precision import autocast, pick_device

OURS, PLAIN, PRODUCTS = "mtplug", "torch.nn.Transformer", "products of matrices"
DROPOUT = 0.1
SQUARE = 2048  # size of the matrices that are multiplied to find the processor's peak


@dataclass
class TrainSuiteConfig:
    """Training updates on one random batch, against torch.nn.Transformer and, with --peers, other toolkits."""

    dim: int = 256
    ffn_dim: int = 1024
    heads: int = 4
    layers: int = 4
    """of encoder and of decoder"""
    vocabulary: int = 8000
    sentences: int = 256
    length: int = 16
    """tokens of each sentence"""
    rounds: int = 5
    """counted rounds, after one that is not"""
    device: str = "auto"
    peers: list[str] = field(default_factory=list)
    """toolkits to measure with, each installed in an environment of its own: joeynmt, opennmt-py, eole,
    fairseq, transformers, or all; --peers stands for peers=[all]"""
    peers_dir: str = ""
    """folder of their environments; empty: a folder of the user's cache"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "sentences", "length", "rounds")
        require_range(self, 4, math.inf, "vocabulary")  # 0 to 2 are no words


def flops_per_token(c: TrainSuiteConfig) -> int:
    """Of products in the forward and the backward pass, for each target token and its source token.

    The backward pass multiplies twice as much as the forward pass.
    """
    # Queries by keys, weights by values; half unused under a causal mask.
    attention = 2 * c.length * c.dim
    encoder = 4 * c.dim**2 + attention + 2 * c.dim * c.ffn_dim
    decoder = 8 * c.dim**2 + 2 * attention + 2 * c.dim * c.ffn_dim
    return 3 * 2 * (c.layers * (encoder + decoder) + c.dim * c.vocabulary)


class _Plain(nn.Module):
    """What one writes with torch alone."""

    def __init__(self, c: TrainSuiteConfig):
        super().__init__()
        self.table = nn.Embedding(c.vocabulary, c.dim)
        self.transformer = nn.Transformer(
            c.dim, c.heads, c.layers, c.layers, c.ffn_dim, DROPOUT, batch_first=True
        )
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0  # none on attention weights: so it is on the other sides

    def loss(self, batch: Batch) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(
            batch.prev_output_tokens.shape[1], device=batch.source_tokens.device
        )
        x = self.transformer(
            self.table(batch.source_tokens),
            self.table(batch.prev_output_tokens),
            tgt_mask=mask,
            tgt_is_causal=True,
        )
        logits = x @ self.table.weight.T
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch.target_tokens.flatten(), label_smoothing=0.1
        )


class TrainSuite:
    def __init__(self, config: TrainSuiteConfig):
        self.config = config
        self.left_out: list[str] = []
        self.found: dict[str, Any] = {}
        self.device = pick_device(config.device)
        if config.peers and self.device.type != "cpu":
            raise UserError("peers: they are measured on a CPU; say device=cpu")

    def run(self) -> list[dict[str, Any]]:
        """Rows with target tokens per second of each side, and how many times that our side makes."""
        c, precisions = self.config, precisions_of(self.device, self.left_out)
        settings = {
            **asdict(c),
            "suite": "train",
            "dropout": DROPOUT,
            "attention_dropout": 0.0,
        }
        sides: dict[tuple[str, str], Side] = {}
        with started(c.peers, c.peers_dir, settings, self.left_out) as workers:
            for precision in precisions:
                sides |= {(name, precision): side for name, side in self._own(precision).items()}
                for worker in workers:
                    sides[worker.label, precision] = _asked(worker, precision)
            spent = take_turns(sides, c.rounds, self.left_out)
        self.found["torch of the peers"] = (
            sorted({worker.torch for worker in workers}) or "none asked for"
        )
        on_cpu = self.device.type == "cpu"
        counted = {n: [s.cpu if on_cpu else s.wall for s in taken] for n, taken in spent.items()}
        wall = {n: statistics.median(s.wall for s in taken) for n, taken in spent.items()}
        return self._rows(counted, wall, precisions)

    def _rows(
        self,
        counted: dict[tuple[str, str], list[float]],
        wall: dict[tuple[str, str], float],
        precisions: list[str],
    ) -> list[dict[str, Any]]:
        c = self.config
        tokens, flops = c.sentences * c.length, flops_per_token(c)
        peaks = {p: [2e-9 * SQUARE**3 / s for s in counted.pop((PRODUCTS, p))] for p in precisions}
        peak = {p: statistics.median(found) for p, found in peaks.items()}
        self.found["FLOPs of a target token"] = flops
        for p, found in peaks.items():
            self.found[f"GFLOP/s of {p} products"] = (
                f"{peak[p]:.0f} ({min(found):.0f}–{max(found):.0f})"
            )
            self.found[f"tokens/s at the speed of {p} products"] = round(1e9 * peak[p] / flops)
        rows = []
        for (name, precision), seconds in counted.items():
            rate = tokens / statistics.median(seconds)
            row = {
                "side": name,
                "precision": precision,
                "tokens/s": round(rate),
                "least": round(tokens / max(seconds)),
                "most": round(tokens / min(seconds)),
                "by the clock": round(tokens / wall[name, precision]),
                "of the peak": round(1e-9 * rate * flops / peak[precision], 2),
            }
            for ours in precisions:
                row[f"mtplug {ours} is faster by"] = ratio_text(
                    ratios(seconds, counted[OURS, ours])
                )
            rows.append(row)
        return rows

    def _own(self, precision: str) -> dict[str, Side]:
        c, device = self.config, self.device
        rng = np.random.default_rng(1)
        pairs = [
            tuple(rng.integers(3, c.vocabulary, (2, c.length - 1))) for _ in range(c.sentences)
        ]
        batch = collate(pairs, np.arange(c.sentences)).to(device)
        torch.manual_seed(1)
        config = TransformerConfig(
            dim=c.dim, ffn_dim=c.ffn_dim, heads=c.heads,
            encoder_layers=c.layers, decoder_layers=c.layers, dropout=DROPOUT,
            position=component_from_overrides("position_encodings", "sinusoidal", []),
        )  # fmt: skip
        task = SizedTask(c.vocabulary)
        model = Transformer(config, task).to(device)
        criterion = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(), task)
        plain = _Plain(c).to(device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        factors = torch.randn(2, SQUARE, SQUARE, device=device).to(dtype)

        def side(work: Callable[[], object]) -> Side:
            def turn() -> Spent:
                def whole() -> None:
                    work()
                    if device.type == "cuda":
                        torch.cuda.synchronize()

                return timed(whole)

            return turn

        def step(loss_of: Callable[[], torch.Tensor], module: nn.Module) -> Callable[[], None]:
            optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)

            def update() -> None:
                optimizer.zero_grad(set_to_none=True)
                with autocast(device, precision):
                    loss = loss_of()
                loss.backward()
                optimizer.step()

            return update

        def ours() -> torch.Tensor:
            found = criterion(model, batch)
            return found.sum / found.count

        return {
            OURS: side(step(ours, model)),
            PLAIN: side(step(lambda: plain.loss(batch), plain)),
            PRODUCTS: side(lambda: F.linear(factors[0], factors[1])),
        }

    def conditions(self) -> dict[str, Any]:
        seconds = "CPU time" if self.device.type == "cpu" else "elapsed"
        return {**self.found, "seconds": seconds, **conditions_now()}

    def plot(self, rows: list[dict[str, Any]], file: Path) -> None:
        """Target tokens per second as bars, one panel for each precision."""
        panels = {p: [r for r in rows if r["precision"] == p] for p in ("fp32", "bf16")}
        panels = {p: found for p, found in panels.items() if found}
        second = "CPU second" if self.device.type == "cpu" else "second"
        bars(panels, "tokens/s", f"target tokens per {second}\n(median, least, most)", file)


def _asked(worker: Worker, precision: str) -> Side:
    def turn() -> Spent:
        answer = worker.ask(precision=precision)
        return Spent(answer["cpu"], answer["wall"])

    return turn


@mtplug.hookimpl
def register_benchmarks(register):
    register("train", TrainSuite, TrainSuiteConfig)
