"""A whole run: prepare, train, score the test set. Called again, it goes on where it was."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mtplug
from mtplug.architectures.base import Model
from mtplug.config import RunConfig, load_config, to_plain, to_yaml
from mtplug.data.corpora import has_text
from mtplug.errors import UserError
from mtplug.evaluation import Score
from mtplug.files import begun, write_whole
from mtplug.lifecycle import first_line
from mtplug.peft.table import trained_table
from mtplug.plugins import host
from mtplug.tasks.base import Task
from mtplug.training import checkpoints as ckpt
from mtplug.training import finetune
from mtplug.training.continuing import (
    check_same_data,
    check_same_hooks,
    check_same_settings,
    check_same_tokenizer,
    tell_other_batches,
    tokenizer_sums,
)
from mtplug.training.criterion_state import on_device
from mtplug.training.dry_run import check_fit, check_model, stand_ins
from mtplug.training.initialise import weights_file
from mtplug.training.lock import only_writer
from mtplug.training.precision import resolved
from mtplug.training.processes import Processes, join, leave
from mtplug.training.trackers import read_events
from mtplug.training.trainer import Trainer, used_plugins
from mtplug.training.validation import (
    checked_metrics,
    encoded_references,
    metrics_of,
    reference_loss,
    scores_of,
)
from mtplug.translator import Translator, translator_of


def train(run: RunConfig, report: Callable[[str], None] = print) -> Path:
    """Train `run` in its folder and score the test set.

    Returns:
        The run's folder.

    Raises:
        UserError: input is wrong, or the folder holds a run with other settings or data.
    """
    host().load_lifecycle()
    with _shared(run, report) as (processes, report, sums):
        return _train(run, processes, sums, report)


def _train(
    run: RunConfig, processes: Processes, sums: dict[str, str], report: Callable[[str], None]
) -> Path:
    run_dir = Path(run.run_dir)
    task = _prepared(run, processes, report)
    trainer = Trainer(run, run_dir, task, processes)
    trainer.resume()
    if trainer.update:
        report(f"going on from update {trainer.update:,}")
    if processes.main:
        record(run, task, sums)  # now that nothing refuses the run any more
    count = sum(p.numel() for p in trainer.model.parameters())
    report(
        f"model: {run.architecture.name}, {count:,} parameters, on {trainer.device}, "
        f"{resolved(run.training.precision, trainer.device)}; padding {trainer.data.padding_share():.1%} of batches"
    )
    if run.peft is not None:
        if not (run.training.finetune_from or run.training.init_from):
            report("peft: no training.finetune_from is given, so that what is frozen is random")
        for line in trained_table(trainer.model):
            report(line)
    for line in (*trainer.description, *trainer.beginning):
        report(line)
    try:
        trainer.train()
        if processes.main:
            score_test(run, run_dir, task, trainer, report)
    finally:
        trainer.close()
    processes.wait()
    return run_dir


def estimate(run: RunConfig, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Parameters, memory and time of a run, without starting it; only tokenizer and store are written.

    Returns:
        See `mtplug.training.estimate.estimate`.

    Raises:
        UserError: input is wrong, or the folder holds a run with other settings or data.
        MtplugError: the largest batch does not fit into memory.
    """
    from mtplug.training.estimate import estimate as measured

    with _shared(run, report) as (processes, report, _):
        task = _prepared(run, processes, report)
        unwatched = replace(run, logging=replace(run.logging, trackers=[]))
        return measured(Trainer(unwatched, Path(run.run_dir), task, processes), report)


@contextlib.contextmanager
def _shared(
    run: RunConfig, report: Callable[[str], None]
) -> Iterator[tuple[Processes, Callable[[str], None], dict[str, str]]]:
    """All processes of a run, of which the main one has checked it, reports, and holds the folder."""
    processes = join(run.training.device)
    try:
        if not processes.main:
            yield processes, lambda text: None, {}
            return
        _check_place(Path(run.run_dir))
        sums = check(run, report, processes.device)
        with only_writer(Path(run.run_dir)):
            yield processes, report, sums
    finally:
        leave()


def _prepared(run: RunConfig, processes: Processes, report: Callable[[str], None]) -> Task:
    """The task, in all processes, after the main one has written tokenizer and store."""
    if run.training.threads:
        torch.set_num_threads(run.training.threads)
    if not processes.main:
        processes.wait()
    run_dir = Path(run.run_dir)
    task: Task = run.task.build()
    task.prepare(run, run_dir, report)
    if processes.main:
        check_same_tokenizer(run_dir)  # it was trained again if it was missing
        processes.wait()
    return task


def prepare(run: RunConfig, report: Callable[[str], None]) -> Task:
    """The run's folder, tokenizer and store; what is there already is reused.

    Raises:
        UserError: input is wrong, or the folder holds a run with other settings or data.
    """
    _check_place(Path(run.run_dir))
    sums = check(run, report)
    with only_writer(Path(run.run_dir)):
        task = _prepared(run, Processes(0, 1, torch.device("cpu")), report)
        if not begun(run.run_dir):
            record(run, task, sums)
    return task


def _check_place(run_dir: Path) -> None:
    there = next(place for place in (run_dir, *run_dir.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(
            f"run_dir: {run_dir}: {there} is not a writable folder; choose another run_dir"
        )


def _check_own(run_dir: Path) -> None:
    """Raises `UserError` where training would replace weights that it cannot go on from: those that an import or a merge
    wrote."""
    found = [name for name in ("best", "last") if (run_dir / "checkpoints" / name).exists()]
    if found and not begun(run_dir):
        raise UserError(
            f"run_dir: {run_dir} has weights (checkpoints/{found[0]}), but no checkpoint that a training goes on from: "
            f"set training.finetune_from={run_dir} and another run_dir"
        )


def check(
    run: RunConfig, report: Callable[[str], None], device: torch.device | None = None
) -> dict[str, str]:
    """What can be wrong with a run's input, before anything is written.

    Args:
        device: that the run will be computed on; None where it is only prepared.

    Returns:
        Checksums of its data.

    Raises:
        UserError: input is wrong, or the folder holds a run with other settings or data.
    """
    run_dir = Path(run.run_dir)
    _check_own(run_dir)
    _check_readable(run)
    task: Task = run.task.build()
    architecture = run.architecture.component.factory
    if isinstance(architecture, type) and issubclass(architecture, Model):
        check_fit(run, task, architecture)
    checked_metrics(run, task)
    if run.training.finetune_from:
        finetune.check(run)
    check_same_settings(run, run_dir)
    if begun(run_dir):
        check_same_hooks(run_dir, report)
        tell_other_batches(run, run_dir, report)
    else:
        for source in run.training.init_from:
            weights_file(source.path)
    _check_model(run, device)
    made = run.training.finetune_from or (run_dir / "tokenizer").is_dir()
    searches = (run.search, run.validation.search)
    for part in (run.criterion, *searches, *([] if made else [run.tokenizer])):
        if check_files := getattr(part.component.factory, "check_files", None):
            check_files(part.config)
    task.check_data(run, report)
    sums = task.checksums(run)
    if begun(run_dir):
        check_same_data(sums, run_dir)
    check_same_tokenizer(run_dir)
    return sums


def _check_model(run: RunConfig, device: torch.device | None) -> None:
    """What is wrong with the model that a run will have, while there is no tokenizer yet."""
    asked = run.checkpoint.export_check or run.training.freeze or run.training.init_from
    if begun(run.run_dir) and not asked:
        return
    try:
        task, model = stand_ins(run)
        check_model(run, task, model)
        if device is not None:
            model.describe(device, run.training.packing)
    except UserError:
        raise
    except Exception:  # an architecture may want more of its tokenizers than stand-ins have
        if asked:
            raise


def record(run: RunConfig, task: Task, sums: dict[str, str]) -> None:
    """Write what a run's folder says of itself: configuration, plugin files, environment."""
    run_dir = Path(run.run_dir)
    for file in host().files:
        (run_dir / "plugins").mkdir(exist_ok=True)
        if file.resolve() != (run_dir / "plugins" / file.name).resolve():
            shutil.copy(file, run_dir / "plugins" / file.name)
    write_whole(run_dir / "config.yaml", to_yaml(run))
    found = environment(run, sums) | {"test_data": _test_sums(run, task)}
    found |= {"tokenizer": tokenizer_sums(run_dir)}
    write_whole(run_dir / "environment.json", json.dumps(found, indent=1))


def _check_readable(run: RunConfig) -> None:
    """A plugin's settings may have a type or a default that no file can give back: before the training, not after."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        try:
            file.write_text(to_yaml(run), encoding="utf-8")
            load_config(file)
        except Exception as error:
            text = re.sub(f"^{re.escape(str(file))}(:\\d+)?: ", "", first_line(error))
            raise UserError(
                f"the run's own config.yaml could not be read again: {text}; a plugin's settings need types and "
                "defaults as docs/plugins.md lists them"
            ) from error


def score_test(
    run: RunConfig, run_dir: Path, task: Task, trainer: Trainer, report: Callable[[str], None]
) -> None:
    """Translate and score the test sets with the best checkpoint, unless that was done."""
    if not run.data.test:
        return
    best = trainer.checkpoints.folder / "best"
    if not best.exists():
        best = trainer.checkpoints.folder / "last"
    name = os.readlink(best)
    # An average keeps its name when a run that was prolonged averages other checkpoints.
    weights = {"checkpoint": name, "sources": ckpt.read_state(best).get("sources"),
               "data": to_plain(run.data.test), "search": to_plain(run.search),
               "files": list(_test_sums(run, task).values())}  # fmt: skip
    done = [
        e
        for e in read_events(run_dir / "metrics.jsonl")
        if e["event"] == "test" and weights == {key: e.get(key) for key in weights}
    ]
    done = list({e["split"]: e for e in done}.values())
    if len(done) == len(run.data.test):  # not so if the run ended while it wrote them
        for e in done:
            report(f"test {e['split']} ({name}):")
            for text in e["texts"]:
                report(f"  {text}")
        return
    translator = translator_of(run, run_dir, name, run.training.device)
    for label, scores, hypotheses in evaluate(run, translator, "test", report):
        if hypotheses:
            folder = run_dir / "samples"
            folder.mkdir(exist_ok=True)
            text = "\n".join(hypotheses) + "\n"
            (folder / f"test-{label}.txt").write_text(text, encoding="utf-8")
        values = {
            "split": label,
            **weights,
            "scores": {s.label: s.value for s in scores},
            "texts": [str(s) for s in scores],
        }
        trainer.emit("test", **values)
        report(f"test {label} ({name}):")
        for score in scores:
            report(f"  {score}")


def _test_sums(run: RunConfig, task: Task) -> dict[str, str]:
    """Checksums of the test sets' files."""
    return task.checksums(replace(run, data=replace(run.data, train=[], valid=run.data.test)))


def evaluate(
    run: RunConfig, translator: Translator, split: str, note: Callable[[str], None] = print
) -> list[tuple[str, list[Score], list[str]]]:
    """(label, scores, translations) for each corpus of a split.

    Of a task that does not translate: loss and perplexity, and no translations.

    Args:
        note: told what a reader of the scores must know.

    Raises:
        UserError: text is none that its tokenizer takes, such as words that were cut beforehand.
    """
    task = translator.task
    result: list[tuple[str, list[Score], list[str]]] = []
    if not task.translates:
        model, criterion = translator.model, run.criterion.build(task)
        on_device(criterion, next(model.parameters()).device)
        for label, texts in task.pairs(run, split):
            _check_text(task, label, texts)
            pairs, notes = encoded_references(task, texts, run)
            for text in notes:
                note(f"{label}: {text}")
            found = reference_loss(model, criterion, task, pairs, run)
            result.append((label, _loss_scores(found, len(texts), task), []))
        return result
    parts = zip(
        task.pairs(run, split),
        task.target_langs(run, split),
        task.references(run, split),
        task.windows(run, split),
        getattr(run.data, split),
        strict=True,
    )
    for (label, texts), language, further, window, chosen in parts:
        metrics = metrics_of(run, language)
        _check_text(task, label, texts, further)
        sources = [source for source, _ in texts]
        before, translator.window = translator.too_long, window
        hypotheses = translator.translate(sources)
        if long := translator.too_long - before:
            done = "split" if run.data.on_long == "split" else "cut"
            note(
                f"{label}: {long:,} of {len(texts):,} sources have more than {run.data.max_length} tokens and were {done}"
            )
        count = sum(map(has_text, texts))
        written = zip(sources, hypotheses, strict=True)
        empty = sum(bool(source.strip()) and not h for source, h in written)
        if empty * 10 > count:
            note(
                f"{label}: {empty:,} of {count:,} translations are empty; search.min_length=1 writes none"
            )
        references = [[reference for _, reference in texts], *further]
        scores = scores_of(metrics, task, chosen, texts, references, hypotheses)
        result.append((label, scores, hypotheses))
    return result


def _check_text(
    task: Task, label: str, pairs: list[tuple[str, str]], further: Iterable[list[str]] = ()
) -> None:
    """Raises `UserError` for what would be scored, and is no text that the task's tokenizers take."""
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    asked = [("source", task.source_tokenizer, sources)]
    asked += [("target", task.target_tokenizer, texts) for texts in (targets, *further)]
    for side, tokenizer, texts in asked:
        if why := tokenizer.unfit(texts):
            raise UserError(f"{label}: the {side} text is {why}")


def _loss_scores(found: dict[str, float], count: int, task: Task) -> list[Score]:
    signature = f"per {task.loss_of}|lines:{count}|version:{mtplug.__version__}"
    return [
        Score("loss", found["loss"], signature, f"loss = {found['loss']:.4f} nats"),
        Score("perplexity", found["perplexity"], signature, f"perplexity = {found['perplexity']:.2f}"),
    ]  # fmt: skip


def environment(run: RunConfig, sums: dict[str, str]) -> dict[str, Any]:
    """What one needs to know to repeat a run elsewhere."""
    names = ("torch", "numpy", "sentencepiece", "sacrebleu", "omegaconf", "pluggy", "safetensors")
    return {
        "mtplug": mtplug.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {n: importlib.metadata.version(n) for n in names},
        "plugins": used_plugins(run),
        "seed": run.seed,
        "data": sums,
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
