"""Suite `translate`: our search against that of Hugging Face's Marian model, same sizes.

Weights are random and every translation has `length` tokens, so that all sides do the same work. Sides take
turns; what counts is the process's CPU time, which other work on a shared machine disturbs least.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtplug
from mtplug.architectures import Transformer, TransformerConfig
from mtplug.architectures.base import DecodingState
from mtplug.data.tokenizers import EOS
from mtplug.plugins import host
from mtplug.registry import Selected
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.shortlist import Shortlisted
from mtplug.search.stepwise import Greedy, GreedyConfig
from mtplug.training.dry_run import SizedTask
from mtplug.training.precision import multiplies_bf16

NEVER = -1e4  # a logit


@dataclass
class TranslateSuiteConfig:
    """Beam and greedy search on a CPU: sentences per CPU second, and the latency of one sentence."""

    dim: int = 256
    ffn_dim: int = 1024
    heads: int = 4
    layers: int = 4
    """of encoder and of decoder"""
    vocabulary: int = 8000
    shortlist: int = 1500
    """target tokens that a shortlist leaves of a batch"""
    sentences: int = 128
    batch: int = 64
    """sentences of a batch"""
    length: int = 16
    """tokens of each source and each translation"""
    beam: int = 5
    rounds: int = 5
    """counted rounds, after one that is not"""


class _FixedLength(Transformer):
    """Ends every translation after `length` tokens."""

    length = 0

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        self.ends = state.length + 1 >= self.length  # type: ignore[attr-defined]
        return super().extend(state, tokens)

    def ended(self, logits: Tensor) -> Tensor:
        logits[..., EOS] = -NEVER if self.ends else NEVER
        return logits

    def project(self, features: Tensor) -> Tensor:
        return self.ended(super().project(features))


class _FixedShortlist(Shortlisted):
    def project(self, features: Tensor) -> Tensor:
        return self.model.ended(super().project(features))  # type: ignore[operator]


Side = Callable[[Tensor], Any]


class TranslateSuite:
    def __init__(self, config: TranslateSuiteConfig):
        self.config = config
        self.left_out: list[str] = []

    def run(self) -> list[dict[str, Any]]:
        """Rows with sentences per CPU second of each side, and how many times the best peer's they are."""
        c = self.config
        generator = torch.Generator().manual_seed(1)
        source = torch.randint(3, c.vocabulary, (c.sentences, c.length), generator=generator)
        source[:, -1] = EOS
        precisions = [torch.float32, torch.bfloat16]
        if not multiplies_bf16(torch.device("cpu")):
            precisions.pop()
            self.left_out.append("bf16: this processor has no instructions for it")
        rows = []
        for beam in (c.beam, 1):
            sides: dict[str, Side] = {}
            for dtype in precisions:
                name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
                sides[f"mtplug {name}"] = self._ours(dtype, beam, False)
                sides[f"mtplug {name}, shortlist"] = self._ours(dtype, beam, True)
                peer = self._marian(dtype, beam)
                if peer is not None:
                    sides[f"transformers {name}"] = peer
            rows += self._measure(sides, source, beam)
        return rows

    def _ours(self, dtype: torch.dtype, beam: int, short: bool) -> Side:
        c = self.config
        torch.manual_seed(1)
        position = host().component("position_encodings", "sinusoidal")
        config = TransformerConfig(
            dim=c.dim, ffn_dim=c.ffn_dim, heads=c.heads, encoder_layers=c.layers, decoder_layers=c.layers,
            position=Selected(position, position.config()),
        )  # fmt: skip
        model = _FixedLength(config, SizedTask(c.vocabulary)).eval()
        model.length = c.length
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        over = (
            _FixedShortlist(model, torch.arange(min(c.shortlist, c.vocabulary))) if short else model
        )
        search = BeamSearch(BeamConfig(beam=beam)) if beam > 1 else Greedy(GreedyConfig())

        def translate(source: Tensor) -> Any:
            return search(over, source, torch.full((len(source),), source.shape[1]))

        return translate

    def _marian(self, dtype: torch.dtype, beam: int) -> Side | None:
        if importlib.util.find_spec("transformers") is None:
            why = "transformers: not installed"
            if why not in self.left_out:
                self.left_out.append(why)
            return None
        from transformers import MarianConfig, MarianMTModel

        c = self.config
        torch.manual_seed(1)
        config = MarianConfig(
            vocab_size=c.vocabulary, d_model=c.dim, encoder_layers=c.layers, decoder_layers=c.layers,
            encoder_ffn_dim=c.ffn_dim, decoder_ffn_dim=c.ffn_dim, encoder_attention_heads=c.heads,
            decoder_attention_heads=c.heads, pad_token_id=0, eos_token_id=EOS,
            decoder_start_token_id=0, forced_eos_token_id=EOS,
        )  # fmt: skip
        model = MarianMTModel(config).eval().to(dtype)

        @torch.inference_mode()
        def translate(source: Tensor) -> Any:
            return model.generate(
                input_ids=source, attention_mask=torch.ones_like(source), num_beams=beam,
                do_sample=False, min_new_tokens=c.length, max_new_tokens=c.length,
            )  # fmt: skip

        return translate

    def _measure(self, sides: dict[str, Side], source: Tensor, beam: int) -> list[dict[str, Any]]:
        c = self.config
        spent: dict[str, list[float]] = {name: [] for name in sides}
        latency: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(c.rounds + 1):
            for name, translate in sides.items():
                started = time.process_time()
                for batch in source.split(c.batch):
                    translate(batch)
                whole = time.process_time() - started
                started = time.process_time()
                translate(source[:1])
                if number:
                    spent[name].append(whole)
                    latency[name].append(time.process_time() - started)
        medians = {name: statistics.median(seconds) for name, seconds in spent.items()}
        peers = [name for name in sides if not name.startswith("mtplug")]
        best = min(peers, key=lambda name: medians[name], default=None)
        rows = []
        for name in sides:
            row: dict[str, Any] = {
                "side": name,
                "beam": beam,
                "sentences/s": round(c.sentences / medians[name], 1),
                "least": round(c.sentences / max(spent[name]), 1),
                "most": round(c.sentences / min(spent[name]), 1),
                "one sentence, ms": round(1000 * statistics.median(latency[name]), 1),
            }
            if best is not None:
                ratios = [b / a for a, b in zip(spent[name], spent[best], strict=True)]
                row[f"times {best}"] = round(statistics.median(ratios), 2)
            rows.append(row)
        return rows

    def plot(self, rows: list[dict[str, Any]], file: Path) -> None:
        """Sentences per CPU second as bars, one panel for each beam."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        beams = list(dict.fromkeys(r["beam"] for r in rows))
        figure = Figure(figsize=(5.5 * len(beams), 4), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, beam in zip(figure.subplots(1, len(beams), squeeze=False)[0], beams, strict=True):
            here = [r for r in rows if r["beam"] == beam]
            values = [r["sentences/s"] for r in here]
            errors = [
                [v - r["least"] for v, r in zip(values, here, strict=True)],
                [r["most"] - v for v, r in zip(values, here, strict=True)],
            ]
            colours = ["tab:blue" if r["side"].startswith("mtplug") else "tab:grey" for r in here]
            axes.barh([r["side"] for r in here], values, xerr=errors, color=colours, capsize=3)
            axes.invert_yaxis()
            axes.set_title(f"beam {beam}" if beam > 1 else "greedy")
            axes.set_xlabel("sentences per CPU second (median; least and most)")
        figure.savefig(file, dpi=120)


@mtplug.hookimpl
def register_benchmarks(register):
    register("translate", TranslateSuite, TranslateSuiteConfig)
