"""mtplug-bench run ctranslate2: how often the engine and our search agree, and what each costs."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mtplug
from mtplug.errors import UserError
from mtplug_ctranslate2.exporter import CTranslate2Config, CTranslate2Exporter


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
    """times that everything is translated, the systems taking turns; the median counts"""
    threads: int = 1


class Agreement:
    def __init__(self, config: AgreementConfig):
        self.config = config

    def run(self) -> list[dict[str, Any]]:
        """One row for each beam and system.

        Raises:
            UserError: run or input is not given.
        """
        c = self.config
        if not c.run or not Path(c.input).is_file():
            raise UserError("suite ctranslate2 needs run=FOLDER and input=FILE")
        torch.set_num_threads(c.threads)
        texts = Path(c.input).read_text(encoding="utf-8").splitlines()
        translator = mtplug.load(c.run, c.checkpoint, "cpu")
        engines: dict[str, Any] = {"": None}
        with tempfile.TemporaryDirectory() as folder:
            for quantization in c.quantizations:
                exporter = CTranslate2Exporter(CTranslate2Config(quantization))
                exporter.export(translator, Path(folder) / quantization)
                engines[quantization] = exporter.engine(Path(folder) / quantization, "cpu")
            rows = []
            for beam in c.beams:
                seconds: dict[str, list[float]] = {name: [] for name in engines}
                answers: dict[str, list[str]] = {}
                for _ in range(c.rounds):
                    for name, engine in engines.items():
                        translator.engine = engine
                        before = time.process_time()
                        answers[name] = translator.translate(texts, beam=beam)
                        seconds[name].append(time.process_time() - before)
                translator.engine = None
                for name, answer in answers.items():
                    row: dict[str, Any] = {
                        "beam": beam,
                        "system": f"ctranslate2 {name}" if name else "mtplug",
                    }
                    row["sentences_per_cpu_second"] = round(
                        len(texts) / statistics.median(seconds[name]), 1
                    )
                    row |= self._compared(translator, texts, answers[""], answer) if name else {}
                    row |= self._scored(answer)
                    rows.append(row)
        return rows

    def _compared(
        self, translator: Any, texts: list[str], ours: list[str], theirs: list[str]
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
        if not self.config.reference:
            return {}
        from sacrebleu.metrics import BLEU

        references = Path(self.config.reference).read_text(encoding="utf-8").splitlines()
        return {"bleu": round(BLEU().corpus_score(answer, [references]).score, 2)}


@mtplug.hookimpl
def register_benchmarks(register):
    register("ctranslate2", Agreement, AgreementConfig)
