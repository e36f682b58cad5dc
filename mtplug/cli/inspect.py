"""mtplug-inspect: show what a run or a checkpoint holds."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from mtplug.cli import common
from mtplug.errors import UserError


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-inspect", "Show what a run or a checkpoint holds.")
    made.add_argument("path", type=Path, help="a run's folder, or one of its checkpoints")
    made.add_argument(
        "--tensors",
        action="store_true",
        help="list every tensor (of a run those of its best checkpoint)",
    )
    made.add_argument("--json", action="store_true")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.files import is_run
    from mtplug.training.checkpoints import Checkpoints

    if any((args.path / f).is_file() for f in ("model.safetensors", "adapter_model.safetensors")):
        found = checkpoint(args.path, args.tensors)
    elif is_run(args.path):
        found = run(args.path)
        if args.tensors:
            newest = next((n for n in ("best", "last") if n in found), None)
            if newest is None:
                raise UserError(f"{args.path} has no checkpoint yet, and so no tensors")
            found_at = Checkpoints(args.path / "checkpoints").find(newest)
            shown = checkpoint(found_at, tensors=True)
            found["tensors of"], found["names"] = newest, shown["names"]
    else:
        raise UserError(f"{args.path} is neither a run nor a checkpoint of one")
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _show(found)
    return 0


def checkpoint(path: Path, tensors: bool) -> dict[str, Any]:
    """Update, scores, sizes, and the tensors if asked for; weights are not read into memory."""
    from safetensors import safe_open

    from mtplug.files import read_by_safetensors
    from mtplug.training.checkpoints import adapter_of, read_state, weights_file

    adapter = adapter_of(path)
    state = read_state(path) if adapter is None or (path / "state.json").is_file() else {}
    file = weights_file(path)
    with read_by_safetensors(file), safe_open(file, framework="numpy") as opened:
        shapes = {n: opened.get_slice(n).get_shape() for n in sorted(opened.keys())}
        types = {n: opened.get_slice(n).get_dtype() for n in shapes}
    wanted = ("version", "update", "best", "best_name", "seconds", "data", "sources")
    found: dict[str, Any] = {
        "checkpoint": str(path.resolve()),
        **{k: state[k] for k in wanted if k in state},
        "parameters": sum(map(math.prod, shapes.values())),
        "tensors": len(shapes),
        "bytes": sum(f.stat().st_size for f in path.iterdir()),
    }
    if adapter:
        found["adapter"] = (
            adapter.get("mtplug", {}).get("method", {}).get("name", adapter["peft_type"])
        )
        found["base"] = adapter.get("base_model_name_or_path")
    if tensors:
        found["names"] = {n: f"{types[n]} {shape}" for n, shape in shapes.items()}
    return found


def run(path: Path) -> dict[str, Any]:
    """Where a run stands."""
    from mtplug.files import read_environment
    from mtplug.training.checkpoints import Checkpoints, read_state
    from mtplug.training.trackers import read_events

    events = read_events(path / "metrics.jsonl")
    checkpoints = Checkpoints(path / "checkpoints")
    links = {p.name: p.readlink().name for p in (path / "checkpoints").glob("*") if p.is_symlink()}
    made_with = read_environment(path)
    found: dict[str, Any] = {"run": str(path.resolve()), "mtplug": made_with.get("mtplug")}
    found["plugins"] = sorted({f"{p['distribution']} {p['version']}"
                               for p in made_with.get("plugins", [])})  # fmt: skip
    steps = checkpoints.steps()
    others = {
        p.name for p in (path / "checkpoints").glob("[!.]*") if p.is_dir() and not p.is_symlink()
    }
    found["checkpoints"] = [p.name for p in steps] + sorted(others - {p.name for p in steps})
    found.update(links)
    if steps:
        state = read_state(steps[-1], {"update": int})
        found["update"], found["seconds"] = state["update"], round(state.get("seconds", 0), 1)
        found["finished"] = next(
            (e["reason"] for e in reversed(events) if e["event"] == "end"), "no"
        )
    for kind in ("validation", "test"):
        last = next((e for e in reversed(events) if e["event"] == kind), None)
        if last:
            found[f"last {kind}"] = {k: round(v, 3) for k, v in last["scores"].items()}
    return found


def _show(found: dict[str, Any], indent: str = "") -> None:
    width = max(map(len, found), default=0)
    for key, value in found.items():
        if isinstance(value, dict) and len(value) > 4:
            print(f"{indent}{key}:")
            _show(value, indent + "  ")
        elif isinstance(value, dict):
            print(f"{indent}{key:<{width}}  {', '.join(f'{k} {v}' for k, v in value.items())}")
        elif isinstance(value, list):
            print(f"{indent}{key:<{width}}  {', '.join(map(str, value))}")
        else:
            shown = f"{value:,}" if isinstance(value, int) else value
            print(f"{indent}{key:<{width}}  {shown}")


if __name__ == "__main__":
    sys.exit(main())
