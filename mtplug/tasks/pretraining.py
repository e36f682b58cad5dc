"""Pre-training on text without translations: undo noise, which is new in each epoch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import mtplug
from mtplug.config.schema import RunConfig
from mtplug.data import noising
from mtplug.data.batching import Batch, collate, collate_aligned, concatenate, sentences
from mtplug.data.corpora import Corpus, View
from mtplug.data.tokenizers import UNK, pieces_of
from mtplug.data.words import word_starts
from mtplug.errors import UserError
from mtplug.registry import choice, require_range
from mtplug.tasks.translation import Transformed, Translation, with_corpora

MASK = "<mask>"


@dataclass
class PretrainingConfig:
    """Which text is learnt from."""

    source_lang: str = ""
    """code of the language of source sides"""
    target_lang: str = ""
    """code of the language of target sides"""
    sides: str = choice("both", "source", "target")
    """sides of a parallel corpus that are read, each sentence by itself; a corpus of two files may also
    name one file only"""


class Pretraining(Translation):
    """Pairs with an empty source and a sentence as target, of which `noise` makes what is learnt.

    Attributes:
        symbols: written forms of what the vocabulary must hold for it.
        longest: tokens that noise, too, must not make more of.
    """

    translates = False
    sourceless = True
    symbols: tuple[str, ...] = (MASK,)
    config: Any

    def __init__(self, config: PretrainingConfig):
        super().__init__(config)  # type: ignore[arg-type]
        self.seed = 0
        self.longest: float = math.inf

    @abstractmethod
    def noise(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Of a sentence: what is given, and what is learnt of it."""

    def change(self, batch: Batch, epoch: int) -> Batch:
        """Noise for each target of a batch."""
        return (concatenate if batch.packed else collate)(self.noisy(batch, epoch), batch.ids)

    def makes(self) -> str:
        return f"{super().makes()} {self.config.sides}"

    def corpora(self, run: RunConfig, split: str) -> list[Corpus]:
        chosen, sides = [], []
        for selected in getattr(run.data, split):
            named = self._named(selected.config)
            alone = len(set(named.values())) == 1
            if alone:
                both = dict.fromkeys(("source", "target"), next(iter(named.values())))
                selected = replace(selected, config=replace(selected.config, **both))
            chosen.append(selected)
            sides.append(list(named)[-1] if alone else self.config.sides)
        readers = super().corpora(with_corpora(run, split, chosen), split)
        return [_Sentences(r, side) for r, side in zip(readers, sides, strict=True)]

    def _named(self, config: Any) -> dict[str, str]:
        """The file or field that a corpus names for each side, where it does; by a language that nobody says, none is."""
        named = {}
        for side, language in zip(("source", "target"), self.languages, strict=True):
            name = getattr(config, side, "") if hasattr(config, "target") else ""
            own = getattr(config, f"{side}_lang") or language
            if name and (own or "{lang}" not in name):
                named[side] = name.replace("{lang}", own)
        return named

    def _addressed(self, corpus: Corpus, language: str) -> Corpus:
        """Each sentence as a target, now that filters have seen which side it is of."""
        return Transformed(corpus, lambda source, target: ("", source or target))

    def wanted_symbols(self, run: RunConfig) -> list[str]:
        return list(self.symbols)

    def _sides(self, joint: bool) -> list[tuple[str, tuple[int, ...]]]:
        return [("joint" if joint else "source", (0, 1))]

    def load(self, run: RunConfig, run_dir: Path) -> None:
        super().load(run, run_dir)
        self.seed, self.longest = run.seed, run.data.max_length
        pieces = pieces_of(self.source_tokenizer)
        for symbol in self.symbols:
            if symbol not in pieces:
                raise UserError(
                    f"task.name: this task needs {symbol} in the vocabulary, and tokenizer "
                    f"{run.tokenizer.name} takes no user_symbols; use one that does"
                )
        self.symbol_ids = np.array([pieces.index(symbol) for symbol in self.symbols])
        self.ordinary = np.setdiff1d(np.arange(UNK + 1, len(pieces)), self.symbol_ids)

    def noisy(self, batch: Batch, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """`noise` of each target of a batch."""
        return [
            self.noise(ids, noising.generator(self.seed, epoch, number)) if len(ids) else (ids, ids)
            for ids, number in zip(sentences(batch, "target"), batch.ids.tolist(), strict=True)
        ]


class _Sentences(View):
    """The sentences of some sides of a corpus, each as a pair whose other side is empty."""

    def __init__(self, corpus: Corpus, sides: str):
        super().__init__(corpus)
        self.sides = sides
        source, target = corpus.languages
        if sides != "both":  # what the other side would be written in is asked of nobody
            source = target = source if sides == "source" else target
        self.languages = (source or target, target or source)

    def files(self) -> list[Path]:
        return list(dict.fromkeys(self.corpus.files()))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for source, target in self.corpus:
            if self.sides != "target":
                yield source, ""
            if self.sides != "source":
                yield "", target


def _require_share(config: Any) -> None:
    if not 0 < config.share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {config.share}")


def _require_mean_span(config: Any) -> None:
    if not 0 < config.mean_span < math.inf:
        raise ValueError(f"mean_span must be above 0, not {config.mean_span}")


# --- masked language modelling --------------------------------------------------------------------


@dataclass
class MaskedLMConfig(PretrainingConfig):
    """Masked language modelling (BERT, Devlin et al. 2019), for an encoder; goes with criterion.smoothing=0.

    The vocabulary gets `<mask>`.
    """

    share: float = 0.15
    """of tokens that are to be told: 80 % of them masked, 10 % replaced, 10 % as they were"""
    whole_words: bool = False
    """choose whole words"""

    def __post_init__(self) -> None:
        _require_share(self)


class MaskedLM(Pretraining):
    """Tells masked tokens; a run's `Translator` fills `<mask>` in given text."""

    aligned = True
    loss_of = "masked token of the run's tokenizer"

    def load(self, run: RunConfig, run_dir: Path) -> None:
        super().load(run, run_dir)
        self.starts = word_starts(self.source_tokenizer) if self.config.whole_words else None

    def noise(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        starts = None if self.starts is None else self.starts[ids]
        mask_id = int(self.symbol_ids[0])
        return noising.mask(ids, rng, mask_id, self.ordinary, self.config.share, starts)

    def change(self, batch: Batch, epoch: int) -> Batch:
        inputs, labels = zip(*self.noisy(batch, epoch), strict=True)
        return collate_aligned(list(inputs), list(labels), batch.ids)

    def answer(self, source: list[int], log_probs: Tensor) -> tuple[list[int], list[float]]:
        likely = log_probs[:, self.ordinary]
        told, where = likely.max(-1)
        mask_id = int(self.symbol_ids[0])
        masked = [s == mask_id for s in source]
        filled = [
            int(self.ordinary[w]) if m else s for s, w, m in zip(source, where, masked, strict=True)
        ]
        return filled[:-1], [float(p) for p, m in zip(told, masked, strict=True) if m]


# --- for encoder-decoders ---------------------------------------------------------------------------


@dataclass
class DenoisingConfig(PretrainingConfig):
    """Denoising (BART, Lewis et al. 2020): the text back from text infilling, deletion and shuffling.

    The vocabulary gets `<mask>`.
    """

    share: float = 0.3
    """of tokens that are in spans which a mask replaces; 0: none"""
    mean_span: float = 3.0
    """mean of the Poisson distribution of the spans' lengths"""
    delete: float = 0.0
    """probability with which a token is left out"""
    shuffle_distance: float = 0.0
    """places by which a token moves at most; a sentence by itself has no sentences to permute"""

    def __post_init__(self) -> None:
        require_range(self, 0, 1, "share", "delete")
        require_range(self, 0, math.inf, "shuffle_distance")
        _require_mean_span(self)


class Denoising(Pretraining):
    """Noised text to text."""

    def noise(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        c, noised = self.config, ids
        if c.delete:
            noised = noising.delete(noised, rng, c.delete)
        if c.shuffle_distance:
            noised = noising.shuffle(noised, rng, c.shuffle_distance)
        if c.share:
            mask_id = int(self.symbol_ids[0])
            noised = noising.infill(noised, rng, mask_id, c.share, c.mean_span, self.longest)
        return noised, ids


@dataclass
class SpanCorruptionConfig(PretrainingConfig):
    """Span corruption (T5, Raffel et al. 2020): the spans that sentinels stand for.

    The vocabulary gets `<extra_id_0>` and so on.
    """

    share: float = 0.15
    """of tokens that are in spans"""
    mean_span: float = 3.0
    """mean of the spans' lengths"""
    sentinels: int = 100
    """in the vocabulary; a sentence has one span less, at most"""

    def __post_init__(self) -> None:
        _require_share(self)
        _require_mean_span(self)
        if self.sentinels < 2:
            raise ValueError(f"sentinels must be at least 2, not {self.sentinels}")


class SpanCorruption(Pretraining):
    """Text with sentinels to sentinels with text."""

    def __init__(self, config: SpanCorruptionConfig):
        super().__init__(config)
        self.symbols = tuple(f"<extra_id_{n}>" for n in range(config.sentinels))

    def makes(self) -> str:
        return f"{super().makes()} {self.config.sentinels}"

    def noise(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        c = self.config
        how = (c.share, c.mean_span, self.longest)
        return noising.corrupt_spans(ids, rng, self.symbol_ids, *how)


@mtplug.hookimpl
def register_tasks(register):
    register("masked_lm", MaskedLM, MaskedLMConfig)
    register("denoising", Denoising, DenoisingConfig)
    register("span_corruption", SpanCorruption, SpanCorruptionConfig)
