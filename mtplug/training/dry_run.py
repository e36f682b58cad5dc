"""`mtplug-train --dry-run`: is this configuration ready for a large machine?"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtplug.architectures.base import Model, why_unfit
from mtplug.config import RunConfig, load_resolved
from mtplug.data.batching import collate, concatenate
from mtplug.data.tokenizers import UNK
from mtplug.errors import MtplugError, UserError
from mtplug.exporting.base import build_exporter, reason_against
from mtplug.nn.positions import positions_of
from mtplug.optim.schedules import still_rising
from mtplug.peft.combine import merge
from mtplug.tasks.sized import Sized
from mtplug.training.checkpoints import Checkpoints, check_base
from mtplug.training.criterion_state import on_device, trained_parameters
from mtplug.training.finetune import base_checkpoint, from_weights, model_of
from mtplug.training.freezing import Freezing
from mtplug.training.initialise import check_patterns
from mtplug.training.precision import autocast, pick_device
from mtplug.training.units import memory
from mtplug.training.validation import checked_metrics


def dry_run(run: RunConfig, report: Callable[[str], None]) -> None:
    """Build everything that a run needs but its data, and make one update on a random batch.

    Raises:
        MtplugError: the loss of that update is not finite.
    """
    device = pick_device(run.training.device)
    torch.manual_seed(run.seed)
    task, model = stand_ins(run)
    size = min(len(task.source_tokenizer), len(task.target_tokenizer))
    check_model(run, task, model)
    model = model.to(device)
    criterion = on_device(run.criterion.build(task), device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = run.optimizer.build([*trained, *trained_parameters(criterion).values()])
    most = run.training.max_updates
    schedule = run.lr_scheduler.build(most)
    checked_metrics(run, task)
    # One that the model cannot be searched with was refused if the run uses it.
    written = task.translates and not task.aligned  # labels are read off
    chosen = (run.search, run.validation.search) if written else ()
    searches = [s.build() for s in chosen if not why_unfit(s.component.factory, s.config, model)]
    count = sum(p.numel() for p in model.parameters())
    share = sum(p.numel() for p in trained) / count
    report(f"model: {run.architecture.name}, {count:,} parameters, {share:.1%} trained")
    for note in still_rising(schedule, run.lr_scheduler.config, most):
        report(note)
    states = 4 * (count + 3 * sum(p.numel() for p in trained))
    report(f"memory: {memory(states)} for weights, gradients and optimizer in fp32")

    length = min(run.data.max_length, 32)
    rows = max(min(run.training.max_tokens, 1024) // length, 1)
    rng = np.random.default_rng(run.seed)
    pairs = [tuple(rng.integers(UNK + 1, size, (2, length - 1))) for _ in range(rows)]
    batch = (concatenate if run.training.packing else collate)(pairs, np.arange(rows)).to(device)
    started = time.perf_counter()
    if fit := getattr(criterion, "fit", None):
        fit(iter([batch]))
    with autocast(device, run.training.precision):
        loss = criterion(model, batch)
    loss.sum.backward()
    for group in optimizer.param_groups:
        group["lr"] *= schedule(1)
    optimizer.step()
    model.eval()
    for search in searches:  # one short source: does the search go with the model?
        search(model, batch.source_tokens[:1, -2:], batch.source_lengths[:1].clamp(max=2))
    seconds = time.perf_counter() - started
    nll = float(loss.nll) / loss.tokens
    if not math.isfinite(nll):
        raise MtplugError("dry run: the loss of the first update is not finite")
    report(
        f"one update on {loss.tokens} random tokens: {seconds:.1f} s, {nll:.2f} nats a token "
        f"(a uniform guess has {math.log(len(task.target_tokenizer)):.2f})"
    )
    report("dry run: the configuration is ready")


def stand_ins(run: RunConfig) -> tuple[Any, Model]:
    """The run's task and model before any data was read: with the base's tokenizers, or with some that only have
    a size, which is what their factory says, or 8,000."""
    task = run.task.build()
    if run.training.finetune_from:
        folder, _ = base_checkpoint(run.training.finetune_from)
        base = load_resolved(folder / "config.yaml")
        lent = base.task.build()  # of the base, whose language tags may be more
        lent.load(base, folder)
        task.source_tokenizer, task.target_tokenizer = lent.source_tokenizer, lent.target_tokenizer
        return task, model_of(run, task)
    factory = run.tokenizer.build()

    def sized(side: str) -> Sized:
        return Sized((factory.size(side) if hasattr(factory, "size") else 0) or 8000)

    task.source_tokenizer = sized("joint" if factory.joint else "source")
    task.target_tokenizer = task.source_tokenizer if factory.joint else sized("target")
    return task, model_of(run, task)


def check_model(run: RunConfig, task: Any, model: Model) -> None:
    """What can be wrong with a run's model before any data was read.

    Raises:
        UserError: it does not fit the task or the checkpoint it goes on from, a pattern of names fits nothing,
            or a format of `checkpoint.export_check` cannot take it or does not exist.
    """
    check_fit(run, task, model)
    step = Checkpoints(Path(run.run_dir) / "checkpoints").steps()[-1:]
    if step and getattr(model, "adapter_config", None):
        check_base(model, step[0])
    for source in run.training.init_from:
        check_patterns(model, source)
    Freezing(model, run.training.freeze)
    if run.checkpoint.export_check:
        model = _exported(run, model)
    for name in run.checkpoint.export_check:
        _, exporter = build_exporter(name, [], "checkpoint.export_check:")
        if reason := reason_against(exporter, model, task):
            raise UserError(f"checkpoint.export_check: {name}: {reason}")


def _exported(run: RunConfig, model: Model) -> Model:
    """What exporters will be given of a run: its model, or a copy in which that of a PEFT method is merged.

    Raises:
        UserError: the method's cannot be merged.
    """
    if run.peft is None:
        return model
    try:
        return merge(copy.deepcopy(model))
    except UserError as error:
        raise UserError(
            f"checkpoint.export_check: no format takes what peft.name={run.peft.name} trains: {error}"
        ) from None


def check_fit(run: RunConfig, task: Any, model: Model | type[Model]) -> None:
    """Raises `UserError` if the architecture is none for the task, for packed batches or for what goes with it."""
    if model.aligned != task.aligned:
        wanted, other = ("labels", "writes") if task.aligned else ("writes", "labels")
        base = run.training.finetune_from
        way = f"; {from_weights(base)}" if base else ""
        raise UserError(
            f"architecture.name: {run.architecture.name} {other} text, task {run.task.name} needs one that "
            f"{wanted} it{way}"
        )
    if not (model.reads_source or task.continues):
        raise UserError(
            f"architecture.name: {run.architecture.name} ignores the source, which task {run.task.name} has; "
            "use task.name=language_modeling, or an architecture that reads it, such as decoder_only"
        )
    most = positions_of(model) if isinstance(model, Model) else math.inf
    begun = Checkpoints(Path(run.run_dir) / "checkpoints").steps()
    if most <= run.data.max_length and not begun:
        raise UserError(
            f"data.max_length: {run.data.max_length} tokens and </s> need {run.data.max_length + 1} positions, and "
            f"the model has {most}: set data.max_length={int(most) - 1}, or raise architecture.position.max_positions"
        )
    if run.training.packing and not model.takes_packed:
        raise UserError(
            f"training.packing: architecture {run.architecture.name} takes padded batches "
            "only; set training.packing=false"
        )
    if isinstance(model, Model):
        used = {"criterion": run.criterion}
        if run.data.valid and task.translates and run.validation.translate:
            used["validation.search"] = run.validation.search
        if run.data.test and task.translates:
            used["search"] = run.search
        for group, part in used.items():
            if reason := why_unfit(part.component.factory, part.config, model):
                raise UserError(f"{group}.name: {part.name}: {reason}")
        if getattr(run.validation.search.config, "shortlist", 0) and "validation.search" in used:
            raise UserError(
                "validation.search.shortlist: only translations by a run have one, which search.shortlist gives the "
                "test set; set it to 0"
            )
        why_not = getattr(run.tokenizer.component.factory, "why_not", None)
        if why_not and (reason := why_not(run.tokenizer.config, model)):
            raise UserError(f"tokenizer.name: {run.tokenizer.name}: {reason}")
