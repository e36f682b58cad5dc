"""COMET (Rei et al. 2020, arXiv:2009.09025) by the package unbabel-comet, which is imported on first use."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mtplug
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score

MTPLUG_API = {"metrics": 1}


@dataclass
class CometConfig:
    """COMET: a network's judgement of translations, given source and reference."""

    label: str = "comet"
    """its name in logs"""
    model: str = "Unbabel/wmt22-comet-da"
    """name that unbabel-comet downloads, or the file of a checkpoint"""
    batch_size: int = 16
    gpus: int = 0
    """0: on the CPU"""


class Comet(Metric):
    """The mean over sentences; of several references the one that a sentence scores best with."""

    takes_sources = True

    def __init__(self, config: CometConfig, target_lang: str):
        self.config, self.label = config, config.label
        self._model: Any = None

    def score(
        self, hypotheses: list[str], references: list[list[str]], sources: list[str] | None = None
    ) -> Score:
        """Score translations of `sources`.

        Raises:
            UserError: there are no sources, or unbabel-comet is not installed or has no such model.
        """
        if sources is None:
            raise UserError("metric comet needs the source text")
        by_reference = [self._scores(hypotheses, side, sources) for side in references]
        best = [max(of) for of in zip(*by_reference, strict=True)]
        value = sum(best) / max(len(best), 1)
        signature = (
            f"nrefs:{len(references)}|model:{self.config.model}|unbabel-comet:{_comet_version()}"
        )
        return Score(self.label, value, signature, f"COMET = {value:.4f}")

    def _scores(
        self, hypotheses: list[str], references: list[str], sources: list[str]
    ) -> list[float]:
        if not hypotheses:
            return []
        rows = [
            {"src": source, "mt": hypothesis, "ref": reference}
            for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
        ]
        c = self.config
        found = self._loaded().predict(
            rows, batch_size=c.batch_size, gpus=c.gpus, progress_bar=False
        )
        return [float(score) for score in found["scores"]]

    def _loaded(self) -> Any:
        if self._model is None:
            try:
                import comet
            except ImportError as error:
                raise UserError(
                    f"metric comet: unbabel-comet cannot be imported ({error}): pip install unbabel-comet"
                ) from None
            name = self.config.model
            try:
                path = name if Path(name).is_file() else comet.download_model(name)
                self._model = comet.load_from_checkpoint(path)
            except Exception as error:  # unbabel-comet raises Exception itself
                raise UserError(f"metric comet: model={name} cannot be loaded: {error}") from None
        return self._model


def _comet_version() -> str:
    try:
        return version("unbabel-comet")
    except PackageNotFoundError:
        return "unknown"


@mtplug.hookimpl
def register_metrics(register):
    register("comet", Comet, CometConfig)
