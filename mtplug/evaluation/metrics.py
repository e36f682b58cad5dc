"""BLEU, chrF, TER and the ratio of lengths, computed by sacreBLEU and always shown with its signature."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import mtplug
from mtplug.data.scripts import primary
from mtplug.errors import MtplugError, UserError
from mtplug.lifecycle import first_line
from mtplug.registry import choice


@dataclass
class Score:
    """A number that says what it is.

    Attributes:
        label: the name it has in logs and in `validation.best_metric`.
        value: the score; higher is better unless the metric says otherwise.
        signature: what a reader needs to compute the same number.
        text: the score in words, with its parts.
    """

    label: str
    value: float
    signature: str
    text: str

    def __str__(self) -> str:
        return f"{self.text}  [{self.signature}]"


class Metric(ABC):
    """Scores a corpus of hypotheses against references."""

    label: str
    higher_is_better: bool | None = True
    """None where neither is better, as for the ratio of lengths"""
    takes_sources: bool = False
    """whether `score` has a third parameter `sources`, the texts that were translated; `statistics` may have it too"""

    @abstractmethod
    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        """`references` holds one list, as long as `hypotheses`, for each set of references."""

    def statistics(
        self, hypotheses: list[str], references: list[list[str]]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], float]] | None:
        """What each sentence adds to the score: lets `mtplug-score` test differences between systems.

        Returns:
            Numbers (N, K) for N sentences, and a function that makes the score of their sum (K,); or
            None where the score is not made of sums.
        """
        return None


def scored(
    metric: Metric, hypotheses: list[str], references: list[list[str]], sources: list[str] | None
) -> Score:
    """The score by a metric, which is given the sources if it takes them.

    Raises:
        UserError: it takes them, and there are none; or what it gives is no score.
        MtplugError: it fails.
    """
    made = f"{type(metric).__module__}.{type(metric).__qualname__}"
    takes_sources = getattr(metric, "takes_sources", False)
    if takes_sources and sources is None:
        raise UserError(f"metric {metric.label} needs the source text: --source FILE")
    try:
        score = metric.score(hypotheses, references, *([sources] if takes_sources else []))
    except MtplugError:
        raise
    except Exception as error:
        raise MtplugError(f"metric {metric.label} ({made}) failed: {first_line(error)}") from error
    if not isinstance(score, Score) or not isinstance(score.value, float | int):
        raise UserError(
            f"metric {metric.label} ({made}) gives {score!r}; it has to be a Score whose value is a float"
        )
    return score


def counted(
    metric: Metric, hypotheses: list[str], references: list[list[str]], sources: list[str] | None
) -> tuple[np.ndarray, Callable[[np.ndarray], float]] | None:
    """`Metric.statistics`, which is given the sources if it has a parameter for them."""
    takes_sources = "sources" in inspect.signature(metric.statistics).parameters
    return metric.statistics(hypotheses, references, *([sources] if takes_sources else []))


PART = 1000
"""Sentences whose n-grams are in memory at a time."""
TOKENIZERS = ("auto", "13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none", "flores200", "moses")  # fmt: skip


@dataclass
class BleuConfig:
    """BLEU (Papineni et al. 2002) by sacreBLEU (Post 2018)."""

    label: str = "bleu"
    """its name in logs"""
    tokenize: str = choice(*TOKENIZERS)
    """auto: by target language (zh, ja-mecab if installed, else char for ja; 13a otherwise);
    moses: sacremoses with the target language's rules"""
    lowercase: bool = False


class SacreMetric(Metric):
    """A metric object of sacreBLEU behind our interface."""

    metric: Any
    _last: tuple[list[list[str]], Any, np.ndarray] | None = None  # texts, and what `_computed` gave

    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        self.metric._check_corpus_score_args(hypotheses, references)
        result, _ = self._computed(hypotheses, references)
        return Score(
            self.label,
            result.score,
            str(self.metric.get_signature()),
            result.format(width=2).replace("\n", " "),
        )

    def statistics(
        self, hypotheses: list[str], references: list[list[str]]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
        _, rows = self._computed(hypotheses, references)
        compute = self.metric._compute_score_from_stats
        return rows, lambda total: compute(total.tolist()).score

    def _computed(
        self, hypotheses: list[str], references: list[list[str]]
    ) -> tuple[Any, np.ndarray]:
        """sacreBLEU's score, None of no text, and what each sentence adds to it; kept until other texts come, since a
        score and its significance are wanted of the same."""
        texts = [list(side) for side in (hypotheses, *references)]
        if self._last is None or self._last[0] != texts:
            rows = self._rows(hypotheses, references)
            result = self.metric._aggregate_and_compute(rows) if rows else None
            self._last = texts, result, np.array(rows, dtype=float)
        return self._last[1:]

    def _rows(self, hypotheses: list[str], references: list[list[str]]) -> list[Any]:
        """What each sentence adds. A part at a time: of all references at once sacreBLEU's chrF keeps 40 kB a line."""
        rows: list[Any] = []
        numbers = set()  # of references of a sentence, which the signature tells
        for start in range(0, len(hypotheses), PART):
            part = slice(start, start + PART)
            rows += self.metric._extract_corpus_statistics(
                hypotheses[part], [side[part] for side in references]
            )
            numbers.add(self.metric.num_refs)
        if len(numbers) > 1:
            self.metric.num_refs = -1  # as sacreBLEU says it
        return rows


class Bleu(SacreMetric):
    def __init__(self, config: BleuConfig, target_lang: str):
        from sacrebleu.metrics import BLEU

        self.label, self.moses = config.label, None
        tokenize = config.tokenize
        if tokenize == "auto":
            tokenize = _by_language(target_lang)
        if tokenize == "moses":
            self.moses = _moses(primary(target_lang) or "en")
            tokenize = "none"
        self.metric = BLEU(tokenize=tokenize, lowercase=config.lowercase, force=True)

    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        score = super().score(hypotheses, references)
        if self.moses:
            score.signature = score.signature.replace("tok:none", f"tok:{self.moses.name}")
        return score

    def _rows(self, hypotheses: list[str], references: list[list[str]]) -> list[Any]:
        if cut := self.moses:
            hypotheses = [cut(h) for h in hypotheses]
            references = [[cut(r) for r in side] for side in references]
        return super()._rows(hypotheses, references)


def _by_language(target_lang: str) -> str:
    language = primary(target_lang)
    if language == "ja":
        try:
            import ipadic  # noqa: F401
            import MeCab  # noqa: F401
        except ImportError:
            return "char"
        return "ja-mecab"
    return {"zh": "zh"}.get(language, "13a")


class _moses:
    """Moses' punctuation normaliser and tokenizer, as sacremoses has them."""

    def __init__(self, language: str):
        try:
            import sacremoses
        except ImportError:
            raise UserError(
                "metric bleu with tokenize=moses needs sacremoses: pip install sacremoses"
            ) from None
        from importlib.metadata import version

        self.name = f"moses-{language}-sacremoses{version('sacremoses')}"
        self.normalize = sacremoses.MosesPunctNormalizer(lang=language).normalize
        self.tokenize = sacremoses.MosesTokenizer(lang=language).tokenize

    def __call__(self, text: str) -> str:
        return self.tokenize(self.normalize(text), escape=False, return_str=True)


@dataclass
class ChrfConfig:
    """chrF (Popović 2015) and, with word n-grams, chrF++ (Popović 2017) by sacreBLEU."""

    label: str = "chrf"
    """its name in logs"""
    word_order: int = 2
    """longest word n-gram; 2: chrF2++, 0: chrF2"""


class Chrf(SacreMetric):
    def __init__(self, config: ChrfConfig, target_lang: str):
        from sacrebleu.metrics import CHRF

        self.label = config.label
        self.metric = CHRF(word_order=config.word_order)


@dataclass
class TerConfig:
    """Translation edit rate (Snover et al. 2006) by sacreBLEU; lower is better."""

    label: str = "ter"
    """its name in logs"""


class Ter(SacreMetric):
    higher_is_better = False

    def __init__(self, config: TerConfig, target_lang: str):
        from sacrebleu.metrics import TER

        self.label = config.label
        # Characters become words; sacreBLEU cuts them only where it normalises, too.
        unspaced = primary(target_lang) in ("zh", "ja")
        self.metric = TER(normalized=unspaced, asian_support=unspaced)


@dataclass
class LengthRatioConfig:
    """Length of the translations, in BLEU's tokens, divided by that of the references (the nearest ones)."""

    label: str = "length_ratio"
    """its name in logs"""
    tokenize: str = choice(*TOKENIZERS)
    """as of BLEU"""


class LengthRatio(Metric):
    """The ratio that BLEU's brevity penalty looks at; 1 is right, and neither less nor more is better."""

    higher_is_better = None

    def __init__(self, config: LengthRatioConfig, target_lang: str):
        self.label = config.label
        self.bleu = Bleu(BleuConfig(tokenize=config.tokenize), target_lang)

    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        rows, ratio = self.statistics(hypotheses, references)
        ours, theirs = rows.sum(0)
        value = ratio(rows.sum(0))
        signature = self.bleu.score(hypotheses, references).signature
        parts = [p for p in signature.split("|") if p.startswith(("nrefs", "tok", "version"))]
        text = f"length ratio = {value:.3f} ({ours:.0f} tokens, references {theirs:.0f})"
        return Score(self.label, value, "|".join(parts), text)

    def statistics(
        self, hypotheses: list[str], references: list[list[str]]
    ) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
        rows, _ = self.bleu.statistics(hypotheses, references)
        return rows[:, :2], lambda total: float(total[0] / max(total[1], 1))


@mtplug.hookimpl
def register_metrics(register):
    register("bleu", Bleu, BleuConfig)
    register("chrf", Chrf, ChrfConfig)
    register("ter", Ter, TerConfig)
    register("length_ratio", LengthRatio, LengthRatioConfig)
