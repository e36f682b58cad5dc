"""What exporters and their engines give, and a run made of what one has read."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mtplug.config.build import component_from_overrides, load_config, yaml_of
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import MtplugError, UserError
from mtplug.files import finite, whole_folder
from mtplug.peft.base import Change, changes
from mtplug.plugins import host
from mtplug.registry import Selected
from mtplug.search.base import SearchStrategy


class Engine(ABC):
    """Searches translations with an exported model instead of ours."""

    @abstractmethod
    def strategy(self, search: SearchStrategy, token_scores: bool) -> SearchStrategy:
        """A strategy that finds what `search` would, and ignores the model it is given.

        Args:
            search: the one that the settings ask for.
            token_scores: whether hypotheses need their `token_scores`.

        Raises:
            UserError: the engine cannot search so; the message names the setting.
        """


@dataclass
class Imported:
    """A model of another format, in our terms.

    Attributes:
        settings: of a run, as in its YAML; what is left out has its default.
        tokenizers: by side: `joint`, or `source` and `target`.
        weights: what `mtplug.training.checkpoints.weights` names of the architecture.
    """

    settings: dict[str, Any]
    tokenizers: dict[str, Tokenizer]
    weights: dict[str, Tensor]


ABLE = {"export": "can be written", "read": "can be read", "engine": "translate"}
"""What formats are told to do whose exporter has a method."""


def build_exporter(
    name: str, settings: list[str], option: str, method: str = "export"
) -> tuple[Selected, Any]:
    """An exporter by name, with `key=value` settings.

    Args:
        option: of the command line, for the message.
        method: what it is wanted for: `export`, `read` or `engine`.

    Raises:
        UserError: there is no such exporter, it has no such method, or a setting is wrong.
    """
    if name not in host().names("exporters"):
        raise UserError(
            f"{option} {name}: no such format; there are {capable(method)}, others come with plugins "
            f"(docs/first_party.md){host().left_out()}"
        )
    selected = component_from_overrides("exporters", name, settings)
    exporter = selected.build()
    if not hasattr(exporter, method):
        only = "written" if hasattr(exporter, "export") else "read"
        raise UserError(
            f"{option} {name}: this format can only be {only}; formats that {ABLE[method]}: {capable(method)}"
        )
    return selected, exporter


def capable(method: str) -> str:
    """The exporters that have a method, for a message."""
    found = []
    for name in host().names("exporters"):
        component = host().component("exporters", name)
        made: Any = component.factory
        with contextlib.suppress(Exception):  # some have settings without a default
            made = component.factory(component.config())
        if hasattr(made, method):
            found.append(name)
    return ", ".join(found) or "none"


def reason_against(exporter: Any, model: nn.Module, task: Any) -> str:
    """Why an exporter cannot take a model; empty if it can, or does not say."""
    attached = [change for _, _, own in changes(model) for change in own]
    for change in attached:
        if type(change).merge is Change.merge:  # which refuses
            return f"the run holds an adapter that cannot be merged ({type(change).__name__}), and no format takes it"
    if attached:
        return "the run holds an adapter; merge it first: mtplug-peft merge RUN --output FOLDER"
    why_not = getattr(exporter, "why_not", None)
    return why_not(model, task) if why_not else ""


def read_model(exporter: Any, name: str, source: Path) -> Imported:
    """What an exporter reads.

    Raises:
        UserError: as it says; or `source` lacks, or has of another kind, what the format has.
    """
    try:
        return exporter.read(source)
    except (MtplugError, OSError):
        raise
    except Exception as error:
        why = traceback.format_exception_only(error)[0].strip().splitlines()[0]
        raise UserError(f"{source} is damaged, or no model that {name} reads: {why}") from error


def write_run(imported: Imported, run_dir: Path) -> None:
    """A run's folder that translates, with one checkpoint, `imported`.

    Raises:
        UserError: the folder is there already, the parts don't fit each other, or a weight is NaN or infinite.
    """
    from mtplug.training.checkpoints import load_weights
    from mtplug.training.merged import write_made
    from mtplug.training.run import environment

    if run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"{run_dir} is there already; choose another folder")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(yaml_of(imported.settings), encoding="utf-8")
        run, _ = load_config(file, [])
    run.run_dir = str(run_dir)
    with whole_folder(run_dir) as made:
        for side, tokenizer in imported.tokenizers.items():
            tokenizer.save(made / "tokenizer", side)
        task = run.task.build()
        task.load(run, made)
        model = run.architecture.build(task)
        load_weights(model, finite(imported.weights, "what was read"), "what was read")
        write_made(made, run, environment(run, {}), "imported", model)
