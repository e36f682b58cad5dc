"""BLEU, chrF and TER, computed by sacreBLEU and always shown with its signature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import mtplug
from mtplug.errors import UserError
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
    higher_is_better = True

    @abstractmethod
    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        """`references` holds one list, as long as `hypotheses`, for each set of references."""


@dataclass
class BleuConfig:
    """BLEU (Papineni et al. 2002) by sacreBLEU (Post 2018)."""

    label: str = "bleu"
    """its name in logs"""
    tokenize: str = choice(
        "auto", "13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none", "flores200", "moses"
    )
    """auto: by target language (zh, ja-mecab if installed, else char for ja; 13a otherwise);
    moses: sacremoses with the target language's rules"""
    lowercase: bool = False


class SacreMetric(Metric):
    """A metric object of sacreBLEU behind our interface."""

    metric: Any

    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        result = self.metric.corpus_score(hypotheses, references)
        return Score(
            self.label,
            result.score,
            str(self.metric.get_signature()),
            result.format(width=2).replace("\n", " "),
        )


class Bleu(SacreMetric):
    def __init__(self, config: BleuConfig, target_lang: str):
        from sacrebleu.metrics import BLEU

        self.label, self.moses = config.label, None
        tokenize = config.tokenize
        if tokenize == "auto":
            tokenize = _by_language(target_lang)
        if tokenize == "moses":
            self.moses = _moses(target_lang or "en")
            tokenize = "none"
        self.metric = BLEU(tokenize=tokenize, lowercase=config.lowercase, force=True)

    def score(self, hypotheses: list[str], references: list[list[str]]) -> Score:
        if self.moses is None:
            return super().score(hypotheses, references)
        cut = self.moses
        score = super().score(
            [cut(h) for h in hypotheses], [[cut(r) for r in side] for side in references]
        )
        score.signature = score.signature.replace("tok:none", f"tok:{cut.name}")
        return score


def _by_language(target_lang: str) -> str:
    language = target_lang.replace("_", "-").split("-")[0].lower()
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

        language = target_lang.split("-")[0].lower()
        self.label = config.label
        self.metric = TER(asian_support=language in ("zh", "ja"))


@mtplug.hookimpl
def register_metrics(register):
    register("bleu", Bleu, BleuConfig)
    register("chrf", Chrf, ChrfConfig)
    register("ter", Ter, TerConfig)
