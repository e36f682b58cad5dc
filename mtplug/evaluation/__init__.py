"""Scores of translations: the kind `metrics`."""

from mtplug.evaluation.metrics import Metric, Score, counted, scored

__all__ = ["Metric", "Score", "counted", "scored"]
