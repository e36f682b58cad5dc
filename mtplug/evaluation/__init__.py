"""Scores of translations: the kind `metrics`."""

from mtplug.evaluation.metrics import Metric, Score, scored

__all__ = ["Metric", "Score", "scored"]
