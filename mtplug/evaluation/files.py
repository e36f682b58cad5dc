"""Scoring files of translations, and paired bootstrap resampling between two systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mtplug.errors import UserError
from mtplug.evaluation.metrics import SacreMetric
from mtplug.plugins import host


def parallel_lines(files: list[Path]) -> list[list[str]]:
    """The lines of files that must have equally many.

    Raises:
        UserError: a file is missing, empty, not UTF-8, or of another length.
    """
    sides = []
    for file in files:
        try:
            sides.append(file.read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            raise UserError(f"{file}: no such file") from None
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{file}:{line}: not valid UTF-8") from None
        if not sides[-1]:
            raise UserError(f"{file} is empty")
        if len(sides[-1]) != len(sides[0]):
            raise UserError(
                f"{file} has {len(sides[-1])} lines, {files[0]} has {len(sides[0])}; both need "
                "the same number"
            )
    return sides


def standard_metrics(lang: str, tokenize: str, lowercase: bool) -> list[SacreMetric]:
    """BLEU, chrF2++ and TER."""
    metrics = []
    for name in ("bleu", "chrf", "ter"):
        component = host().component("metrics", name)
        config = component.config()
        if name == "bleu":
            config.tokenize, config.lowercase = tokenize, lowercase
        try:
            metrics.append(component.factory(config, lang))
        except (KeyError, ValueError, AssertionError) as error:
            raise UserError(f"--tokenize {tokenize}: {error}") from None
    return metrics


def compare(
    metrics: list[SacreMetric],
    hypotheses: list[str],
    baseline: list[str],
    references: list[list[str]],
    samples: int = 1000,
    seed: int = 12345,
) -> list[dict[str, Any]]:
    """Paired bootstrap resampling (Koehn 2004), two-sided as in Riezler and Maxwell (2005).

    Returns:
        For each metric the baseline's score, the difference (system minus baseline), its 95 %
        interval over resamples, and p: how often a centred difference is at least as large.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(hypotheses), (samples, len(hypotheses)))
    rows = []
    for metric in metrics:
        system, other = (
            np.array(_statistics(metric, side, references)) for side in (hypotheses, baseline)
        )
        differences = np.array(
            [
                _from_statistics(metric, system[pick].sum(0))
                - _from_statistics(metric, other[pick].sum(0))
                for pick in picks
            ]
        )
        score = metric.score(baseline, references).value
        actual = metric.score(hypotheses, references).value - score
        extreme = np.abs(differences - differences.mean()) >= abs(actual)
        rows.append(
            {
                "baseline": score,
                "difference": actual,
                "interval": [float(x) for x in np.percentile(differences, [2.5, 97.5])],
                "p": float((extreme.sum() + 1) / (samples + 1)),
            }
        )
    return rows


def _statistics(metric: SacreMetric, hypotheses: list[str], references: list[list[str]]) -> Any:
    cut = getattr(metric, "moses", None)
    if cut is not None:
        hypotheses = [cut(h) for h in hypotheses]
        references = [[cut(r) for r in side] for side in references]
    return metric.metric._extract_corpus_statistics(hypotheses, references)


def _from_statistics(metric: SacreMetric, total: Any) -> float:
    return metric.metric._compute_score_from_stats(total.tolist()).score
