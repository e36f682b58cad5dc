"""Fine-tuning: a run that takes tokenizers, architecture and weights of another one, its base.

With a PEFT method, its checkpoints hold the adapter only, and name the base by path and fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtplug
from mtplug.architectures.base import Model
from mtplug.config.base import base_folder
from mtplug.config.build import load_resolved, to_plain
from mtplug.config.schema import RunConfig
from mtplug.errors import UserError, did_you_mean
from mtplug.peft import files
from mtplug.registry import Selected, per_run_settings
from mtplug.training import checkpoints as ckpt


def base_checkpoint(path: str) -> tuple[Path, str]:
    """The folder of the base's run, and the name of its checkpoint: best, or last where there is no best.

    Args:
        path: a run, or one of its checkpoints.

    Raises:
        UserError: it is neither.
    """
    found = base_folder(Path(path))
    if found is None:
        siblings = Path(path).parent
        near = [p.name for p in siblings.iterdir()] if siblings.is_dir() else []
        hint = did_you_mean(Path(path).name, near) if near else ""
        raise UserError(
            f"training.finetune_from: {path} is no run and no checkpoint of one{hint}; if the base was moved, give "
            "its new place: training.finetune_from=PATH"
        )
    if found != Path(path):
        return found, Path(path).name
    best = found / "checkpoints" / "best"
    return found, "best" if best.exists() else "last"


def check(run: RunConfig) -> None:
    """A fine-tuning run must fit its base.

    Raises:
        UserError: tokenizer or architecture were set to something else, or labels are learnt that are not the base's.
    """
    folder, _ = base_checkpoint(run.training.finetune_from)
    base = load_resolved(folder / "config.yaml")
    if run.training.init_from:
        raise UserError(
            "training.init_from: training.finetune_from sets the weights already; give one of the two"
        )
    if _fixed(base.tokenizer) != _fixed(run.tokenizer):
        own = per_run_settings(base.tokenizer)
        what = f"set no more than {' and '.join(own)} there" if own else "leave the group out"
        raise UserError(
            f"tokenizer: a run that fine-tunes {folder} has that run's tokenizer; {what}"
        )
    if base.architecture.name != run.architecture.name:
        raise UserError(
            f"architecture.name={run.architecture.name}: the base {folder} is a {base.architecture.name}; "
            "leave it out"
        )
    if base.task.name != run.task.name and run.task.build().aligned:
        peft = (
            " and without peft, by which the new head would stay as it was drawn"
            if run.peft
            else ""
        )
        raise UserError(
            f"task.name={run.task.name}: the base {folder} was trained on {base.task.name} and its output has other "
            f"labels; {from_weights(str(folder))}{peft}"
        )


def _fixed(tokenizer: Selected) -> dict[str, Any]:
    """What a tokenizer must have in common with the base's."""
    own = per_run_settings(tokenizer)
    return {key: value for key, value in to_plain(tokenizer).items() if key not in own}


def from_weights(base: str) -> str:
    """For the end of a message: how to start from a base's weights where it cannot be fine-tuned."""
    return (
        f"start from its weights: training.init_from={base} tokenizer.model={base} and the architecture that the task "
        "wants instead of training.finetune_from"
    )


def model_of(
    run: RunConfig,
    task: Any,
    whole: bool = False,
    start: Callable[[Model], None] = lambda model: None,
) -> Model:
    """A run's model as it is before its first update.

    Args:
        run: its configuration.
        task: with tokenizers.
        whole: a checkpoint follows, so that the base is not needed where checkpoints hold all weights.
        start: sets initial weights where there is no base, before a method is applied.

    Raises:
        UserError: the base is missing or does not fit.
    """
    model: Model = run.architecture.build(task)
    if not run.training.finetune_from or (whole and run.peft is None):
        start(model)
        return model if run.peft is None else run.peft.build().apply(model) or model
    model = load_base(run, task, model)
    return model if run.peft is None else adapt(model, run.peft, run.training.finetune_from)


def load_base(run: RunConfig, task: Any, model: Model, above: tuple[Path, ...] = ()) -> Model:
    """The base's model: `model` with its weights, and with its adapters if it is a PEFT run itself.

    Args:
        above: folders of the runs whose base, or whose base's base, this one is.

    Raises:
        UserError: the base is missing, does not fit, or is made of itself.
    """
    folder, name = base_checkpoint(run.training.finetune_from)
    above = (*above, folder.resolve())
    if len(set(above)) < len(above):
        raise UserError(f"training.finetune_from: {folder} is its own base")
    base = load_resolved(folder / "config.yaml")
    if base.peft is not None:
        if run.peft is None:
            raise UserError(
                f"training.finetune_from: {folder} holds an adapter; to train all weights, first make one "
                f"model of both: mtplug-peft merge {folder} --output FOLDER"
            )
        if base.training.finetune_from:
            model = load_base(base, task, model, above)
            model = adapt(model, base.peft, base.training.finetune_from)
        else:
            model = base.peft.build().apply(model) or model
    ckpt.Checkpoints(folder / "checkpoints").load_model(name, model)
    model.base_names = frozenset()
    return model.requires_grad_(True)


def adapt(model: Model, peft: Selected, base: str) -> Model:
    """Apply a method to a model with its base's weights; its checkpoints are adapters from then on.

    Afterwards the model has `base_names`, the weights that stay the base's, `names_before`, those that it had
    before, and `adapter_config`.
    """
    model.base_names = frozenset()
    before = ckpt.weights(model)
    known = {t.data_ptr(): t for t in before.values()}
    mark = files.fingerprint(before)
    method = peft.build()
    model = method.apply(model) or model
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UserError(f"peft: {peft.name} leaves nothing to train")
    model.base_names = frozenset(
        name
        for name, t in ckpt.weights(model).items()
        if name not in trained and t.data_ptr() in known
    )
    described = method.describe() if hasattr(method, "describe") else {}
    model.names_before = frozenset(before)
    model.adapter_config = {
        "peft_type": getattr(method, "peft_type", "") or f"MTPLUG_{peft.name.upper()}",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        **described,
        "mtplug": {
            "version": mtplug.__version__,
            "method": to_plain(peft),
            "base": mark,
            "twins": getattr(method, "twins", {}),
        },
    }
    return model
