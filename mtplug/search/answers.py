"""The output of a model that labels text: read off at once, without a search."""

from __future__ import annotations

import torch
from torch import Tensor

from mtplug.architectures.base import Model
from mtplug.search.base import Hypothesis, SearchStrategy
from mtplug.tasks.base import Task


class Answers(SearchStrategy):
    """One answer for each sentence, as its task reads it off the labels' probabilities.

    It stands in a `Translator` in place of a search, so that validation, commands and Python go the same way
    as with translations.
    """

    def __init__(self, task: Task):
        self.task = task

    @torch.inference_mode()
    def __call__(
        self, model: Model, source_tokens: Tensor, source_lengths: Tensor
    ) -> list[list[Hypothesis]]:
        features = model(source_tokens, source_lengths, source_tokens)
        found = []
        for row, tokens, length in zip(
            features, source_tokens, source_lengths.tolist(), strict=True
        ):
            log_probs = model.project(row[:length]).float().log_softmax(-1).cpu()
            ids, scores = self.task.answer(tokens[:length].tolist(), log_probs)
            score = sum(scores) / max(len(scores), 1)
            found.append([Hypothesis(ids, score, scores)])
        return found
