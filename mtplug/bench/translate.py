"""Suite `translate`: our search against those of other toolkits, same sizes.

Weights are random and every translation is made to have `length` tokens, so that all sides take the same steps. Sides
take turns; what counts is the process's CPU time, which other work on a shared machine disturbs least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtplug
from mtplug.architectures import Transformer, TransformerConfig
from mtplug.architectures.base import DecodingState
from mtplug.bench.peers.process import Worker
from mtplug.bench.peers.start import started
from mtplug.bench.rounds import (
    ONE,
    WHOLE,
    Side,
    Spent,
    bars_of_beams,
    conditions_now,
    precisions_of,
    rows_of_beam,
    take_turns,
    timed,
)
from mtplug.config.build import component_from_overrides
from mtplug.data.tokenizers import EOS
from mtplug.errors import MtplugError
from mtplug.registry import require_range
from mtplug.search.base import Hypothesis
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.shortlist import Shortlisted
from mtplug.search.stepwise import Greedy, GreedyConfig
from mtplug.tasks.sized import SizedTask
from mtplug.translator.loading import in_precision

NEVER = -1e4  # a logit


@dataclass
class TranslateSuiteConfig:
    """Beam and greedy search on a CPU, with --peers beside other toolkits: sentences per CPU second, latency."""

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
    peers: list[str] = field(default_factory=list)
    """toolkits to measure with, as in suite train; --peers stands for peers=[all]"""
    peers_dir: str = ""
    """folder of their environments; empty: a folder of the user's cache"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "sentences", "batch", "length", "beam", "rounds")
        require_range(self, 2, math.inf, "shortlist")  # padding and the end of a sentence
        require_range(self, 4, math.inf, "vocabulary")  # 0 to 2 are no words


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


Search = Callable[[Tensor], list[list[Hypothesis]]]


class TranslateSuite:
    def __init__(self, config: TranslateSuiteConfig):
        self.config = config
        self.left_out: list[str] = []
        self.torch: list[str] = []

    def run(self) -> list[dict[str, Any]]:
        """Rows with sentences per CPU second of each side, and how many times the best peer's they are."""
        c = self.config
        generator = torch.Generator().manual_seed(1)
        source = torch.randint(3, c.vocabulary, (c.sentences, c.length), generator=generator)
        source[:, -1] = EOS
        precisions = precisions_of(torch.device("cpu"), self.left_out)
        settings = {**asdict(c), "suite": "translate", "dropout": 0.0, "attention_dropout": 0.0}
        rows = []
        with started(c.peers, c.peers_dir, settings, self.left_out) as workers:
            self.torch = sorted({worker.torch for worker in workers})
            for beam in (c.beam, 1):
                sides: dict[tuple[str, str], Side] = {}
                for name in precisions:
                    for short in (False, True):
                        label = f"mtplug {name}" + (", shortlist" if short else "")
                        sides |= self._turns(label, self._ours(name, beam, short), source)
                    for worker in workers:
                        sides |= self._asked(f"{worker.label} {name}", worker, name, beam)
                spent = take_turns(sides, c.rounds, self.left_out)
                rows += rows_of_beam(spent, c.sentences, beam)
        return rows

    def _turns(self, label: str, search: Search, source: Tensor) -> dict[tuple[str, str], Side]:
        length = self.config.length

        def turn(batches: Sequence[Tensor]) -> Spent:
            found: list[list[Hypothesis]] = []
            spent = timed(lambda: found.extend(row for b in batches for row in search(b)))
            lengths = {len(h.tokens) + h.finished for hypotheses in found for h in hypotheses}
            if lengths != {length}:
                raise MtplugError(
                    f"{label}: translations have lengths {sorted(lengths)}, not {length}"
                )
            return spent

        return {
            (label, WHOLE): lambda: turn(source.split(self.config.batch)),
            (label, ONE): lambda: turn([source[:1]]),
        }

    def _asked(
        self, label: str, worker: Worker, precision: str, beam: int
    ) -> dict[tuple[str, str], Side]:
        def turn(sentences: int) -> Spent:
            answer = worker.ask(precision=precision, beam=beam, sentences=sentences)
            return Spent(answer["cpu"], answer["wall"])

        return {(label, WHOLE): lambda: turn(self.config.sentences), (label, ONE): lambda: turn(1)}

    def _ours(self, precision: str, beam: int, short: bool) -> Search:
        c = self.config
        torch.manual_seed(1)
        config = TransformerConfig(
            dim=c.dim, ffn_dim=c.ffn_dim, heads=c.heads, encoder_layers=c.layers, decoder_layers=c.layers,
            position=component_from_overrides("position_encodings", "sinusoidal", []),
        )  # fmt: skip
        model = _FixedLength(config, SizedTask(c.vocabulary)).eval()
        model.length = c.length
        in_precision(model, precision)
        over = (
            _FixedShortlist(model, torch.arange(min(c.shortlist, c.vocabulary))) if short else model
        )
        search = BeamSearch(BeamConfig(beam=beam)) if beam > 1 else Greedy(GreedyConfig())

        def translate(source: Tensor) -> list[list[Hypothesis]]:
            return search(over, source, torch.full((len(source),), source.shape[1]))

        return translate

    def conditions(self) -> dict[str, Any]:
        return {"torch of the peers": self.torch or "none asked for", **conditions_now()}

    def plot(self, rows: list[dict[str, Any]], file: Path) -> None:
        """Sentences per CPU second as bars, one panel for each beam."""
        bars_of_beams(rows, file)


@mtplug.hookimpl
def register_benchmarks(register):
    register("translate", TranslateSuite, TranslateSuiteConfig)
