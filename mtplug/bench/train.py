"""Suite `train`: an update of our Transformer against one of torch.nn.Transformer, same sizes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mtplug
from mtplug.architectures import Transformer, TransformerConfig
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.data.batching import Batch, collate
from mtplug.plugins import host
from mtplug.registry import Selected
from mtplug.training.dry_run import SizedTask
from mtplug.training.precision import autocast, multiplies_bf16, pick_device


@dataclass
class TrainSuiteConfig:
    """Training updates on one random batch; both sides alternate, medians count."""

    dim: int = 256
    ffn_dim: int = 1024
    heads: int = 4
    layers: int = 4
    """of encoder and of decoder"""
    vocabulary: int = 8000
    sentences: int = 64
    length: int = 16
    """tokens of each sentence"""
    rounds: int = 5
    """counted rounds, after one that is not"""
    device: str = "auto"


class _Plain(nn.Module):
    """What one writes with torch alone."""

    def __init__(self, c: TrainSuiteConfig):
        super().__init__()
        self.table = nn.Embedding(c.vocabulary, c.dim)
        self.transformer = nn.Transformer(
            c.dim, c.heads, c.layers, c.layers, c.ffn_dim, 0.1, batch_first=True
        )

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

    def run(self) -> list[dict[str, Any]]:
        """Rows with target tokens per second of each side, and their ratio."""
        rows = []
        precisions = ["fp32", "bf16"]
        if not multiplies_bf16(pick_device(self.config.device)):
            precisions.remove("bf16")
            self.left_out.append("bf16: this processor has no instructions for it")
        for precision in precisions:
            ours, plain = self._sides(precision)
            rows += _alternate(
                {"mtplug": ours, "torch.nn.Transformer": plain},
                self.config.rounds,
                self.config.sentences * self.config.length,
                precision,
            )
        return rows

    def _sides(self, precision: str) -> tuple[Callable[[], None], Callable[[], None]]:
        c = self.config
        device = pick_device(c.device)
        rng = np.random.default_rng(1)
        pairs = [
            tuple(rng.integers(3, c.vocabulary, (2, c.length - 1))) for _ in range(c.sentences)
        ]
        batch = collate(pairs, np.arange(c.sentences)).to(device)
        torch.manual_seed(1)
        position = host().component("position_encodings", "sinusoidal")
        config = TransformerConfig(
            dim=c.dim, ffn_dim=c.ffn_dim, heads=c.heads,
            encoder_layers=c.layers, decoder_layers=c.layers,
            position=Selected(position, position.config()),
        )  # fmt: skip
        task = SizedTask(c.vocabulary)
        model = Transformer(config, task).to(device)
        criterion = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(), task)
        peer = _Plain(c).to(device)

        def step(loss_of: Callable[[], torch.Tensor], module: nn.Module) -> Callable[[], None]:
            optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)

            def update() -> None:
                optimizer.zero_grad(set_to_none=True)
                with autocast(device, precision):
                    loss = loss_of()
                loss.backward()
                optimizer.step()
                if device.type == "cuda":
                    torch.cuda.synchronize()

            return update

        def ours() -> torch.Tensor:
            found = criterion(model, batch)
            return found.sum / found.count

        return step(ours, model), step(lambda: peer.loss(batch), peer)


def _alternate(
    sides: dict[str, Callable[[], None]], rounds: int, tokens: int, precision: str
) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, update in sides.items():
            started = time.perf_counter()
            update()
            if number:
                seconds[name].append(time.perf_counter() - started)
    first, second = seconds
    ratios = [b / a for a, b in zip(seconds[first], seconds[second], strict=True)]
    rows = []
    for name, found in seconds.items():
        ordered = sorted(found)
        row = {
            "side": name,
            "precision": precision,
            "tokens/s": round(tokens / statistics.median(found)),
            "least": round(tokens / ordered[-1]),
            "most": round(tokens / ordered[0]),
        }
        row["times faster"] = round(statistics.median(ratios), 2) if name == first else ""
        rows.append(row)
    return rows


@mtplug.hookimpl
def register_benchmarks(register):
    register("train", TrainSuite, TrainSuiteConfig)
