"""Checks of search strategies, metrics, trackers, exporters, benchmarks and lifecycle hooks."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
import shutil
import tempfile
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.config.build import component_from_overrides
from mtplug.data.batching import Batch
from mtplug.data.tokenizers import EOS, PAD, UNK
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score, counted, scored
from mtplug.exporting import write_run
from mtplug.search import Hypothesis, Request
from mtplug.search.scoring import log_scores
from mtplug.testing.material import (
    UntrainedTask,
    Words,
    WordsTask,
    model_of,
    padded,
    random_batch,
    rows_of,
)
from mtplug.testing.subject import ContractBroken, Subject, close, require, same
from mtplug.testing.tiny import pairs
from mtplug.training import Tracker


def check_search_strategy(name: str, *settings: str, architecture: tuple[str, ...] = ()) -> None:
    """Check a search strategy against `mtplug-plugins docs search_strategy`.

    Args:
        name: of the strategy.
        settings: such as `beam=3`.
        architecture: name and settings of the model that it searches, for one that takes no other.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("search_strategies", name, settings)
    model, batch = model_of(architecture, seed=3).eval(), random_batch()
    endless = _leaning(model, EOS, -1e9)
    strategy, task = subject.build(), WordsTask()

    def search(some: Batch, model: Model = model) -> list[list[Hypothesis]]:
        fresh = subject.selected.build()
        searched = fresh.searched_model(model, task).eval()
        return fresh(searched, some.source_tokens, some.source_lengths)

    with subject.promise("config"):
        same(strategy.config, subject.selected.config, "`config`")
    with subject.promise("hypotheses"):
        found = search(batch)
        same(len(found), len(batch), "sentences")
        for hypotheses in found:
            require(bool(hypotheses), "a sentence has no hypothesis")
            scores = [h.score for h in hypotheses]
            require(not any(map(math.isnan, scores)), f"scores {scores}")
            require(scores == sorted(scores, reverse=True), f"scores in the order {scores}")
            for h in hypotheses:
                require(not {PAD, EOS} & set(h.tokens), f"tokens {h.tokens}")
    with subject.promise("scores"), torch.no_grad():
        searched = strategy.searched_model(model, task).eval()
        for row, hypotheses in enumerate(found if model.autoregressive else ()):
            one = rows_of(batch, [row])
            for h in hypotheses:
                prefix = torch.tensor([[EOS, *h.tokens]])
                features = searched(one.source_tokens, one.source_lengths, prefix)
                log_probs = log_scores(searched, searched.project(features)[0])
                written = torch.tensor([*h.tokens, EOS])[: len(h.token_scores)]
                least = len(h.tokens) + (1 if h.finished else 0)
                require(len(written) >= least, f"{len(h.token_scores)} scores of {least} tokens")
                truth = log_probs[range(len(written)), written]
                close(torch.tensor(h.token_scores), truth, "token_scores")
    with subject.promise("determinism"):
        same(_tokens(search(batch)), _tokens(found), "tokens of a second search")
    with subject.promise("batch"):
        for row in range(len(batch)):
            same(_tokens(search(rows_of(batch, [row])))[0], _tokens(found)[row], "tokens alone")
        turned = search(rows_of(batch, [2, 1, 0]))
        same(_tokens(turned)[::-1], _tokens(found), "tokens in another order")
        same(_tokens(search(padded(batch))), _tokens(found), "tokens with more padding")
    with subject.promise("ends"):
        for hypotheses in search(batch, endless):
            require(bool(hypotheses), "a sentence has no hypothesis")
    with subject.promise("settings"):
        for more, inclined, kept in _settings(model):
            names = {setting.partition("=")[0] for setting in more}
            if names <= {f.name for f in dataclasses.fields(strategy.config)}:
                _require_kept(
                    name, (*settings, *more), inclined, batch, None, ", ".join(more), kept
                )
    if "requests" in inspect.signature(strategy.__call__).parameters:
        with subject.promise("requests"):
            for what, request, inclined, kept in _wishes(model):
                _require_kept(name, settings, inclined, batch, request, what, kept)


Kept = Callable[[Hypothesis, int], bool]
"""Whether a hypothesis, of a source of so many tokens, is as asked."""


def _leaning(model: Model, token: int, by: float) -> Model:
    """A model as `model`, whose logits of a token are higher by so much."""
    made = copy.deepcopy(model)
    project = made.project

    def leaning(features: Tensor) -> Tensor:
        logits = project(features)
        return logits.index_add(
            -1, torch.tensor([token]), logits.new_full((*logits.shape[:-1], 1), by)
        )

    made.project = leaning  # type: ignore[method-assign]
    return made


def _settings(model: Model) -> list[tuple[tuple[str, ...], Model, Kept]]:
    """Settings of `SearchConfig`, a model that goes against them by itself, and what shows that they are kept."""
    endless, short = _leaning(model, EOS, -1e9), _leaning(model, EOS, 50.0)
    # As a search has it, `</s>` counts.
    return [
        (("max_ratio=0", "max_extra=3"), endless, lambda h, source: len(h.tokens) < 3),
        (("max_ratio=1", "max_extra=0"), endless, lambda h, source: len(h.tokens) < source),
        (("min_length=4",), short, lambda h, source: len(h.tokens) >= 4),
        (
            ("allow_unknown=false",),
            _leaning(model, UNK, 50.0),
            lambda h, source: UNK not in h.tokens,
        ),
        (("no_repeat_ngram=2",), _leaning(endless, 5, 50.0), lambda h, source: _distinct(h.tokens)),
    ]


def _distinct(tokens: list[int]) -> bool:
    """Whether no two tokens come twice in a row."""
    pairs = list(itertools.pairwise(tokens))
    return len(set(pairs)) == len(pairs)


def _wishes(model: Model) -> list[tuple[str, Request, Model, Kept]]:
    """The same of requests, with a name for each."""
    fives = _leaning(model, 5, 50.0)
    inside = torch.arange(len(Words.words)) == 5
    return [
        ("a prefix", Request([6, 7]), fives, lambda h, source: h.tokens[:2] == [6, 7]),
        (
            "a prefix that ends a word",
            Request([6, 7], word_inside=inside, closed=True),
            fives,
            lambda h, source: h.tokens[:2] == [6, 7] and h.tokens[2:3] != [5],
        ),
        ("a forbidden token", Request(forbidden=[[5]]), fives, lambda h, source: 5 not in h.tokens),
        (
            "a forbidden sequence",
            Request(forbidden=[[5, 5]]),
            fives,
            lambda h, source: (5, 5) not in itertools.pairwise(h.tokens),
        ),
        (
            "a required token",
            Request(required=[[[8]]]),
            _leaning(model, EOS, 5.0),
            lambda h, source: 8 in h.tokens or not h.met,
        ),
    ]


def _require_kept(
    name: str,
    settings: tuple[str, ...],
    model: Model,
    batch: Batch,
    request: Request | None,
    what: str,
    kept: Kept,
) -> None:
    """Search with settings and a request for each sentence; a strategy may refuse them by a `UserError`."""
    try:
        strategy = component_from_overrides("search_strategies", name, list(settings)).build()
        searched = strategy.searched_model(model, WordsTask()).eval()
        wishes = [] if request is None else [[request] * len(batch)]
        found = strategy(searched, batch.source_tokens, batch.source_lengths, *wishes)
    except UserError:
        return
    for hypotheses, source in zip(found, batch.source_lengths.tolist(), strict=True):
        for h in hypotheses:
            require(kept(h, source), f"{what}: tokens {h.tokens} of {source} source tokens")


def _tokens(found: list[list[Hypothesis]]) -> list[list[list[int]]]:
    return [[h.tokens for h in hypotheses] for hypotheses in found]


def check_metric(name: str, *settings: str, target_lang: str = "en") -> None:
    """Check a metric against `mtplug-plugins docs metric`.

    Args:
        name: of the metric.
        settings: such as `lowercase=true`.
        target_lang: code of the language of the texts, which are English numbers.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("metrics", name, settings)
    metric = subject.build(target_lang, kind=Metric)
    references = [target for _, target in pairs(30, seed=1)]
    wrong = [target for _, target in pairs(30, seed=2)]
    mixed = [*references[:15], *wrong[15:]]
    sources = [source for source, _ in pairs(30, seed=1)]
    with subject.promise("score"):
        score = scored(metric, mixed, [references], sources)
        require(isinstance(score, Score), f"a {type(score).__name__}")
        same(score.label, metric.label, "label")
        require(math.isfinite(score.value), f"value {score.value}")
        require(bool(score.signature) and bool(score.text), "signature or text is empty")
    with subject.promise("direction"):
        best, worst = (scored(metric, h, [references], sources).value for h in (references, wrong))
        rises: bool | None = metric.higher_is_better
        said = f"references {best:.2f}, wrong text {worst:.2f}, higher_is_better={rises}"
        require(rises is None or (best > worst if rises else best < worst), said)
    with subject.promise("memory"):
        same(
            scored(metric, mixed, [references], sources).value,
            score.value,
            "value of a second time",
        )
        fresh = subject.selected.build(target_lang)
        same(
            scored(fresh, mixed, [references], sources).value,
            score.value,
            "value of a fresh metric",
        )
    with subject.promise("order"):
        turned = scored(metric, mixed[::-1], [references[::-1]], sources[::-1]).value
        require(math.isclose(turned, score.value, rel_tol=1e-6), f"{turned} and {score.value}")
    with subject.promise("references"):
        # A metric that looks at no reference, but at the source, has one value for all.
        reads = scored(metric, mixed, [mixed], sources).value != score.value
        for sets in ([references, mixed], [mixed, references]):
            more = scored(metric, mixed, sets, sources).value
            changed = more != score.value
            better = more > score.value if rises else more < score.value
            fits = f"two sets, of which the {'second' if sets[1] is mixed else 'first'} fits,"
            said = f"{more:.4f} with {fits} {score.value:.4f} with the other alone"
            require(not reads or (changed if rises is None else better), said)
    with subject.promise("empty"):
        value = scored(metric, ["", *mixed[1:]], [references], sources).value
        require(math.isfinite(value), f"value {value}")
    with subject.promise("statistics"):
        found = counted(metric, mixed, [references], sources)
        if found is not None:
            rows, compute = found
            same(len(rows), len(mixed), "rows")
            total = compute(rows.sum(0))
            close = math.isclose(total, score.value, rel_tol=1e-6, abs_tol=1e-9)
            require(close, f"{total} from the sum, {score.value} as the score")


EVENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("train", {"update": 5, "epoch": 1, "loss": 3.2, "nll": 3.0, "lr": 1e-3, "gradient_norm": 1.0,
               "tokens_per_second": 900.0, "padding": 0.1, "seconds_left": 4.0, "seconds": 1.0,
               "parts": {"divergence": 0.3}}),
    ("validation", {"update": 5, "epoch": 1, "best": True,
                    "scores": {"loss": 3.1, "perplexity": 22.2, "bleu": 1.5}}),
    ("checkpoint", {"update": 5, "path": "step-00000005"}),
    ("note", {"update": 5, "text": "a note"}),
    ("an event of later times", {"update": 5, "anything": [1, 2]}),
    ("test", {"update": 5, "split": "test", "checkpoint": "step-00000005",
              "scores": {"bleu": 1.5}, "texts": ["BLEU = 1.50"]}),
    ("end", {"update": 5, "text": "training ended", "reason": "5 updates are done"}),
)  # fmt: skip
"""One event of each kind, as a run tells them."""


def check_tracker(name: str, *settings: str) -> None:
    """Check a tracker against `mtplug-plugins docs tracker`.

    Args:
        name: of the tracker.
        settings: its own.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("trackers", name, settings)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        events = copy.deepcopy(EVENTS)
        with subject.promise("events"):
            tracker = subject.build(run_dir, kind=Tracker)
            tracker.start(0, 10)
            for kind, values in events:
                tracker.event(kind, values)
        with subject.promise("values"):
            same(events, EVENTS, "events afterwards")
        with subject.promise("resume"):
            for update in (5, 5):  # once after a crash, once after `close`
                again = subject.selected.build(run_dir)
                again.start(update, 10)
                again.event("train", {**EVENTS[0][1], "update": 6})
                again.close()
            tracker.close()


def check_exporter(name: str, *settings: str, run: Path) -> None:
    """Check an exporter against `mtplug-plugins docs exporter`.

    Args:
        name: of the exporter.
        settings: its own.
        run: a trained run, as the fixture `mtplug_run` is; of a format that is only read it is not needed.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("exporters", name, settings)
    exporter = subject.build()
    with subject.promise("methods"):
        has = [m for m in ("export", "read", "why_not", "engine") if hasattr(exporter, m)]
        require("export" in has or has == ["read"], f"it has {' and '.join(has) or 'none of them'}")
    if "export" not in has:
        return  # what it reads, its author has alone
    translator = mtplug.load(run, device="cpu")
    texts = [source for source, _ in pairs(5, seed=9)]
    before = translator.translate(texts)
    if hasattr(exporter, "why_not"):
        with subject.promise("why_not"):
            same(exporter.why_not(translator.model, translator.task), "", "reason")
            sizes = UntrainedTask(translator.task)
            require(isinstance(exporter.why_not(translator.model, sizes), str), "no text")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported"
        with subject.promise("writes"):
            exporter.export(translator, path)
            there = path.is_file() or (path.is_dir() and any(path.iterdir()))
            require(there, "nothing is there")
        with subject.promise("untouched"):
            same(translator.translate(texts), before, "translations after the export")
        with subject.promise("again"):
            subject.selected.build().export(translator, path)
        if hasattr(exporter, "engine"):
            with subject.promise("engine"):
                _check_engine(exporter.engine(path, "cpu"), translator, texts)
        if hasattr(exporter, "read"):
            with subject.promise("read"):
                write_run(exporter.read(path), Path(folder) / "run")
                again = mtplug.load(Path(folder) / "run", device="cpu")
                found, wanted = (t.translate(texts, beam=3) for t in (again, translator))
                same(found, wanted, "translations of the run that was read")


def _check_engine(engine: Any, translator: Any, texts: list[str]) -> None:
    """Its hypotheses' scores are those that the model gives by forced decoding."""
    translator.engine = engine
    try:
        found = translator.nbest(texts, beam=3, nbest=3)
    finally:
        translator.engine = None
    for text, row in zip(texts, found, strict=True):
        scores = [t.score for t in row]
        same(len(row), 3, "translations with nbest=3")
        require(scores == sorted(scores, reverse=True), f"scores in the order {scores}")
        truth = translator.score([text] * len(row), [t.text for t in row])
        for t, forced in zip(row, truth, strict=True):
            if t.tokens == forced.tokens:
                given, wanted = torch.tensor(t.token_scores), torch.tensor(forced.token_scores)
                close(given, wanted, "token_scores", 1e-3)
                close(torch.tensor(t.score), torch.tensor(forced.score), "score", 1e-3)


def check_benchmark(name: str, *settings: str) -> None:
    """Check a benchmark suite against `mtplug-plugins docs benchmark`.

    Args:
        name: of the suite.
        settings: which make it quick.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    subject = Subject("benchmarks", name, settings)
    config = type(subject.selected.config)
    with subject.promise("described"):
        text = config.__doc__ or ""
        require(bool(text) and not text.startswith(f"{config.__name__}("), "it has none")
    suite = subject.build()
    with subject.promise("rows"):
        rows = suite.run()
        require(bool(rows), "no row")
        for row in rows:
            require(isinstance(row, dict) and bool(row), f"the row {row!r}")
            plain = all(isinstance(v, (Real, np.bool_, str, type(None))) for v in row.values())
            require(plain and all(isinstance(k, str) for k in row), f"the row {row!r}")
    with subject.promise("told"):
        conditions = suite.conditions() if hasattr(suite, "conditions") else {}
        require(isinstance(conditions, dict), f"conditions() gave {conditions!r}")
        left_out = getattr(suite, "left_out", [])
        lines = isinstance(left_out, list) and all(isinstance(text, str) for text in left_out)
        require(lines, f"left_out is {left_out!r}")


def check_hooks(run_twice: Path) -> None:
    """Check that no installed lifecycle hook raises in a run, and that the run resumes to the same weights.

    Args:
        run_twice: an empty folder.

    Raises:
        ContractBroken: a hook raised, or a run of four updates, and one of two that is resumed, end differently.
    """
    from mtplug.files import read_tensors
    from mtplug.plugins import host
    from mtplug.testing.tiny import train

    often = "validation.every_updates=2"
    whole = train(run_twice, often, updates=4, name="whole")
    train(run_twice, often, updates=2, name="parts")
    parts = train(run_twice, often, updates=4, name="parts")
    a, b = (read_tensors(r / "checkpoints" / "last" / "model.safetensors") for r in (whole, parts))
    for key, tensor in a.items():
        if not torch.equal(tensor, b[key]):
            raise ContractBroken(f"{key} differs after a resume with these hooks{_HOOKS}")
    for text in host().hook.failed.values():
        raise ContractBroken(text + _HOOKS)
    shutil.rmtree(parts)


_HOOKS = "\n  The contract: mtplug-plugins docs hooks, docs/plugins.md#the-life-of-a-run"
