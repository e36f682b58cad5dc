"""A metric: share of translations that equal a reference."""

from dataclasses import dataclass

import mtplug
from mtplug.evaluation import Metric, Score

MTPLUG_API = {"metrics": 1}


@dataclass
class ExactConfig:
    """Exact matches, in percent."""

    label: str = "NAME"
    """its name in logs"""


class Exact(Metric):
    def __init__(self, config: ExactConfig, target_lang: str):
        self.label = config.label

    def score(self, hypotheses, references):
        rows = list(zip(hypotheses, *references, strict=True))
        value = 100 * sum(row[0] in row[1:] for row in rows) / max(len(rows), 1)
        return Score(self.label, value, "exact", f"exact matches = {value:.2f} %")


@mtplug.hookimpl
def register_metrics(register):
    register("NAME", Exact, ExactConfig)
