"""mtplug-bench run ctranslate2: how often the engine and our search agree, and what each costs."""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mtplug
from mtplug.bench.rounds import WHOLE, Side, conditions_now, rows_of_beam, take_turns, timed
from mtplug.errors import UserError
from mtplug.evaluation.files import parallel_lines
from mtplug.registry import require_range
from mtplug.translator import Translator
from mtplug_ctranslate2.exporter import CTranslate2Config, CTranslate2Exporter

OURS = "mtplug"


@dataclass
class AgreementConfig:
    """Translations and CPU time of a run: mtplug's search in float32 against CTranslate2's."""

    run: str = ""
    """the run's folder"""
    input: str = ""
    """text to translate, one sentence a line"""
    reference: str = ""
    """its translations, for BLEU; empty: none"""
    checkpoint: str = "best"
    beams: list[int] = field(default_factory=lambda: [5, 1])
    quantizations: list[str] = field(default_factory=lambda: ["float32", "int8"])
    rounds: int = 3
    """counted rounds, after one that is not; the sides take turns, and medians count"""
    threads: int = 1

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "beams", "rounds", "threads")


class Agreement:
    def __init__(self, config: AgreementConfig):
        self.config = config
        self.left_out: list[str] = []
        self.references: list[list[str]] = []

    def run(self) -> list[dict[str, Any]]:
        """One row for each beam and side.

        Raises:
            UserError: run or input is not given, or the reference has another number of lines.
        """
        c = self.config
        if not c.run or not Path(c.input).is_file():
            raise UserError("suite ctranslate2 needs run=FOLDER and input=FILE")
        torch.set_num_threads(c.threads)
        files = [c.input, c.reference] if c.reference else [c.input]
        texts, *self.references = parallel_lines([Path(file) for file in files])
        translator = mtplug.load(c.run, c.checkpoint, "cpu")
        engines: dict[str, Any] = {OURS: None}
        with tempfile.TemporaryDirectory() as folder:
            for quantization in c.quantizations:
                exporter = CTranslate2Exporter(CTranslate2Config(quantization))
                exporter.export(translator, Path(folder) / quantization)
                engine = exporter.engine(Path(folder) / quantization, "cpu")
                engines[f"ctranslate2 {quantization}"] = engine
            rows = []
            for beam in c.beams:
                answers: dict[str, list[str]] = {}
                sides: dict[tuple[str, str], Side] = {}
                for name, engine in engines.items():
                    side = self._side(translator, texts, beam, name, engine, answers)
                    sides[name, WHOLE] = side
                spent = take_turns(sides, c.rounds, self.left_out)
                translator.engine = None
                for row in rows_of_beam(spent, len(texts), beam):
                    answer = answers[name := row["side"]]
                    if name != OURS:
                        row |= self._compared(translator, texts, answers[OURS], answer)
                    rows.append(row | self._scored(answer))
        return rows

    def _side(
        self,
        translator: Translator,
        texts: list[str],
        beam: int,
        name: str,
        engine: Any,
        answers: dict[str, list[str]],
    ) -> Side:
        def work() -> None:
            translator.engine = engine
            answers[name] = translator.translate(texts, beam=beam)

        return lambda: timed(work)

    def _compared(
        self, translator: Translator, texts: list[str], ours: list[str], theirs: list[str]
    ) -> dict[str, Any]:
        """The share of equal translations; of the others, what our model in float32 thinks of both."""
        differ = [i for i in range(len(texts)) if ours[i] != theirs[i]]
        sources = [texts[i] for i in differ]
        a, b = (translator.score(sources, [side[i] for i in differ]) for side in (ours, theirs))
        gaps = [y.score - x.score for x, y in zip(a, b, strict=True)]
        return {
            "equal": round(1 - len(differ) / max(len(texts), 1), 4),
            "differing": len(differ),
            "scored_higher_by_the_model": sum(g > 0 for g in gaps),
            "median_score_gap": round(statistics.median(map(abs, gaps)), 5) if gaps else 0.0,
        }

    def _scored(self, answer: list[str]) -> dict[str, Any]:
        if not self.references:
            return {}
        from sacrebleu.metrics import BLEU

        return {"bleu": round(BLEU().corpus_score(answer, self.references).score, 2)}

    def conditions(self) -> dict[str, Any]:
        return {"ctranslate2": version("ctranslate2"), **conditions_now()}


@mtplug.hookimpl
def register_benchmarks(register):
    register("ctranslate2", Agreement, AgreementConfig)
