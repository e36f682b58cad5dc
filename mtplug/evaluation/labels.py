"""Scores of labels, a line being one label or several separated by blanks: accuracy and F1."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

import mtplug
from mtplug.evaluation.metrics import Metric, Score


class LabelMetric(Metric):
    """A percentage made of counts that add up over lines; of several references, the nearest one counts."""

    described = ""

    def __init__(self, config: Any, target_lang: str):
        self.label = config.label

    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        rows, compute = self.statistics(hypotheses, references)
        value = compute(rows.sum(0))
        signature = f"{self.described}|nrefs:{len(references)}|version:{mtplug.__version__}"
        return Score(self.label, value, signature, f"{self.label} = {value:.2f}")

    @abstractmethod
    def statistics(
        self, hypotheses: list[str], references: list[list[str]]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], float]]: ...


@dataclass
class AccuracyConfig:
    """Share of labels that are right, in percent; of a text those of its words that stand at the right place."""

    label: str = "accuracy"
    """its name in logs"""


class Accuracy(LabelMetric):
    """A label that is missing, or one too many, is wrong."""

    described = "labels:all"

    def statistics(
        self, hypotheses: list[str], references: list[list[str]]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
        rows = []
        for hypothesis, *refs in zip(hypotheses, *references, strict=True):
            own = hypothesis.split()
            counts = [
                (sum(a == b for a, b in zip(own, ref.split(), strict=False)),
                 max(len(own), len(ref.split())))
                for ref in refs
            ]  # fmt: skip
            rows.append(max(counts, key=lambda c: c[0] / max(c[1], 1)))
        return np.array(rows, float), lambda total: 100 * float(total[0] / max(total[1], 1))


class F1(LabelMetric):
    """F1 of things that a line holds: of each kind its own, averaged, or of all together."""

    macro = True

    @abstractmethod
    def things(self, labels: list[str]) -> Iterable[tuple[str, tuple]]:
        """(kind, which one) of each."""

    def statistics(
        self, hypotheses: list[str], references: list[list[str]]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
        found = [Counter(self.things(h.split())) for h in hypotheses]
        wanted = [
            [Counter(self.things(r.split())) for r in refs]
            for refs in zip(*references, strict=True)
        ]
        chosen = [
            max(refs, key=lambda ref, own=own: _f1((own & ref).total(), own.total(), ref.total()))  # type: ignore[misc]
            for own, refs in zip(found, wanted, strict=True)
        ]
        kinds = sorted({kind for c in (*found, *chosen) for kind, _ in c}) if self.macro else [""]
        index = {kind: n for n, kind in enumerate(kinds)}
        rows = np.zeros((len(hypotheses), len(kinds), 3))
        for row, own, ref in zip(rows, found, chosen, strict=True):
            for column, counter in enumerate((own & ref, own, ref)):
                for (kind, _), count in counter.items():
                    row[index[kind] if self.macro else 0, column] += count

        def compute(total: np.ndarray) -> float:
            each = [_f1(*counts) for counts in total.reshape(-1, 3)]
            return 100 * float(np.mean(each)) if each else 0.0

        return rows.reshape(len(hypotheses), -1), compute


def _f1(right: float, found: float, wanted: float) -> float:
    """Harmonic mean of precision right/found and recall right/wanted."""
    return 2 * right / (found + wanted) if found + wanted else 0.0


@dataclass
class MacroF1Config:
    """F1 of each label, averaged over labels, in percent."""

    label: str = "macro_f1"
    """its name in logs"""


class MacroF1(F1):
    described = "average:macro"

    def things(self, labels: list[str]) -> Iterable[tuple[str, tuple]]:
        return ((label, (place,)) for place, label in enumerate(labels))


@dataclass
class SpanF1Config:
    """F1 of the spans that BIO labels mark, of all kinds together, in percent (as of CoNLL 2000 and 2003)."""

    label: str = "span_f1"
    """its name in logs"""


class SpanF1(F1):
    """A span is right if its kind, begin and end are."""

    described = "spans:bio|average:micro"
    macro = False

    def things(self, labels: list[str]) -> Iterable[tuple[str, tuple]]:
        return spans(labels)


def spans(labels: list[str]) -> list[tuple[str, tuple]]:
    """(kind, (first, last + 1)) of what `B-KIND I-KIND O` mark; an `I-` that continues nothing begins a
    span, and any other label than O is one by itself."""
    found: list[tuple[str, tuple]] = []
    kind, start = None, 0
    for place, label in enumerate([*labels, "O"]):
        prefix, _, name = label.partition("-")
        if kind is not None and not (prefix == "I" and name == kind):
            found.append((kind, (start, place)))
            kind = None
        if prefix in ("B", "I") and kind is None:
            kind, start = name, place
        elif prefix not in ("B", "I") and label != "O":
            found.append((label, (place, place + 1)))
    return found


@mtplug.hookimpl
def register_metrics(register):
    register("accuracy", Accuracy, AccuracyConfig)
    register("macro_f1", MacroF1, MacroF1Config)
    register("span_f1", SpanF1, SpanF1Config)
