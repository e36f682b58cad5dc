"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mtplug.config.build import components_of
from mtplug.config.schema import RunConfig
from mtplug.data.batching import Batch
from mtplug.errors import MtplugError, UserError
from mtplug.lifecycle import first_line
from mtplug.optim.schedules import factor_at, still_rising
from mtplug.plugins import host
from mtplug.tasks.base import Task
from mtplug.training import checkpoints as ckpt
from mtplug.training.checkpoints import Checkpoints, step_name
from mtplug.training.criterion_state import on_device, trained_parameters
from mtplug.training.dry_run import check_fit
from mtplug.training.finetune import model_of
from mtplug.training.freezing import Freezing
from mtplug.training.initialise import initialise, told, write
from mtplug.training.precision import autocast
from mtplug.training.processes import Processes
from mtplug.training.signals import Interrupted, Signals
from mtplug.training.trackers import EVENTS, Tracker
from mtplug.training.updater import Totals, Updater
from mtplug.training.validation import Validation, write_samples

COUNTS: ckpt.Needed = {
    "update": int,
    "seconds": int | float,
    "best": int | float | None,
    "best_name": str,
    "without_better": int,
}  # type: ignore[dict-item]
"""Attributes of a trainer that are in its checkpoints as they are."""


class Trainer:
    """Trains one model, from wherever its last checkpoint left off.

    Args:
        run: the resolved configuration.
        run_dir: the run's folder.
        task: prepared.
        processes: that train together; only the main one writes.

    Attributes:
        update: optimizer steps done, over all parts of a resumed run.
        model, optimizer, criterion, task, run: for plugins to look at and to steer.
        description: lines that tell how the model computes.
        beginning: lines that tell what the weights were taken from and what is frozen.
        should_stop: a plugin sets it to a reason, and training ends after this update; of several processes
            after the next one or the validation, when all know of it.
    """

    def __init__(self, run: RunConfig, run_dir: Path, task: Task, processes: Processes):
        self.run, self.run_dir, self.task, self.processes = run, run_dir, task, processes
        torch.manual_seed(run.seed)
        self.device = processes.device
        self.checkpoints = Checkpoints(run_dir / "checkpoints")
        self.beginning: list[str] = []
        self._initial: list[dict[str, Any]] = []  # records of what the weights were taken from
        self.model = model_of(run, task, start=self._initialise)
        check_fit(run, task, self.model)
        self.model.to(self.device)
        if run.training.activation_checkpointing:
            self.model.checkpoint_activations()
        # Now, and not when it is cut into shares: a table of positions is looked at.
        self.description = self.model.describe(self.device, run.training.packing)
        self.freezing = Freezing(self.model, run.training.freeze)
        self.beginning += self.freezing.lines
        self.criterion = on_device(run.criterion.build(task), self.device)
        self.data = task.training_data(run)
        self._fit()
        self.updater = Updater(
            self.model, self.criterion, run.optimizer.build, run.training, processes
        )
        self.optimizer = self.updater.optimizer
        if own := trained_parameters(self.criterion):
            count = sum(p.numel() for p in own.values())
            told_of = (
                f"criterion {run.criterion.name}: {count:,} parameters of its own are trained too"
            )
            self.beginning.append(told_of)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        most = run.training.max_updates
        self.schedule = run.lr_scheduler.build(most)
        self.beginning += still_rising(self.schedule, run.lr_scheduler.config, most)
        self.validation = Validation(run, task)
        self.beginning += [f"validation: {note}" for note in self.validation.notes]
        watching = run.logging.trackers if processes.main else []
        self._watching: list[Tracker] = [t.build(run_dir) for t in watching]
        self.trackers: list[Tracker] = []  # those that were started
        self.update = 0
        self.seconds = 0.0
        self.best: float | None = None
        self.best_name = ""
        self.without_better = 0
        self.finished = ""
        self.should_stop = ""
        self._agreed_stop = ""  # what all processes know of
        self.signals = Signals(processes, self.checkpoints.folder / "last")
        self._unscored = False
        self._clock = 0.0
        # That clock, when the first update since a checkpoint began.
        self._saved: float | None = None
        self._reset_window()
        self._carried: dict[str, Any] = {}  # of the window that the last checkpoint was made in
        self._epoch = 1
        # The same initial weights everywhere, but each process drops out features of its own.
        if processes.rank:
            torch.manual_seed(run.seed + 1_000_003 * processes.rank)

    def _initialise(self, model: Any) -> None:
        if self.run.training.init_from and not self.checkpoints.steps():
            self._initial = initialise(model, self.task, self.run.training.init_from)
            self.beginning += told(self._initial)

    def _fit(self) -> None:
        """Let a criterion, and a PEFT method before the first update, look at data: the same in all processes."""
        if fit := getattr(self.criterion, "fit", None):
            self._look(self.run.criterion.name, fit)
        fit = getattr(self.run.peft.build(), "fit", None) if self.run.peft else None
        if self.run.peft is None or fit is None or self.checkpoints.steps():
            return

        def criterion(model: Any, batch: Batch) -> Any:
            with autocast(self.device, self.run.training.precision):
                return self.criterion(model, batch)

        self._look(self.run.peft.name, lambda batches: fit(self.model, batches, criterion))

    def _look(self, name: str, fit: Callable[[Iterator[Batch]], None]) -> None:
        started = time.perf_counter()
        fit(self.data.batch(one).to(self.device) for one in self.data.remaining())
        seconds = time.perf_counter() - started
        self.beginning.append(f"{name}: looked at training data for {seconds:.0f} s")

    # --- the loop -----------------------------------------------------------------------------

    def train(self) -> str:
        """Train to the end and return why it ended.

        Raises:
            MtplugError: the loss is not finite; the last good checkpoint stays.
            Interrupted: by a signal, after a checkpoint.
        """
        hook = host().hook
        if self._initial and self.processes.main:
            write(self._initial, self.run_dir)
        for tracker in self._watching:
            tracker.start(self.update, self.run.training.max_updates)
            self.trackers.append(tracker)
        self.emit(
            "start",
            parameters=sum(p.numel() for p in self.model.parameters()),
            trainable=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            device=str(self.device),
            processes=self.processes.count,
        )
        tried = False
        with contextlib.closing(self.data), self.signals.heeded():
            hook.on_train_start(trainer=self)
            self.model.train()
            self._reset_window()
            self._since -= self._carried.pop("seconds", 0.0)
            self._parts |= self._carried.pop("parts", {})
            self._sums |= self._carried
            if self._unscored:
                self._validate()
                self._end_reached()
                self._stop_on_signal()
            while not self.finished:
                for share in self.groups_of_batches():
                    self.step(share)
                    if not tried:
                        tried = True
                        self._try_largest()
                    ending = self._end_reached()  # the last update is always validated
                    epoch_done = self.data.offset == 0
                    if self._due(self.run.validation.every_updates, epoch_done) or ending:
                        self._validate()
                    elif self._due(self.run.checkpoint.every_updates, False):
                        self._save()
                    elif self._overdue():
                        self._save(scheduled=False)
                    self._stop_on_signal()
                    if ending or self._end_reached():
                        break
            if self.processes.count > 1:
                self.signals.agree(self.processes.sum([float(self.signals.own)])[0])
            with self.signals.cutting():
                if not self.signals.ending:
                    self._conclude()
            if not (self.signals.own or self.signals.agreed):
                hook.on_train_end(trainer=self, reason=self.finished)
            if signalled := self.signals.own or self.signals.agreed:
                raise Interrupted(signalled, self.signals.last)
        return self.finished

    def groups_of_batches(self) -> Iterator[list[tuple[Batch, bool]]]:
        """The rest of the epoch, as many batches at a time as make one update.

        Yields this process's share, of equal size for all: a process that has no batch left in
        a short last group gets one that does not count. The position in the data has already
        advanced when a share is handed out, so that a checkpoint made after its update goes on
        with the next.
        """
        plan, count = self.data.remaining(), self.processes.count
        size = self.run.training.accumulate * count
        for group in iter(lambda: list(itertools.islice(plan, size)), []):
            self._epoch = self.data.epoch
            self.data.advance(group[-1])
            share = [(self.data.batch(one), True) for one in group[self.processes.rank :: count]]
            if len(share) * count < len(group):
                share.append((self.data.batch(group[0]), False))
            del group  # and with it, after a pool's last update, the pool
            yield share

    def step(self, share: list[tuple[Batch, bool]]) -> None:
        """One optimizer step on the mean loss over all tokens of all processes' batches."""
        self.update += 1
        factor = factor_at(self.schedule, self.update)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        self.updater.freeze(self.freezing.frozen(self.update))
        stop = float(bool(self.should_stop))
        now = self.seconds + time.perf_counter() - self._since
        clock = now if self.processes.main else 0.0
        totals = self.updater.step(share, self.update, [float(self.signals.own), stop, clock])
        signalled, stopped, self._clock = totals.notes
        if self._saved is None:
            self._saved = self._clock
        self.signals.agree(signalled)
        if stopped:
            self._agree_to_stop()
        mean = totals.loss / max(totals.count, 1)
        if not math.isfinite(mean) or (totals.taken and not math.isfinite(totals.norm)):
            self._not_finite(mean, share)
        if not totals.taken:
            self.emit("note", text=f"update {self.update} left out: fp16 gradients overflowed")
        if self.updater.halved:
            times = 2**self.updater.halved
            self.emit("note", text=f"out of memory: batches of update {self.update} cut in {times}")
        self._window(totals)
        host().hook.on_update_end(trainer=self, update=self.update, loss=mean)

    def _try_largest(self) -> None:
        """Find out now, and not after hours, whether the largest batch fits into memory.

        The first update is over then, and has made what the optimizer keeps: from now on memory is as
        full as it gets. Weights, gradients and random numbers stay what they are.
        """
        started = time.perf_counter()
        batch = self.data.heaviest()
        sizes = [batch.source_tokens.numel(), batch.target_tokens.numel()]
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        halved = self.updater.attempt(batch)
        text = f"largest batch: {len(batch)} pairs, {sizes[0]} + {sizes[1]} tokens with padding"
        text += f", too large for memory unless cut in {2**halved}" if halved else ", fits"
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else None
        if peak is not None:
            text += f"; {peak / 2**30:.2f} GiB at most"
        self._account(started)
        values = {"pairs": len(batch), "tokens": sizes, "halved": halved, "peak_bytes": peak}
        self.emit("largest_batch", text=text, **values)

    def _due(self, every: int, epoch_done: bool) -> bool:
        return self.update % every == 0 if every else epoch_done

    def _overdue(self) -> bool:
        """Whether more would be lost than a killed run may lose; by the main process's clock, so that all agree."""
        minutes, since = self.run.checkpoint.every_minutes, self._saved
        return bool(minutes and since is not None and self._clock - since >= 60 * minutes)

    def _agree_to_stop(self) -> None:
        self._agreed_stop = self.should_stop or "another process stopped it"

    def _end_reached(self) -> bool:
        t, patience = self.run.training, self.run.validation.patience
        minutes = self._clock / 60  # the main process's, so that all agree
        stop = self.should_stop if self.processes.count == 1 else self._agreed_stop
        if stop:
            self.finished = stop
        elif self.update >= t.max_updates:
            over = f"; the run is at {self.update} already" if self.update > t.max_updates else ""
            self.finished = f"{t.max_updates} updates are done{over}"
        elif t.max_epochs and self.data.epoch > t.max_epochs:
            self.finished = f"{t.max_epochs} epochs are done"
        elif t.max_minutes and minutes >= t.max_minutes:
            self.finished = f"{t.max_minutes:g} minutes are over"
        elif patience and self.without_better >= patience:
            self.finished = f"no better {self.run.validation.best_metric} in {patience} validations"
        return bool(self.finished)

    def _stop_on_signal(self) -> None:
        """Raises `Interrupted` if a signal ends the run: with a checkpoint, of which one of this update that is there
        serves."""
        if signalled := self.signals.ending:
            there = self.checkpoints.folder / self._name()
            raise Interrupted(signalled, there if there.is_dir() else self._save(scheduled=False))

    def _not_finite(self, total: float, share: list[tuple[Batch, bool]]) -> None:
        own = torch.zeros(len(share), 3, dtype=torch.long)
        for row, (batch, counts) in zip(own, share, strict=True):
            if counts:
                row[: len(batch.ids[:3])] = torch.as_tensor(batch.ids[:3]).cpu() + 1
        everywhere = torch.cat([x.flatten() for x in self.processes.gather(own)])
        numbers = [n for n in everywhere.tolist() if n]
        kept = self.checkpoints.folder / "last"
        where = f"; {kept} is the last good checkpoint" if kept.exists() else ""
        what = "the loss" if not math.isfinite(total) else "the gradient's norm"
        raise MtplugError(
            f"update {self.update} (epoch {self._epoch}): {what} is not finite "
            f"(loss {total}), in a batch with training pairs {', '.join(map(str, numbers))}{where}; "
            "try a lower optimizer.lr or a longer warm-up"
        )

    # --- watching -----------------------------------------------------------------------------

    def _reset_window(self) -> None:
        self._sums = {"loss": 0.0, "nll": 0.0, "count": 0, "tokens": 0, "updates": 0, "norm": 0.0}
        self._sums |= {"padded": 0, "real": 0}
        self._parts: dict[str, float] = {}
        self._since = time.perf_counter()

    def _window(self, totals: Totals) -> None:
        s = self._sums
        s["loss"] += totals.loss
        s["nll"] += totals.nll
        s["count"] += totals.count
        s["tokens"] += totals.tokens
        for name, part in totals.parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + part
        s["updates"] += 1
        s["norm"] += totals.norm if totals.taken else 0.0
        s["padded"] += totals.padded
        s["real"] += totals.real
        if self.update % self.run.training.log_every and self.update > 1:
            return
        now = time.perf_counter()
        elapsed = now - self._since
        self.seconds += elapsed
        left: float = self.run.training.max_updates - self.update
        if (most := self.run.training.max_epochs) and (done := self.data.epochs):
            left = min(left, max(most - done, 0) * self.update / done)
        means = {name: part / s["count"] for name, part in self._parts.items()}
        self.emit(
            "train",
            epoch=self._epoch,
            loss=s["loss"] / s["count"],
            nll=s["nll"] / s["tokens"],
            lr=self.optimizer.param_groups[0]["lr"],
            gradient_norm=s["norm"] / s["updates"],
            tokens_per_second=s["real"] / elapsed,
            padding=1 - s["real"] / s["padded"],
            seconds_left=left * elapsed / s["updates"],
            seconds=self.seconds,
            **({"parts": means} if means else {}),
        )
        self._reset_window()

    def close(self) -> None:
        """Tell the trackers that nothing more will come."""
        # The first ones last, and an essential one after all: they are to hear of what fails.
        order = sorted(self.trackers, key=lambda t: not _essential(t))
        for tracker in order[::-1]:
            with self._isolated(tracker, "close"):
                tracker.close()
                self.trackers.remove(tracker)

    def emit(self, kind: str, **values: Any) -> None:
        """Tell all trackers of an event; one that fails, and is not essential, is told of and left out from then on.

        Raises:
            UserError: a plugin gave an event of a kind that is the trainer's another content.
        """
        if lacking := [key for key in EVENTS.get(kind, ()) if key not in values]:
            raise UserError(
                f"an event {kind!r} has {', '.join(EVENTS[kind])}, and this one no {lacking[0]}: give it a kind of "
                "your own; numbers beside the loss of training are `Loss.parts`"
            )
        for tracker in list(self.trackers):
            with self._isolated(tracker, kind):
                tracker.event(kind, {"update": self.update, **values})

    @contextlib.contextmanager
    def _isolated(self, tracker: Tracker, kind: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            made = type(tracker)
            if isinstance(error, MtplugError) or _essential(tracker):
                raise
            self.trackers.remove(tracker)
            text = f"tracker {made.__name__} ({made.__module__}) failed at {kind!r}, and the run goes on without it"
            self.emit("note", text=f"{text}: {first_line(error)}")

    # --- validation ---------------------------------------------------------------------------

    def _validate(self) -> None:
        """Score the validation set, and save a checkpoint."""
        started = time.perf_counter()
        if not self.validation.pairs:
            self._save(best=True)
            return
        try:
            with self.updater.whole() as model:
                better, scores, cut = (
                    self._scored(model) if model is not None else (False, {}, False)
                )
        except Exception:
            if self.processes.count == 1:
                self._save(scheduled=False, unscored=True)  # a metric that fails costs no updates
            raise
        main = [float(better), self.best or 0.0, float(self.without_better), float(cut)]
        notes = [float(bool(self.should_stop)), float(self.signals.own)]
        agreed = self.processes.sum([*(main if self.processes.main else [0.0] * 4), *notes])
        if agreed[4]:
            self._agree_to_stop()
        self.signals.agree(agreed[5])
        if agreed[3]:
            self._account(started)
            self._save(scheduled=False, unscored=True)
            return
        better, self.best, self.without_better = bool(agreed[0]), agreed[1], int(agreed[2])
        if better:
            self.best_name = self._name()
        if validated := getattr(self.schedule, "validated", None):
            validated(better)
        corpora = {"corpora": self.validation.corpora} if self.validation.corpora else {}
        self.emit("validation", epoch=self._epoch, scores=scores, best=better, **corpora)
        self._account(started)  # what trackers draw, too
        self._save(best=better)

    def _scored(self, model: Any) -> tuple[bool, dict[str, float], bool]:
        """Validate, in the main process: whether this is the best yet, the scores, and whether a signal cut it
        short, which may not wait for a long validation."""
        try:
            with self.signals.cutting():
                scores, samples = self.validation(model, self.criterion)
        except Interrupted:
            return False, {}, True
        own = dict(scores)
        host().hook.on_validation_end(trainer=self, update=self.update, scores=scores)
        for key, value in list(scores.items()):  # plugins may add to them, and nothing else
            if not isinstance(value, (int, float)):
                self.emit("note", text=f"a plugin's score {key}={value!r} is no number: left out")
                del scores[key]
        scores.update(own)
        better = self.validation.better(scores, self.best)
        if better:
            self.best, self.without_better = scores[self.validation.key], 0
        else:
            self.without_better += 1
        count = self.run.logging.samples
        write_samples(self.run_dir / "samples", f"valid-{self._name()}", samples, count)
        return better, scores, False

    # --- checkpoints --------------------------------------------------------------------------

    def _name(self) -> str:
        return step_name(self.update)

    def _account(self, started: float) -> None:
        """Count time spent outside of updates, without lowering the reported rate."""
        passed = time.perf_counter() - started
        self.seconds += passed
        self._since += passed

    def _save(self, best: bool = False, scheduled: bool = True, unscored: bool = False) -> Path:
        """A checkpoint of now; `scheduled` ones are those that an uninterrupted run has too, and the run goes on
        from an `unscored` one with the validation that it did not finish."""
        started = time.perf_counter()
        self._saved = None
        plain, tensors = self.updater.state()
        weights = self.updater.weights()
        path = self.checkpoints.folder / self._name()
        state = {
            "update": self.update,
            "scheduled": scheduled,
            "unscored": unscored,
            "seconds": self.seconds,
            "data": self.data.state(),
            "best": self.best,
            "best_name": self.best_name,
            "without_better": self.without_better,
            "optimizer": plain,
            "window": {
                **self._sums,
                "seconds": time.perf_counter() - self._since,
                "parts": self._parts,
            },
            "plugins": used_plugins(self.run),
        }
        if of_schedule := getattr(self.schedule, "state", None):
            state["schedule"] = of_schedule()
        if self.processes.main:
            self.checkpoints.save(path.name, weights, state, tensors, self._adapter())
            self.checkpoints.point("last", path.name)
            if best:
                self.checkpoints.point("best", path.name)
            kept = max(self.run.checkpoint.keep_last, self.run.checkpoint.average_last, 1)
            scheduled_ones = self.checkpoints.scheduled()[-kept:]
            self.checkpoints.prune({p.name for p in scheduled_ones} | {path.name})
            self.emit("checkpoint", path=path.name)
            host().hook.on_checkpoint_saved(trainer=self, path=path)
        self.processes.wait()
        self._account(started)
        return path

    def _adapter(self) -> dict[str, Any] | None:
        """The description of what is saved, where that is an adapter."""
        return getattr(self.model, "adapter_config", None)

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one; to be called before `train`.

        Raises:
            UserError: it is damaged, or an adapter of another base.
        """
        if self.processes.main:
            self.checkpoints.clean()
        self.processes.wait()
        steps = self.checkpoints.steps()
        if not steps:
            return
        self.checkpoints.scheduled()  # a damaged one is told now, and not when the next is saved
        needed: ckpt.Needed = {**COUNTS, "optimizer": dict, "data": dict}
        state, model, tensors = self.checkpoints.read(steps[-1], needed)
        if self._adapter():
            ckpt.check_base(self.model, steps[-1])
        with ckpt.taking_up(steps[-1]):
            if lost := self.updater.restore(model, state["optimizer"], tensors, steps[-1]):
                self.beginning.append(lost)
            self.data.restore(_numbers(state["data"], int))
            for key in COUNTS:
                setattr(self, key, state[key])
            if "schedule" in state:
                self.schedule.restore(state["schedule"])
            # Older checkpoints don't have these.
            self._unscored = state.get("unscored", False)
            self._carried = _numbers(state.get("window", {}), int | float)
            if self._carried:  # older ones count tokens only
                self._carried.setdefault("count", self._carried["tokens"])
        # A process killed between the folder and its links leaves links that are one save behind; that
        # to an average, which the end of the run makes anew, would not keep the best single one.
        if self.processes.main:
            self.checkpoints.point("last", steps[-1].name)
            if self.best_name and (self.checkpoints.folder / self.best_name).is_dir():
                self.checkpoints.point("best", self.best_name)
        self.processes.wait()
        self._clock = self.seconds
        if self.update:
            self._end_reached()

    def _conclude(self) -> None:
        """Average the last checkpoints, and let `best` lead to the average if it is better."""
        with self.updater.whole() as model:
            if model is not None:
                self._average(model)
        self.emit("end", text=f"training ended: {self.finished}", reason=self.finished)

    def _average(self, model: Any) -> None:
        last = self.run.checkpoint.average_last
        averaged = self.checkpoints.folder / "averaged"
        paths = self.checkpoints.scheduled()[-last:] if last > 1 else []
        sources = [p.name for p in paths]
        done = averaged.is_dir() and ckpt.read_state(averaged).get("sources") == sources
        if len(paths) > 1 and not done:
            tensors = ckpt.average(paths)
            own = {k: v.clone() for k, v in ckpt.weights(model).items()}
            state = {"update": self.update, "sources": sources, "better": True}
            if self.validation.pairs:
                ckpt.load_weights(model, tensors, averaged)
                scores, _ = self.validation(model, self.criterion)
                ckpt.load_weights(model, own, averaged)
                state["better"] = self.validation.better(scores, self.best)
                shown = "  ".join(f"{k} {v:.2f}" for k, v in scores.items() if k != "perplexity")
                verdict = "better" if state["better"] else "not better"
                text = f"average of the last {len(paths)} checkpoints: {shown}"
                text += f" ({verdict} than the best single one)"
                self.emit("note", text=text, scores=scores)
            self.checkpoints.save("averaged", tensors, state, adapter=self._adapter())
        if len(paths) > 1 and ckpt.read_state(averaged).get("better", False):
            self.checkpoints.point("best", "averaged")


def _numbers(values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The same values; TypeError if one, also in a dictionary among them, is no number of that kind."""
    for key, value in values.items():
        if isinstance(value, dict):
            _numbers(value, kind)
        elif not isinstance(value, kind):
            raise TypeError(f"{key} is {value!r:.20}")
    return values


def _essential(tracker: Any) -> bool:
    """One that has a tracker's methods, but does not derive from `Tracker`, is not."""
    return getattr(tracker, "essential", False)


def used_plugins(run: RunConfig) -> list[dict[str, Any]]:
    """Name, distribution and version of every plugin that a configuration names a component of, and which, or that
    takes part by hooks."""
    found: dict[str, dict[str, Any]] = {}
    for component in (selected.component for selected in components_of(run)):
        record = found.setdefault(
            component.plugin, {**host().provider(component), "components": {}}
        )
        names = record["components"].setdefault(component.kind, [])
        if component.name not in names:
            names.append(component.name)
    for plugin in host().plugins.values():
        if plugin.hooks and plugin.state in ("ok", "conflict"):
            record = found.setdefault(plugin.id, {**plugin.identity, "components": {}})
            record["hooks"] = plugin.hooks
    return [found[k] for k in sorted(found)]
