"""From text to translations: the one path of validation, `mtplug-evaluate`, `mtplug-translate` and Python."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtplug.architectures.base import Model
from mtplug.config.build import load_resolved
from mtplug.config.schema import RunConfig
from mtplug.data.batching import pad, token_batches
from mtplug.errors import UserError, did_you_mean
from mtplug.plugins import host
from mtplug.search.beam import Hypothesis, SearchStrategy
from mtplug.tasks.translation import Task


@dataclass
class Translation:
    """One translation of a text.

    Attributes:
        text: the translation.
        score: what the search ranked it by.
        tokens: its subwords.
        token_scores: log-probability of each, `</s>` last, in nats.
        finished: False if the search's length limit cut it off.
    """

    text: str
    score: float
    tokens: list[str]
    token_scores: list[float]
    finished: bool


class Translator:
    """A model with what it needs to translate text.

    Args:
        model: put into evaluation mode for each call, and back.
        task: with loaded tokenizers.
        search: how to decode.
        max_length: longest input in tokens.
        on_long: what happens to longer ones: `error`, `split` (pieces are translated one by one),
            and `truncate` or `skip`, which both cut: a line is never lost.
        batch_tokens: padded source tokens of a batch, all hypotheses counted.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        search: SearchStrategy,
        max_length: int = 256,
        on_long: str = "truncate",
        batch_tokens: int = 8192,
    ):
        self.model, self.task, self.search = model, task, search
        self.max_length, self.on_long, self.batch_tokens = max_length, on_long, batch_tokens
        self.too_long = 0

    def translate(self, texts: Iterable[str], **search: Any) -> list[str]:
        """The best translation of each text; an empty text gives an empty one.

        Args:
            texts: sentences.
            search: settings of the search strategy for this call, such as `beam=5`.
        """
        return [best[0].text for best in self.nbest(texts, **search)]

    def nbest(
        self,
        texts: Iterable[str],
        progress: Callable[[int], None] = lambda done: None,
        **search: Any,
    ) -> list[list[Translation]]:
        """All translations that the search returns for each text, best first.

        Raises:
            UserError: a text is too long and `on_long` is error, or a setting does not exist.
        """
        strategy = self._strategy(search)
        texts = [" ".join(text.split()) for text in texts]
        pieces: list[list[int]] = []
        owner: list[int] = []
        for number, ids in enumerate(self.task.source_tokenizer.encode(texts)):
            parts = self._fit(ids, number) if ids else []
            pieces += parts
            owner += [number] * len(parts)
        found: list[list[Hypothesis]] = [[] for _ in pieces]
        lengths = np.array([len(p) for p in pieces], np.int64)
        order = np.argsort(-lengths, kind="stable")
        beam = getattr(getattr(strategy, "config", None), "beam", 1)
        budget = max(self.batch_tokens // beam, 1)
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        done = 0
        try:
            for batch in token_batches(order, lengths, lengths, budget) if len(order) else ():
                tokens, true_lengths = pad([pieces[i] for i in batch])
                results = strategy(self.model, tokens.to(device), true_lengths.to(device))
                for i, hypotheses in zip(batch, results, strict=True):
                    found[i] = hypotheses
                done += len(batch)
                progress(done)
        finally:
            self.model.train(training)
        grouped: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for number, hypotheses in zip(owner, found, strict=True):
            grouped[number].append(hypotheses)
        return [self._readable(parts) for parts in grouped]

    def _strategy(self, settings: dict[str, Any]) -> SearchStrategy:
        if not settings:
            return self.search
        config: Any = getattr(self.search, "config", None)
        known = [f.name for f in dataclasses.fields(config)] if config is not None else []
        for key in settings:
            if key not in known:
                raise UserError(f"search: unknown setting '{key}'{did_you_mean(key, known)}")
        try:
            return type(self.search)(dataclasses.replace(config, **settings))  # type: ignore[call-arg]
        except ValueError as error:
            raise UserError(f"search: {error}") from None

    def _fit(self, ids: list[int], number: int) -> list[list[int]]:
        limit = self.max_length
        if len(ids) <= limit:
            return [ids]
        self.too_long += 1
        if self.on_long == "error":
            raise UserError(
                f"sentence {number + 1} has {len(ids)} tokens, data.max_length is {limit}; "
                "raise it, or set data.on_long to truncate or split"
            )
        if self.on_long == "split":
            count = -(-len(ids) // limit)
            return [ids[len(ids) * k // count : len(ids) * (k + 1) // count] for k in range(count)]
        return [ids[:limit]]

    def _readable(self, parts: list[list[Hypothesis]]) -> list[Translation]:
        if not parts:
            return [Translation("", 0.0, [], [], True)]
        tokenizer = self.task.target_tokenizer
        result = []
        for rank in range(min(map(len, parts))):
            row = [hypotheses[rank] for hypotheses in parts]
            result.append(
                Translation(
                    " ".join(tokenizer.decode([h.tokens for h in row])).strip(),
                    sum(h.score for h in row) / len(row),
                    [t for h in row for t in tokenizer.tokens(h.tokens)],
                    [s for h in row for s in h.token_scores],
                    all(h.finished for h in row),
                )
            )
        return result


def load(
    run_dir: str | Path,
    checkpoint: str = "best",
    device: str = "auto",
    overrides: Iterable[str] = (),
) -> Translator:
    """The translator of a run.

    Args:
        run_dir: the run's folder.
        checkpoint: best, last, averaged or a checkpoint's name such as step-00001000.
        device: auto, cpu, cuda or cuda:N.
        overrides: `key=value` settings, as on the command line of `mtplug-translate`.

    Raises:
        UserError: something of the run is missing or damaged, or needs a plugin that isn't here.
    """
    run = load_run(run_dir, overrides)
    return translator_of(run, Path(run_dir), checkpoint, device)


def load_run(run_dir: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run, after a check that its plugins are here."""
    from mtplug.config.build import load_config

    run_dir = Path(run_dir)
    config = run_dir / "config.yaml"
    if not config.is_file():
        here = "is no run: it has no config.yaml" if run_dir.is_dir() else "does not exist"
        raise UserError(f"{run_dir} {here}; give the folder that mtplug-train made")
    environment = run_dir / "environment.json"
    if environment.is_file():
        host().require(json.loads(environment.read_text())["plugins"], str(run_dir))
    return load_config(config, list(overrides))[0] if overrides else load_resolved(config)


def translator_of(run: RunConfig, run_dir: Path, checkpoint: str, device: str) -> Translator:
    """A translator from one of a run's checkpoints."""
    from mtplug.training.checkpoints import Checkpoints
    from mtplug.training.precision import pick_device

    task = run.task.build()
    task.load(run, run_dir)
    model = run.architecture.build(task)
    if run.peft is not None:
        model = run.peft.build().apply(model) or model
    Checkpoints(run_dir / "checkpoints").load_model(checkpoint, model)
    model.to(pick_device(device)).eval()
    return Translator(
        model,
        task,
        run.search.build(),
        max_length=run.data.max_length,
        on_long=run.data.on_long,
        batch_tokens=run.validation.batch_tokens,
    )
