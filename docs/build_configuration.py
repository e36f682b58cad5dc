"""Write docs/configuration.md from the dataclasses that configurations are checked against.

python docs/build_configuration.py          writes the page
python docs/build_configuration.py --check  fails if the page is not up to date
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path

from mtplug.config.schema import RunConfig
from mtplug.plugins import host
from mtplug.registry import KINDS, field_help, field_types, singular, type_name

PAGE = Path(__file__).with_name("configuration.md")
SKIPPED = ("exporters", "benchmarks")

INTRODUCTION = """\
# Configuration

*Made by `docs/build_configuration.py` from the code; don't edit.*

A run is a YAML file. `extends: other.yaml` (relative to the file; or a list) lays the file over another;
`key.sub=value` on the command line lays single values over both; `data.train.0.weight=2` reaches into a list.
`${group.key}` refers to another value that a file or the command line sets, `\\${` is a literal `${`. Values keep
the text they are written as until the type of their field is known, so `target_lang: no` is Norwegian.

`mtplug-train CONFIG --print-config` shows the result, `--explain` where each value came from. An unknown
key, component or type stops before any work.

A group that holds a component has `name` and the settings of that component; `optimizer: adamw` is short
for `optimizer: {name: adamw}`. When a later layer changes the name, settings that an earlier file gave the
other component are dropped if the new one does not know them; of a corpus, all are dropped.
"""


def table(cls: type) -> list[str]:
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    help_text, hints = field_help(cls), field_types(cls)
    for f in dataclasses.fields(cls):
        kind = f.metadata.get("component") or f.metadata.get("components")
        if dataclasses.is_dataclass(hints[f.name]) and not kind:
            rows += [f"| `{f.name}.{row[3:]}" for row in table(hints[f.name])[2:-1]]
            continue
        text = " ".join(help_text.get(f.name, "").split())
        type_name = f"{singular(kind)}" if kind else _type(hints[f.name], f)
        if f.metadata.get("components"):
            type_name = f"list of {kind}"
        if "entries" in f.metadata:
            type_name = "list"
        rows.append(f"| `{f.name}` | {type_name} | {_default(f)} | {text} |")
        if "entries" in f.metadata:
            (cls,) = typing.get_args(hints[f.name])
            rows += [f"| `{f.name}[].{row[3:]}" for row in table(cls)[2:-1]]
    return [*rows, ""]


def _type(hint: object, f: dataclasses.Field) -> str:
    if options := f.metadata.get("options"):
        return " · ".join(dict.fromkeys(options))
    return type_name(hint).replace(" | ", " or ")  # a bar would end the cell


def _default(f: dataclasses.Field) -> str:
    if "component" in f.metadata:
        return f"`{f.metadata['default']}`"
    if "components" in f.metadata:
        preset = f.metadata["preset"]
        return f"`{', '.join(preset)}`" if preset else ""
    if f.default is not dataclasses.MISSING:
        return f"`{f.default!r}`" if f.default not in ("", ()) else ""
    return ""


def page() -> str:
    lines = [INTRODUCTION, "## Groups", "", "| group | what | default |", "|---|---|---|"]
    hints, help_text = field_types(RunConfig), field_help(RunConfig)
    groups = []
    for f in dataclasses.fields(RunConfig):
        kind = f.metadata.get("component")
        if kind:
            text = f"a component of kind {kind}"
        elif dataclasses.is_dataclass(hints[f.name]):
            groups.append((f.name, hints[f.name]))
            text = (hints[f.name].__doc__ or "").strip()
        else:
            text = help_text.get(f.name, "")
        lines.append(f"| `{f.name}` | {' '.join(text.split())} | {_default(f)} |")
    lines.append("")
    for name, cls in groups:
        lines += [f"### {name}", "", *table(cls)]
    lines += ["## Components", ""]
    for kind in KINDS:
        if kind in SKIPPED:
            continue
        for name in host().names(kind):
            component = host().component(kind, name)
            if host().provider(component)["distribution"] != "mtplug":
                continue
            doc = " ".join((component.config.__doc__ or "").split())
            lines += [f"### {singular(kind)}: {name}", ""]
            if doc and not doc.startswith(component.config.__name__ + "("):
                lines += [doc, ""]
            if dataclasses.fields(component.config):
                lines += table(component.config)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/configuration.md is not up to date: python docs/build_configuration.py")
    else:
        PAGE.write_text(text, encoding="utf-8")
