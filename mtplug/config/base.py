"""What a fine-tuning run takes from its base (`training.finetune_from`): task, tokenizer and architecture."""

from __future__ import annotations

from pathlib import Path

from mtplug.config.compose import Leaf, Map, Node, compose, merge
from mtplug.errors import UserError

GROUPS = ("task", "tokenizer", "architecture")


def base_folder(path: Path) -> Path | None:
    """The run's folder that a path leads to: a run's, or that of one of its checkpoints."""
    for folder in (path, path.parent.parent):
        if (folder / "config.yaml").is_file() and (folder == path or path.is_dir()):
            return folder
    return None


def _name(group: Node | None) -> str:
    name = group.get("name") if isinstance(group, Map) else group
    return name.text if isinstance(name, Leaf) else ""


def lay_base(tree: Map) -> Map:
    """`tree` over the base's groups, where it names a base.

    A run's own saved configuration holds these groups whole, and can be read without the base.

    Raises:
        UserError: the base is no run and no checkpoint of one.
    """
    training = tree.get("training")
    path = training.get("finetune_from") if isinstance(training, Map) else None
    if not isinstance(path, Leaf) or path.null or not path.text:
        return tree
    folder = base_folder(Path(path.text))
    if folder is None:
        if all(group in tree for group in GROUPS):
            return tree
        raise UserError(
            f"{path.origin}: training.finetune_from: {path.text} is no run and no checkpoint of one"
        )
    base = compose(folder / "config.yaml", [])
    below = Map({group: base[group] for group in GROUPS if group in base})
    if _name(tree.get("architecture")) not in ("", _name(below.get("architecture"))):
        # The base's settings would be blamed for not being this one's; the name itself is refused later.
        below.pop("architecture")
    merge(below, tree)
    below.origin = tree.origin
    return below
