"""Several adapters on one base at once: a request names the one that it wants."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtplug.architectures.base import Model
from mtplug.config.base import base_folder
from mtplug.config.build import load_resolved
from mtplug.config.schema import RunConfig
from mtplug.errors import UserError, did_you_mean
from mtplug.peft import files
from mtplug.registry import per_run_settings
from mtplug.search.shortlist import Lexicon
from mtplug.search.wishes import Wishes
from mtplug.training import checkpoints as ckpt
from mtplug.training.finetune import adapt, load_base
from mtplug.training.precision import resolved
from mtplug.translator import NoPosition, TooLong, Translation, Translator
from mtplug.translator.inputs import check_as_many, checked_texts, checked_wishes
from mtplug.translator.loading import building, in_precision

Adapters = str | None | Sequence[str | None]
"""A name for all texts, or one for each; "" and None stand for no adapter."""


def folder_of(path: str | Path) -> Path:
    """The folder that holds an adapter's files.

    Args:
        path: that folder, a checkpoint, or a run (its best checkpoint, or the last).

    Raises:
        UserError: there is no adapter.
    """
    given = Path(path)
    for folder in (given, given / "checkpoints" / "best", given / "checkpoints" / "last"):
        if (folder / files.WEIGHTS).is_file():
            return folder
    what = "holds no adapter" if given.is_dir() else "does not exist"
    raise UserError(
        f"adapter {given} {what}; give a run that was trained with peft and training.finetune_from, or a "
        f"folder with {files.WEIGHTS} and {files.CONFIG}"
    )


def with_adapters(base: Model, folders: Sequence[Path], named: str | Path = "this one") -> Model:
    """A model that shares the base's weights and has adapters, the first one nearest to the base.

    Args:
        base: stays as it is.
        folders: of adapters that were made on the base, or each on the base with those before it.
        named: what messages call the base.

    Raises:
        UserError: a file is damaged, or the adapter was made on another base.
    """
    model = _shared_copy(base)
    plain = files.fingerprint(ckpt.weights(base))
    for folder in folders:
        described = files.read_config(folder)
        model = adapt(model, files.method_of(described, folder), str(named))
        ours: Any = model.adapter_config
        if described.get("mtplug", {}).get("base") == plain:
            ours["mtplug"]["base"] = plain
        ckpt.check_base(model, folder)
        _own(model, base)
        ckpt.load_weights(model, files.read(folder, model), folder)
    return model.eval()


def _shared_copy(model: Model) -> Model:
    """The same structure over the same tensors."""
    shared: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def _own(model: Model, base: Model) -> None:
    """Give a model its own of those of the base's tensors that its adapter replaces; tied ones stay tied."""
    shared = {id(t) for t in [*base.parameters(), *base.buffers()]}
    replaced = set(ckpt.weights(model))
    fresh: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if name in replaced and id(parameter) in shared:
            fresh[id(parameter)] = nn.Parameter(parameter.detach().clone())
    for module in model.modules():
        for key, own in module._parameters.items():
            if own is not None and id(own) in fresh:
                module._parameters[key] = fresh[id(own)]


class SwitchingTranslator(Translator):
    """A translator whose texts may each name an adapter; those of one adapter share batches.

    Args:
        translator: what it has in common with all of them; its model answers where none is named.
        adapters: models by name, as `with_adapters` makes them. The name "" stands for no name.
        lexicons: what `search.shortlist` chooses from for texts of an adapter, by name, where it is not the translator's.
    """

    def __init__(
        self,
        translator: Translator,
        adapters: Mapping[str, Model],
        lexicons: Mapping[str, Callable[[], Lexicon]] | None = None,
    ):
        self.__dict__.update(translator.__dict__)
        self.adapters = {"": translator.model, **adapters}
        if self.lexicon is not None:  # which is looked for once, and not again for each call
            self.lexicon = functools.partial(getattr, translator, "_lexicon")
        self.lexicons = lexicons or {}

    def check(self, name: str) -> str:
        """Why there is no such adapter; empty if there is."""
        if name in self.adapters:
            return ""
        known = [n for n in self.adapters if n]
        return f"no adapter '{name}' is loaded{did_you_mean(name, known)}"

    def translate(self, texts: Iterable[str], adapters: Adapters = "", **search: Any) -> list[str]:
        """As `Translator.translate`; `adapters` is a name for all texts, or one for each."""
        return [
            best[0].text
            for best in self.nbest(texts, token_scores=False, adapters=adapters, **search)
        ]

    def nbest(
        self,
        texts: Iterable[str],
        progress: Callable[[int], None] = lambda done: None,
        wishes: Sequence[Wishes | None] | None = None,
        attention: bool = False,
        token_scores: bool = True,
        adapters: Adapters = "",
        **search: Any,
    ) -> list[list[Translation]]:
        """As `Translator.nbest`.

        Args:
            adapters: a name for all texts, or one for each; "" and None are none.

        Raises:
            UserError: a name is not loaded, and as `Translator.nbest`.
        """
        texts = checked_texts(texts)
        asked = checked_wishes(texts, wishes)
        done = 0

        def some(part: Translator, numbers: list[int]) -> list[list[Translation]]:
            nonlocal done
            found = part._together(
                [texts[i] for i in numbers],
                [asked[i] for i in numbers],
                # Neighbours here are not always neighbours in the text.
                [number - place for place, number in enumerate(numbers)],
                lambda more: progress(done + more),
                attention,
                token_scores,
                search,
            )
            done += len(numbers)
            return found

        return self._each(len(texts), adapters, some)

    def score(
        self,
        sources: Iterable[str],
        targets: Iterable[str],
        attention: bool = False,
        adapters: Adapters = "",
        *,
        cut: bool = False,
    ) -> list[Translation]:
        """As `Translator.score`; `adapters` is a name for all texts, or one for each."""
        sources, targets = checked_texts(sources), checked_texts(targets)
        check_as_many(sources, targets)

        def some(part: Translator, numbers: list[int]) -> list[Translation]:
            chosen = [sources[i] for i in numbers], [targets[i] for i in numbers]
            return Translator.score(part, *chosen, attention, cut=cut)

        return self._each(len(sources), adapters, some)

    def _each(self, count: int, adapters: Adapters, some: Callable) -> list[Any]:
        if adapters is None or isinstance(adapters, str):
            adapters = [adapters] * count
        names = [name or "" for name in adapters]
        if len(names) != count:
            raise UserError(f"adapters: {len(names)} names for {count} texts")
        results: list[Any] = [None] * count
        too_long: TooLong | None = None
        no_position: dict[int, str] = {}
        for name in dict.fromkeys(names):
            if why := self.check(name):
                raise UserError(f"adapters: {why}")
            numbers = [i for i, own in enumerate(names) if own == name]
            part = copy.copy(self)
            part.model, before = self.adapters[name], part.too_long
            part.lexicon = self.lexicons.get(name, self.lexicon)
            try:
                for i, found in zip(numbers, some(part, numbers), strict=True):
                    results[i] = found
            except NoPosition as error:
                no_position |= {numbers[own]: reason for own, reason in error.why.items()}
            except TooLong as error:  # told of the first of all texts, not of the first adapter's
                at = numbers[error.number]
                if too_long is None or at < too_long.number:
                    too_long = error.of(at)
            self._count_long(part.too_long - before)
            for kept in ("_checked", "_speller"):  # which cost time to make
                if kept in vars(part):
                    vars(self)[kept] = vars(part)[kept]
        if no_position:
            raise NoPosition(no_position)
        if too_long is not None:
            raise too_long
        return results


def check_settings(run: RunConfig, named: str | Path, folders: Iterable[Path]) -> None:
    """Adapters must be asked in what they were trained on, as far as settings of a tokenizer say that, such as languages.

    Args:
        run: that texts are given to.
        named: its folder, for the message.
        folders: of adapters; what does not lie in a run's folder says nothing.

    Raises:
        UserError: an adapter's run has another setting.
    """
    ours = _asked_by(run)
    for folder in folders:
        home = base_folder(folder) if ours else None
        if home is None:
            continue
        theirs = _asked_by(load_resolved(home / "config.yaml"))
        if differing := [f"{k}={v}" for k, v in theirs.items() if ours.get(k) != v]:
            here = " ".join(f"{k}={v}" for k, v in ours.items() if theirs.get(k) != v)
            raise UserError(
                f"adapter {home} was trained with {' '.join(differing)}, and {named} has {here}: set what the adapter was "
                "trained with, or use the adapter's own run; adapters that differ in it cannot be used together"
            )


def _asked_by(run: RunConfig) -> dict[str, Any]:
    """Settings that say of a tokenizer's texts what no file of it does; none where a tokenizer has no such settings."""
    found = {f"tokenizer.{k}": v for k, v in per_run_settings(run.tokenizer).items()}
    if found and hasattr(run.task.config, "language_tags"):
        found["task.language_tags"] = str(run.task.config.language_tags).lower()
    return found


def switching(
    translator: Translator,
    run: RunConfig,
    adapters: Mapping[str, str | Path],
    precision: str = "fp32",
) -> SwitchingTranslator:
    """A run's translator with further adapters of the same base.

    Args:
        translator: of `run`.
        run: without PEFT, it is the base itself; else its base is.
        adapters: by name a path as `folder_of` takes it; several in one text, separated by commas, are stacked.
        precision: as `mtplug.load` takes it.

    Raises:
        UserError: a path leads to no adapter, or to one that was made on another base.
    """
    device = next(translator.model.parameters()).device
    base, named = translator.model, run.run_dir
    if run.peft is not None:
        if not run.training.finetune_from:
            raise UserError(
                "--adapter: this run has a method of its own and no base to put adapters on"
            )
        with building():
            base = load_base(run, translator.task, run.architecture.build(translator.task))
        named = run.training.finetune_from
    base = base.to(device)
    models = {}
    lexicons = {}
    with torch.no_grad(), building():
        for name, paths in adapters.items():
            whole = isinstance(paths, Path) or Path(paths).exists()
            folders = [folder_of(path) for path in ([paths] if whole else str(paths).split(","))]
            check_settings(run, run.run_dir, folders)
            models[name] = with_adapters(base, folders, named).to(device)
            lexicons[name] = functools.cache(functools.partial(_lexicon, folders, translator))
        for model in (translator.model, *models.values()):
            in_precision(model, resolved(precision, device))
    return SwitchingTranslator(translator, models, lexicons)


def _lexicon(folders: Sequence[Path], translator: Translator) -> Lexicon:
    """Of adapters that are stacked: those of their runs, which have the base's words, too; of what lies in no run's folder,
    or whose run can learn none, the translator's."""
    homes = filter(None, (base_folder(folder) for folder in reversed(folders)))
    found = [lexicon for home in homes if (lexicon := Lexicon.of_folder(home))]
    if not found:
        return translator._lexicon
    return functools.reduce(Lexicon.with_base, found)
