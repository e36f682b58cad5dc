"""Models made of models: ensembles and shallow fusion, for any search strategy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.base import DecodingState, Model
from mtplug.data.separated import SEPARATOR, Separated
from mtplug.data.tags import TAG
from mtplug.data.tokenizers import EOS, Tokenizer, pieces_of
from mtplug.errors import UserError
from mtplug.tasks.base import Task
from mtplug.tasks.sized import Sized


class Ensemble(Model):
    """The mean of several models' probabilities.

    Args:
        models: with the same vocabularies; see `same_vocabulary`.
    """

    def __init__(self, models: list[Model]):
        super().__init__()
        self.models: Any = nn.ModuleList(models)
        self.autoregressive = all(model.autoregressive for model in models)

    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        """All models' features, one after the other."""
        return self._joined(
            [m(source_tokens, source_lengths, prev_output_tokens) for m in self.models]
        )

    def project(self, features: Tensor) -> Tensor:
        parts = features.split(self.sizes, -1)
        return self._mean([m.project(x) for m, x in zip(self.models, parts, strict=True)])

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor | None:
        args = (source_tokens, source_lengths, prev_output_tokens)
        found = [model.cross_attention(*args) for model in self.models]
        shown = [weights for weights in found if weights is not None]
        return torch.stack(shown).mean(0) if shown else None

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> DecodingState:
        return _States([model.start(source_tokens, source_lengths) for model in self.models])

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, _States)
        pairs = zip(self.models, state.states, strict=True)
        return self._joined([model.extend(own, tokens) for model, own in pairs])

    def _joined(self, features: list[Tensor]) -> Tensor:
        self.sizes = [f.shape[-1] for f in features]
        return torch.cat(features, -1)

    # Not by way of `extend`: a member may have a step of its own.
    def step(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, _States)
        pairs = zip(self.models, state.states, strict=True)
        return self._mean([model.step(own, tokens) for model, own in pairs])

    @staticmethod
    def _mean(logits: list[Tensor]) -> Tensor:
        log_probs = torch.stack([x.float().log_softmax(-1) for x in logits])
        return log_probs.logsumexp(0) - math.log(len(logits))


class ShallowFusion(Model):
    """log p(target | source) + weight · log p(target) at each step (Gülçehre et al. 2015).

    Args:
        model: the translation model.
        language_model: any model over the same target vocabulary; it is given an empty source.
        weight: of the language model.
    """

    normalised = False

    def __init__(self, model: Model, language_model: Model, weight: float):
        super().__init__()
        self.model, self.language_model, self.weight = model, language_model, weight
        self.autoregressive = model.autoregressive and language_model.autoregressive

    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        return self._joined(
            self.model(source_tokens, source_lengths, prev_output_tokens),
            self.language_model(*_nothing(source_tokens), prev_output_tokens),
        )

    def project(self, features: Tensor) -> Tensor:
        parts = features.split([self.size, features.shape[-1] - self.size], -1)
        return self._fuse(self.model.project(parts[0]), self.language_model.project(parts[1]))

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor | None:
        return self.model.cross_attention(source_tokens, source_lengths, prev_output_tokens)

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> DecodingState:
        states = [
            self.model.start(source_tokens, source_lengths),
            self.language_model.start(*_nothing(source_tokens)),
        ]
        return _States(states)

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, _States)
        return self._joined(
            self.model.extend(state.states[0], tokens),
            self.language_model.extend(state.states[1], tokens),
        )

    def _joined(self, features: Tensor, of_language: Tensor) -> Tensor:
        self.size = features.shape[-1]
        return torch.cat([features, of_language], -1)

    def step(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, _States)
        return self._fuse(
            self.model.step(state.states[0], tokens),
            self.language_model.step(state.states[1], tokens),
        )

    def _fuse(self, logits: Tensor, of_language: Tensor) -> Tensor:
        log_probs = logits.float().log_softmax(-1)
        return log_probs + self.weight * of_language.float().log_softmax(-1)


class _States(DecodingState):
    def __init__(self, states: list[DecodingState]):
        self.states = states

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        for state in self.states:
            state.reorder(sentences, parents)


def _nothing(source_tokens: Tensor) -> tuple[Tensor, Tensor]:
    empty = source_tokens.new_full((len(source_tokens), 1), EOS)
    return empty, torch.ones_like(empty[:, 0])


def direction(task: Task) -> tuple[str, ...]:
    """Source and target language of a task; empty where tags choose them or nothing says them."""
    return () if task.tags else tuple(task.languages)


def check_direction(due: tuple[str, ...], other: Task, what: str) -> None:
    """Raises `UserError` if a task translates the other way, which one vocabulary for both languages lets pass.

    Args:
        due: the direction that is wanted.
        other: the task.
        what: setting and run of it, for the message.
    """
    given = direction(other)
    if given == due[::-1] != due:
        raise UserError(f"{what} translates {'-'.join(given)}; give a run of {'-'.join(due)}")


def same_vocabulary(one: Tokenizer, other: Tokenizer, what: str) -> None:
    """Raises `UserError` unless two tokenizers give every id the same piece; of a stand-in only the size is known."""
    another = f"{what}: it has another vocabulary; tokenizer.model=RUN trains with that of RUN"
    if isinstance(one, Sized):
        if len(one) != len(other):
            raise UserError(another)
        return
    if one is not other and pieces_of(one) != pieces_of(other):
        several = [isinstance(tokenizer, Separated) for tokenizer in (one, other)]
        if several[0] != several[1]:
            raise UserError(
                f"{what}: a run of documents has {SEPARATOR} in its vocabulary, and one of sentences has not; they cannot "
                "be combined"
            )
        rest = [[p for p in pieces_of(t) if not TAG.fullmatch(p)] for t in (one, other)]
        if rest[0] == rest[1]:
            raise UserError(
                f"{what}: its language tags are not those of this run, and have ids too; task.language_tags and the languages "
                "of both must be the same"
            )
        raise UserError(another)
    if one.prefixes != other.prefixes:
        raise UserError(
            f"{what}: other language codes stand in front of its texts; settings of task and tokenizer that say them must be "
            "the same"
        )
