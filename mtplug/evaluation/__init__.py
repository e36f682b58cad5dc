"""Scores of translations: the kind `metrics`."""

from mtplug.evaluation.metrics import Metric, Score

__all__ = ["Metric", "Score"]
