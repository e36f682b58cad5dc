"""Validation: loss of the references, and scores of real translations."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtplug.architectures.base import Model
from mtplug.config.schema import RunConfig
from mtplug.data.batching import padded, token_batches
from mtplug.data.corpora import has_text
from mtplug.data.encoding import Encoding
from mtplug.data.pairs import Pairs
from mtplug.errors import UserError
from mtplug.evaluation import Score, scored
from mtplug.nn.modes import evaluating
from mtplug.registry import Selected
from mtplug.tasks.base import Task, concatenated
from mtplug.translator import Translator

Sample = tuple[str, str, str]
"""Source, reference, translation."""


class Validation:
    """The validation set of a run, and what it is scored with.

    Args:
        run: the resolved configuration.
        task: prepared.

    Attributes:
        corpora: of several corpora, what metrics gave for each in the last call, by its label.
        notes: what a reader of the loss must know.

    Raises:
        UserError: `validation.best_metric` is not among what is measured.
    """

    def __init__(self, run: RunConfig, task: Task):
        self.run, self.task = run, task
        parts = task.pairs(run, "valid")
        self.pairs = concatenated(parts)
        further = task.references(run, "valid")
        # Of each pair the references that scores count, one of each of its corpus' sets.
        self.references = [
            list(texts)
            for (_, pairs), sets in zip(parts, further, strict=True)
            for texts in zip([text for _, text in pairs], *sets, strict=True)
        ]
        units = task.units(run, "valid", parts)
        self.encoded, self.notes = encoded_references(task, units, run)
        self.metrics = checked_metrics(run, task)
        self.key = run.validation.best_metric
        self.translates = run.validation.translate and task.translates
        self.corpora: dict[str, dict[str, float]] = {}
        self._of = [label for label, pairs in parts for _ in pairs]
        # Metrics of each language once: some hold a model. Those of the task's are there already.
        spoken = task.target_langs(run, "valid")
        languages = spoken if self.translates else [task.target_lang] * len(parts)
        made = {task.target_lang: self.metrics}
        made |= {to: metrics_of(run, to) for to in dict.fromkeys(languages) if to not in made}
        windows = task.windows(run, "valid")
        told = zip(parts, run.data.valid, windows, languages, strict=True)
        self._told = {label: (corpus, n, made[to]) for (label, _), corpus, n, to in told}

    def better(self, scores: dict[str, float], best: float | None) -> bool:
        """Do `scores` beat the best value so far of the metric that decides?"""
        if math.isnan(scores[self.key]):
            return best is None  # something has to be the first
        if best is None or math.isnan(best):
            return True
        rises = higher_is_better(self.metrics, self.key)
        return scores[self.key] > best if rises else scores[self.key] < best

    def __call__(self, model: Model, criterion: Any) -> tuple[dict[str, float], list[Sample]]:
        """Scores of `model`, always in fp32, and its translations.

        Returns:
            `loss` (nats per target token), `perplexity` and the metrics by label; and the samples. Of several
            corpora a metric is the mean of what it gives for each, in its own language.
        """
        scores = reference_loss(model, criterion, self.task, self.encoded, self.run)
        if not self.translates:
            return scores, []
        v = self.run.validation
        count = len(self.pairs)
        chosen: Sequence[int] = range(count)
        if v.max_sentences and v.max_sentences < count:
            chosen = [i * count // v.max_sentences for i in range(v.max_sentences)]
            if self.task.window > 1:  # neighbours, as many of each corpus; empty lines do not count
                shares = Counter(self._of[i] for i in chosen)
                chosen = [i for label, share in shares.items() for i in self._first(label, share)]
        data = self.run.data
        translator = Translator(
            model, self.task, v.search.build(), data.max_length, data.on_long, v.batch_tokens
        )
        labels = [metric.label for metric in self.metrics]
        found: dict[str, dict[str, float]] = {}
        samples: list[Sample] = []
        for label in dict.fromkeys(self._of[i] for i in chosen):
            rows = [i for i in chosen if self._of[i] == label]
            pairs = [self.pairs[i] for i in rows]
            references = zip(*(self.references[i] for i in rows), strict=True)
            corpus, translator.window, metrics = self._told[label]
            written = translator.translate([source for source, _ in pairs])
            made = scores_of(metrics, self.task, corpus, pairs, references, written)
            found[label] = {key: s.value for key, s in zip(labels, made, strict=True)}
            samples += [
                (*pair, h) for pair, h in zip(pairs, written, strict=True) if has_text(pair)
            ]
        for label in labels:
            scores[label] = statistics.fmean(own[label] for own in found.values())
        self.corpora = found if len(found) > 1 else {}
        return scores, samples

    def _first(self, label: str, count: int) -> Iterator[int]:
        """Numbers of the pairs of a corpus up to that with the `count`-th text."""
        for i, own in enumerate(self._of):
            if own == label and count > 0:
                count -= has_text(self.pairs[i])
                yield i


def metrics_of(run: RunConfig, language: str) -> list[Any]:
    """What a run's translations into a language are scored with.

    Raises:
        UserError: two have one label.
    """
    metrics = [m.build(language) for m in run.validation.metrics]
    labels = [m.label for m in metrics]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(
            f"validation.metrics: two of them are called {twice[0]}, so that one score would be lost; leave one out"
        )
    return metrics


def scores_of(
    metrics: list[Any],
    task: Task,
    corpus: Selected,
    pairs: list[tuple[str, str]],
    references: Iterable[Sequence[str]],
    hypotheses: list[str],
) -> list[Score]:
    """The scores of translations of a corpus. An empty line, such as the end of a document, is nothing to be scored.

    Metrics that read sources are given them without language tag, and without what is no word of the sentence, to the
    task or to its tokenizer.

    Args:
        references: sets of them, each as long as `pairs`.
    """
    rows = [n for n, pair in enumerate(pairs) if has_text(pair)]
    prefix = getattr(corpus.config, "prefix", "")
    words = (task.wording(task.bare(pairs[n][0]), prefix) for n in rows)
    sources = [task.source_tokenizer.plain(text) for text in words]
    sides = [[side[n] for n in rows] for side in references]
    return [scored(m, [hypotheses[n] for n in rows], sides, sources) for m in metrics]


def higher_is_better(metrics: list[Any], key: str) -> bool:
    """Of a metric's label; of loss and perplexity lower is."""
    return any(m.higher_is_better for m in metrics if m.label == key)


def checked_metrics(run: RunConfig, task: Task) -> list[Any]:
    """The metrics of a run, one of which, or the loss, can choose the best checkpoint; needs no data.

    Raises:
        UserError: `validation.best_metric` is not among what is measured.
    """
    metrics = metrics_of(run, task.target_lang)
    key = run.validation.best_metric
    known = ["loss", "perplexity"]
    known += [m.label for m in metrics] if run.validation.translate and task.translates else []
    if run.data.valid and key not in known:
        raise UserError(
            f"validation.best_metric: '{key}' is not among what validation measures: "
            f"{', '.join(known)}"
        )
    if any(m.label == key and m.higher_is_better is None for m in metrics):
        raise UserError(
            f"validation.best_metric: for '{key}' neither higher nor lower is better; "
            "choose another metric"
        )
    return metrics


def encoded_references(
    task: Task, texts: list[tuple[str, str]], run: RunConfig
) -> tuple[Pairs, list[str]]:
    """What the loss of references is measured on, and what is to be told of it.

    As in training, pairs with an empty side are left out and long ones split where `data.on_long` says so;
    otherwise they are cut, and none is skipped.
    """
    on_long = "split" if run.data.on_long == "split" else "truncate"
    tokenizers = (task.source_tokenizer, task.target_tokenizer)
    sourceless = task.sourceless or not any(source for source, _ in texts)
    encoding = Encoding(
        tokenizers, run.data.max_length, on_long, sourceless=sourceless, heads=task.heads
    )
    pairs, _, counts = encoding(texts, 1)
    notes = []
    if long := counts["too_long"]:
        done = "split" if on_long == "split" else "cut, of which the loss tells the beginning"
        notes.append(
            f"{long:,} of {len(texts):,} pairs have more than {run.data.max_length} tokens and were {done}"
        )
    if empty := counts["empty"]:
        notes.append(f"{empty:,} of {len(texts):,} pairs have an empty side and no loss")
    return pairs, notes


@torch.no_grad()
def reference_loss(
    model: Model, criterion: Any, task: Task, pairs: Pairs, run: RunConfig
) -> dict[str, float]:
    """Negative log-likelihood of encoded references.

    Returns:
        `loss` (nats per target token; NaN if there is none) and `perplexity`.
    """
    source, target = pairs.source, pairs.target
    order = np.lexsort((source.lengths, target.lengths))
    device = next(model.parameters()).device
    nll, count = 0.0, 0
    batches = token_batches(order, source.lengths, target.lengths, run.validation.batch_tokens)
    with contextlib.ExitStack() as modes:
        for module in (model, criterion):
            if isinstance(module, torch.nn.Module):
                modes.enter_context(evaluating(module))
        for ids in batches:
            batch = task.change(padded(source.take(ids), target.take(ids), ids), 0)
            loss = criterion(model, batch.to(device))
            nll, count = nll + float(loss.nll), count + loss.tokens
    mean = nll / count if count else math.nan
    return {"loss": mean, "perplexity": math.exp(min(mean, 50))}


def write_samples(folder: Path, name: str, samples: list[Sample], count: int) -> None:
    """Write `count` samples, evenly spread, to `folder/name.txt`."""
    count = min(count, len(samples))
    if not count:
        return
    folder.mkdir(exist_ok=True)
    chosen = [samples[i * len(samples) // count] for i in range(count)]
    blocks = [f"source       {s}\nreference    {r}\ntranslation  {h}\n" for s, r, h in chosen]
    (folder / f"{name}.txt").write_bytes("\n".join(blocks).encode())


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file of `write_samples`."""
    blocks = path.read_bytes().decode(errors="replace").split("\n\n")
    fields = [[line[13:] for line in block.split("\n")[:3]] for block in blocks]
    return [(f[0], f[1], f[2]) for f in fields if len(f) == 3]
