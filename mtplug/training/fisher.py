"""The Fisher information of a run's weights on its training data, for elastic weight consolidation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtplug.architectures.base import Model
from mtplug.architectures.vocabulary import tables
from mtplug.data.batching import Batch
from mtplug.data.tokenizers import PAD, pieces_of
from mtplug.files import save_tensors, whole_file
from mtplug.nn.modes import evaluating


def fisher(
    model: Model, sentences: Iterator[Batch], report: Callable[[int], None] = lambda done: None
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information, by name of the parameter.

    It is the mean over sentences of (∂ log p(target | source) / ∂θ)², with the targets of the data, and the
    model in evaluation mode.

    Args:
        model: float32 or wider.
        sentences: batches of one sentence each, at least one.
        report: told how many are done.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in named.items()}
    count = 0
    with evaluating(model):
        for count, batch in enumerate(sentences, start=1):
            real = batch.target_tokens != PAD
            features = model(*batch.inputs)[real]
            log_probs = model.project(features).log_softmax(-1)
            likelihood = log_probs.gather(-1, batch.target_tokens[real][:, None]).sum()
            gradients = torch.autograd.grad(likelihood, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.square()
            report(count)
    return {name: t / count for name, t in total.items()}


def some_sentences(data: Any, count: int, each: int = 8) -> Iterator[Batch]:
    """Up to `count` sentences of an epoch, one a batch, `each` from a batch as sentences of like length meet
    there."""

    def singles(batch: Batch) -> Iterator[Batch]:
        parts = batch.halves()
        if len(parts) == 1:
            yield parts[0]
        for part in parts if len(parts) > 1 else ():
            yield from singles(part)

    chosen = (
        single
        for planned in data.remaining()
        for single in itertools.islice(singles(data.batch(planned)), each)
    )
    return itertools.islice(chosen, count)


def write(
    path: Path, model: Model, information: dict[str, Tensor], task: Any, about: dict[str, str]
) -> None:
    """F as `fisher.NAME` and θ* as `anchor.NAME`, with the pieces of the vocabularies, which rows stand for."""
    own = dict(model.named_parameters())
    sides = {s: getattr(task, f"{s}_tokenizer") for s in ("source", "target")}
    pieces: dict[str, Any] = {s: pieces_of(t) for s, t in sides.items()}
    pieces["tables"] = tables(model, len(sides["source"]), len(sides["target"]))
    tensors = {f"fisher.{n}": t.float().cpu().contiguous() for n, t in information.items()}
    tensors |= {f"anchor.{n}": own[n].detach().float().cpu().contiguous() for n in information}
    with whole_file(path) as aside:
        save_tensors(tensors, aside, {**about, "pieces": json.dumps(pieces)})
