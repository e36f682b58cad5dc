"""Is a run that goes on the one that was begun in its folder: the same settings, data, tokenizer and plugins?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtplug.config import RunConfig, load_resolved, to_plain
from mtplug.data.store import checksum
from mtplug.errors import NoComponent, UserError
from mtplug.files import begun, is_run, read_environment
from mtplug.plugins import host


def check_same_settings(run: RunConfig, run_dir: Path) -> None:
    """Raises `UserError` if the run in `run_dir` was begun with other settings that decide its result."""
    if not (begun(run_dir) and is_run(run_dir)):
        return
    both = load_resolved(run_dir / "config.yaml"), run
    old, new = (_flat(to_plain(r, free=False)) for r in both)
    # A base may have been moved, but where there was none its weights would never be taken.
    if (base := run.training.finetune_from) and not both[0].training.finetune_from:
        new["training.finetune_from"] = base
    changed = [key for key in {*old, *new} if old.get(key) != new.get(key)]
    if not changed:
        return
    # Another component has other settings, and may bring those of other groups with it.
    key = min(changed, key=lambda key: (not key.endswith(".name"), key))
    if key not in new:
        what = f"with {key}={_shown(old[key])}, which is not set now; set it"
    elif key not in old:
        what = f"without {key}={_shown(new[key])}; leave it out"
    else:
        what = f"with {key}={_shown(old[key])}, not {_shown(new[key])}; set it so"
    other = _with_other_data(run_dir) if key.startswith("data.") else ""
    brought = key.removesuffix("name")  # nothing, if it is no name
    more = sorted(k for k in changed if k != key and (brought == key or not k.startswith(brought)))
    shown = ", ".join(more[:4]) + (f" and {len(more) - 4} more" if len(more) > 4 else "")
    too = f" ({shown} differ{'s' * (len(more) == 1)}, too)" if more else ""
    raise UserError(
        f"{run_dir} was begun {what}{too}, or choose another run_dir, or remove that folder{other}"
    )


def check_same_data(sums: dict[str, str], run_dir: Path) -> None:
    """Raises `UserError` if a corpus is not what it was when the run in `run_dir` was begun."""
    # By place and not by name, since the corpora may have been moved.
    old = read_environment(run_dir).get("data")
    if old is None or list(sums.values()) == list(old.values()):
        return
    hint = f"since {run_dir} was begun; choose another run_dir, or remove that folder"
    hint += _with_other_data(run_dir)
    if len(sums) != len(old):
        raise UserError(f"data: {len(sums)} training and validation files, {len(old)} before: "
                        f"some were added or removed {hint}")  # fmt: skip
    path = next(p for p, was in zip(sums, old.values(), strict=True) if sums[p] != was)
    raise UserError(f"{path} has changed {hint}")


def check_same_hooks(run_dir: Path, report: Callable[[str], None]) -> None:
    """A plugin that steered a run is missed when it goes on, unless it is blocked on purpose."""
    for record in read_environment(run_dir).get("plugins", []):
        plugin = host().plugins.get(f"{record['distribution']}:{record['name']}")
        if not record.get("hooks"):
            continue
        if plugin is not None and plugin.state == "blocked":
            report(
                f"{run_dir} was begun with plugin {plugin}, which is blocked and takes no part now"
            )
            continue
        try:
            host().require([record], str(run_dir))
        except NoComponent as error:
            raise NoComponent(
                f"{error}; or, to go on without its {', '.join(record['hooks'])}, take it out of "
                f"{run_dir / 'environment.json'}"
            ) from None


def check_same_tokenizer(run_dir: Path) -> None:
    """Raises `UserError` if the tokenizer is another than that which the run in `run_dir` was begun with."""
    if not begun(run_dir):
        return
    old = read_environment(run_dir).get("tokenizer", {})  # which old runs don't have
    for name, new in tokenizer_sums(run_dir).items():
        if old.get(name, new) != new:
            raise UserError(
                f"{run_dir / 'tokenizer' / name} has changed since {run_dir} was begun, and with it what "
                "its model's vocabulary means; restore that file, or choose another run_dir"
            )


def tokenizer_sums(run_dir: Path) -> dict[str, str]:
    """SHA-256 of the files that decide what ids mean, by name."""
    folder = run_dir / "tokenizer"
    # tokenizer.json repeats settings, of which a later version has more.
    files = (f for f in sorted(folder.glob("*")) if f.is_file() and f.name != "tokenizer.json")
    return {f.name: checksum(f) for f in files}


def tell_other_batches(run: RunConfig, run_dir: Path, report: Callable[[str], None]) -> None:
    """A run may go on with batches of another size, but not with the same ones."""
    if not is_run(run_dir):
        return
    old, new = load_resolved(run_dir / "config.yaml").training, run.training
    for key in ("max_tokens", "max_sentences"):
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            report(
                f"training.{key} was {was} and is {now}: batches are cut anew, and until the epoch ends "
                "some sentences may come twice and others not at all"
            )


def _with_other_data(run_dir: Path) -> str:
    """For the end of a message: how to go on from a run's weights with other data."""
    return f"; a new run goes on from its weights with training.init_from={run_dir} tokenizer.model={run_dir}"


def _shown(value: Any) -> str:
    """A value as a configuration has it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in items:
        found.update(_flat(item, f"{path}.{key}" if path else str(key)))
    return found
