"""What a run's configuration takes from another run: from its base (`training.finetune_from`) task, tokenizer and
architecture; from one that the task names, such as `task.tokenizer_from`, what that setting is for (`run_field`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mtplug.config.compose import Leaf, Map, Node, compose, merge
from mtplug.errors import UserError
from mtplug.files import is_run
from mtplug.plugins import host

GROUPS = ("task", "tokenizer", "architecture")


def base_folder(path: Path) -> Path | None:
    """The run's folder that a path leads to: a run's, or that of one of its checkpoints."""
    for folder in (path, path.parent.parent):
        if is_run(folder) and (folder == path or path.is_dir()):
            return folder
    return None


def _name(group: Node | None) -> str:
    name = group.get("name") if isinstance(group, Map) else group
    return name.text if isinstance(name, Leaf) else ""


def lay_base(tree: Map) -> Map:
    """`tree` over the base's groups, or those of another run, where it names one.

    A run's own saved configuration holds these groups whole, and can be read without the base.

    Raises:
        UserError: the base is no run and no checkpoint of one.
    """
    path = _text(tree, "training", "finetune_from")
    if path is None:
        for key, groups in _lenders(_name(tree.get("task"))).items():
            given = _text(tree, "task", key)
            if given is not None and is_run(given.text):
                tree = _over(Path(given.text), groups, tree)
        return tree
    folder = base_folder(Path(path.text))
    if folder is None:
        if all(group in tree for group in GROUPS):
            return tree
        raise UserError(
            f"{path.origin}: training.finetune_from: {path.text} is no run and no checkpoint of one"
        )
    return _over(folder, GROUPS, tree)


def _lenders(task: str) -> dict[str, tuple[str, ...]]:
    """The settings of a task that name another run, and the groups that are taken from there."""
    try:
        config = host().component("tasks", task).config
    except UserError:  # which is told later, with its place
        return {}
    found = {f.name: f.metadata.get("lends", ()) for f in dataclasses.fields(config)}
    return {name: groups for name, groups in found.items() if groups}


def _text(tree: Map, group: str, key: str) -> Leaf | None:
    """A setting, where it is given and not empty."""
    settings = tree.get(group)
    found = settings.get(key) if isinstance(settings, Map) else None
    return found if isinstance(found, Leaf) and not found.null and found.text else None


def _over(folder: Path, groups: tuple[str, ...], tree: Map) -> Map:
    """`tree` over groups of a run's configuration."""
    base = compose(folder / "config.yaml", [])
    below = Map({group: base[group] for group in groups if group in base}, tree.origin)
    if _name(tree.get("architecture")) not in ("", _name(below.get("architecture"))):
        # The base's settings would be blamed for not being this one's; the name itself is refused later.
        below.pop("architecture", None)
    merge(below, tree)
    return below
