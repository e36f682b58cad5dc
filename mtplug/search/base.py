"""What every search strategy takes and gives.

Shapes of this package: B sentences, K hypotheses of each, R rows (one hypothesis each), V vocabulary,
t tokens so far.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError
from mtplug.files import is_run
from mtplug.registry import require_range
from mtplug.search.combine import ShallowFusion, same_vocabulary
from mtplug.tasks.base import Task


@dataclass
class Hypothesis:
    """One translation found by a search.

    Attributes:
        tokens: ids without `</s>`.
        score: what hypotheses are ranked by.
        token_scores: the model's log-probability of each token, `</s>` last, in nats.
        finished: False if the length limit cut it off before `</s>`.
        met: False if it lacks a required phrase; such a one comes behind all others.
    """

    tokens: list[int]
    score: float
    token_scores: list[float] = field(default_factory=list)
    finished: bool = True
    met: bool = True


def check_hypotheses(strategy: Any, found: Any, sentences: int) -> None:
    """Whether a search gave each of so many sentences its hypotheses.

    Raises:
        UserError: it gave something else.
    """
    if said := _strange(found, sentences):
        raise UserError(
            f"search {type(strategy).__name__}: for {sentences} sentences it has to give as many lists of "
            f"mtplug.search.Hypothesis, and gives {said}"
        )


def _strange(found: Any, sentences: int) -> str:
    """What is not as `check_hypotheses` wants it; empty if all is."""
    if not isinstance(found, (list, tuple)):
        return f"a {type(found).__name__}"
    if len(found) != sentences:
        return f"{len(found)} of them"
    for one in found:
        if not isinstance(one, (list, tuple)):
            return f"a {type(one).__name__} for one"
        if not one:
            return "an empty one"
        for hypothesis in one:
            if not isinstance(hypothesis, Hypothesis):
                return f"a list with a {type(hypothesis).__name__}"
    return ""


@dataclass
class Request:
    """What one sentence's translation must and must not hold, in ids.

    Attributes:
        prefix: how it begins.
        closed: whether the prefix ends a word, so that the next token begins one.
        required: phrases that must occur; each is a list of its spellings, one of which suffices.
        forbidden: token sequences that must not occur.
        word_inside: (V,) bool, tokens that continue a word; none follows a required phrase. The
            same for all sentences of a batch.
    """

    prefix: list[int] = field(default_factory=list)
    required: list[list[list[int]]] = field(default_factory=list)
    forbidden: list[list[int]] = field(default_factory=list)
    word_inside: Tensor | None = None
    closed: bool = False


class SearchStrategy(ABC):
    """Finds translations of a batch under a model.

    Attributes:
        config: the settings; a call may replace some of them.
        width: hypotheses that are searched at once for each sentence, for sizing batches.

    One for models that are not autoregressive has a static method `why_not(config, model) -> str`; see
    `mtplug.architectures.base.why_unfit`.
    """

    config: Any = None
    width: int = 1

    @staticmethod
    def check_files(config: Any) -> None:
        """Raises `UserError` if a file or run that the settings name cannot be read, before a training or a search
        needs it."""
        from mtplug.search.wishes import Policy  # which is made of this module

        Policy(config)
        if path := getattr(config, "language_model", ""):
            existing_run(path, "search.language_model")

    def searched_model(self, model: Model, task: Task) -> Model:
        """The model that is searched, and by which given translations are scored: `model`, or one made of it.

        Here it is fused with the language model that the settings name, if they have `language_model`; a strategy
        that mixes in something else gives what it made to this method.

        Args:
            model: of the run, an ensemble perhaps, on its device.
            task: with loaded tokenizers.

        Raises:
            UserError: they don't fit.
        """
        path = getattr(self.config, "language_model", "")
        if not path:
            return model
        device = str(next(model.parameters()).device)
        language_model = _language_model(path, device, task.target_tokenizer)
        return ShallowFusion(model, language_model, self.config.language_model_weight)

    @abstractmethod
    def __call__(
        self, model: Model, source_tokens: Tensor, source_lengths: Tensor
    ) -> list[list[Hypothesis]]:
        """(B, S) and (B,) to the hypotheses of each sentence, best first, at least one.

        `model` is what `searched_model` gave; with a shortlist one that numbers the target tokens anew.

        A strategy that honours wishes takes them as a further argument
        `requests: Sequence[Request] | None = None`, one for each sentence.
        """

    def of_pieces(self, found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """The translations of a text that was split, best first: for each of them its hypothesis of every piece.

        Here the best of all pieces, then the second of all, and so on.

        Args:
            found: of each piece, best first.
        """
        return [list(row) for row in zip(*found, strict=False)]

    def rank(self, sources: list[str], found: list[list[Any]]) -> list[list[Any]]:
        """Reorder or drop translations by their texts.

        Args:
            sources: texts.
            found: for each its `mtplug.translator.Translation`s, best first.
        """
        return found


@dataclass
class SearchConfig:
    """What all strategies of this package understand.

    A strategy of a plugin whose settings derive from it has to keep them: `mtplug.search.Rules` does. One that cannot
    has only those of its own.
    """

    max_ratio: float = 2.0
    """a translation has at most `max_ratio` · source tokens + `max_extra`"""
    max_extra: int = 20
    """tokens; the limit includes `</s>`, and forced tokens are added to it"""
    min_length: int = 0
    """tokens that a translation has at least, `</s>` not counted; 0: it may be empty"""
    allow_unknown: bool = True
    """a translation may hold the unknown token, which is written ⁇ or <unk>"""
    no_repeat_ngram: int = 0
    """no sequence of so many tokens occurs twice in a translation; 0: it may"""
    forbidden: list[str] = field(default_factory=list)
    """words and phrases that no translation holds"""
    forbidden_file: str = ""
    """the same from a file, one a line"""
    language_model: str = ""
    """folder of a run whose log-probabilities are added at each step, given an empty source
    (shallow fusion); needs the same target vocabulary"""
    language_model_weight: float = 0.2
    """what they are multiplied by"""

    shortlist: int = 0
    """score only so many target tokens for each source token, taken from a lexicon that the run learns and
    keeps (faster; translations may change a little); 0: all"""

    def __post_init__(self) -> None:
        require_range(
            self,
            0,
            math.inf,
            "max_ratio",
            "max_extra",
            "min_length",
            "no_repeat_ngram",
            "shortlist",
        )


@functools.lru_cache(maxsize=1)
def _language_model(path: str, device: str, tokenizer: Tokenizer) -> Model:
    """Kept, since every call of a translator asks for it."""
    other = mtplug.load(path, device=device)
    same_vocabulary(tokenizer, other.task.target_tokenizer, f"search.language_model: {path}")
    return other.model


def existing_run(path: str, setting: str) -> None:
    """Raises `UserError` if a setting names no folder of a run."""
    if not is_run(path):
        raise UserError(f"{setting}: {path} is no run; give the folder that mtplug-train made")


def refuse_required(requests: Sequence[Request] | None, name: str) -> None:
    """Raises `UserError` if a sentence requires phrases, which search `name` cannot promise."""
    if any(r.required for r in requests or ()):
        raise UserError(
            f"search.name: {name} cannot promise required phrases; use search.name=beam"
        )
