"""The translator of a run that was trained."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from mtplug.architectures.base import Model
from mtplug.config.build import load_resolved
from mtplug.config.schema import RunConfig
from mtplug.errors import UserError
from mtplug.files import is_run
from mtplug.search.combine import Ensemble, check_direction, direction, same_vocabulary
from mtplug.search.shortlist import Lexicon
from mtplug.translator.translator import Translator


def load(
    run_dir: str | Path,
    checkpoint: str = "best",
    device: str = "auto",
    overrides: Iterable[str] = (),
    ensemble: str | Path | Iterable[str | Path] = (),
    backend: str = "",
    backend_settings: Iterable[str] = (),
    precision: str = "fp32",
    adapters: Mapping[str, str | Path] | None = None,
) -> Translator:
    """The translator of a run.

    Args:
        run_dir: the run's folder.
        checkpoint: best, last, averaged or a checkpoint's name such as step-00001000; several,
            separated by commas, decode together as an ensemble.
        device: auto, cpu, cuda or cuda:N.
        overrides: `key=value` settings, as on the command line of `mtplug-translate`.
        ensemble: folders of further runs with the same vocabulary, which decode together with it; of each the same
            `checkpoint`, unless `RUN:CHECKPOINT` names another.
        backend: an exporter whose engine searches instead of ours, such as ctranslate2.
        backend_settings: its `key=value` settings, such as `quantization=int8`.
        precision: fp32; bf16, which holds the weights and computes in bf16 (faster on devices with
            instructions for it; translations may change a little); auto: bf16 on such devices.
        adapters: paths of adapters of the run's base, by the name under which a text may ask for one; the
            translator is then a `mtplug.adapters.SwitchingTranslator`.

    Raises:
        UserError: something of the run is missing or damaged, or needs a plugin that isn't here.
    """
    run = load_run(run_dir, overrides)
    ensemble = [ensemble] if isinstance(ensemble, (str, Path)) else list(ensemble)
    if adapters:
        from mtplug.adapters import switching

        if ensemble or backend or "," in checkpoint:
            raise UserError(
                "--adapter: an ensemble or a backend takes none; give one run and one checkpoint"
            )
        made = translator_of(run, Path(run_dir), checkpoint, device)
        return switching(made, run, adapters, precision)
    made = translator_of(run, Path(run_dir), checkpoint, device, "fp32" if backend else precision)
    if backend:
        from mtplug.exporting.backend import engine_of
        from mtplug.training.precision import pick_device, resolved

        if ensemble:
            raise UserError(f"--backend {backend} searches with one model, not an ensemble")
        if precision == "bf16":
            raise UserError(
                f"precision bf16: --backend {backend} computes in what its quantization says; set that instead"
            )
        made.engine = engine_of(
            made, run, Path(run_dir), checkpoint, device, backend, backend_settings
        )
        in_precision(made.model, resolved(precision, pick_device(device)))
    others = []
    for path in ensemble:
        folder, colon, own = str(path).rpartition(":")
        folder, own = (
            (folder, own) if colon and not Path(path).is_dir() else (str(path), checkpoint)
        )
        others.append((path, load(folder, own, device, precision=precision)))
    for path, other in others:
        for side in ("source_tokenizer", "target_tokenizer"):
            same_vocabulary(getattr(made.task, side), getattr(other.task, side), str(path))
        check_direction(direction(made.task), other.task, str(path))
    if others:
        made.model = Ensemble([made.model, *(other.model for _, other in others)]).eval()
        made.max_length = min(made.max_length, *(other.max_length for _, other in others))
    return made


def load_run(run_dir: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run; what only training needs of its plugins may be absent."""
    run_dir = Path(run_dir)
    if not is_run(run_dir):
        here = "is a file" if run_dir.is_file() else "does not exist"
        here = "is no run: it has no config.yaml" if run_dir.is_dir() else here
        raise UserError(f"{run_dir} {here}; give the folder that mtplug-train made")
    run = load_resolved(run_dir / "config.yaml", list(overrides))
    run.run_dir = str(run_dir)  # where it was made may be another place
    return run


def translator_of(
    run: RunConfig, run_dir: Path, checkpoint: str, device: str, precision: str = "fp32"
) -> Translator:
    """A translator from one of a run's checkpoints; see `load`."""
    from mtplug.training.checkpoints import Checkpoints
    from mtplug.training.finetune import model_of
    from mtplug.training.precision import pick_device, resolved

    task = run.task.build()
    task.load(run, run_dir)
    models = []
    for name in checkpoint.split(","):
        with building():
            with Undrawn():
                model = model_of(run, task, whole=True)
            Checkpoints(run_dir / "checkpoints").load_model(name, model)
        models.append(model)
    model = models[0] if len(models) == 1 else Ensemble(models)
    model.to(pick_device(device)).eval()
    in_precision(model, resolved(precision, pick_device(device)))
    translator = Translator(
        model,
        task,
        run.search.build(),
        max_length=run.data.max_length,
        on_long=run.data.on_long,
        # Twice what a validation takes: a search has logits of one position at a time, not of all.
        batch_tokens=2 * run.validation.batch_tokens,
    )
    translator.lexicon = functools.partial(Lexicon.of_run, run, run_dir, task)
    return translator


class Undrawn(TorchFunctionMode):
    """Parameters begin with zeros where they would be drawn: they are overwritten at once, and to draw those of a large
    model takes longer than to read them. What is no parameter, such as a buffer, is drawn."""

    draws = {Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.trunc_normal_, init.kaiming_uniform_}  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.draws:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                tensor.data.zero_()
                return tensor
        return func(*args, **kwargs)


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Models are built alike whatever program does it, and leave its random numbers alone."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng([]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def in_precision(model: Model, precision: str) -> None:
    """Hold a model's weights in bf16 if that is the precision, and as they are if it is fp32; in place.

    Raises:
        UserError: it is another one.
    """
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision: '{precision}' is none of fp32, bf16, auto")
    if precision == "bf16":
        for parameter in model.parameters():  # buffers, such as tables of positions, stay exact
            parameter.data = parameter.data.bfloat16()
