"""Write the part of docs/plugins.md that tells of each kind, from the contracts and the templates.

python docs/build_kinds.py          writes it
python docs/build_kinds.py --check  fails if it is not up to date
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from mtplug import hookspecs
from mtplug.contracts import CONTRACTS
from mtplug.plugins import LIFECYCLE
from mtplug.registry import KINDS, singular
from mtplug.scaffold import TEMPLATES, USAGE

PAGE = Path(__file__).with_name("plugins.md")
BEGIN, END = "<!-- begin: made by docs/build_kinds.py -->", "<!-- end -->"
NAME = "myidea"


def section(kind: str) -> list[str]:
    contract, one = CONTRACTS[kind], singular(kind)
    usage = USAGE[one].replace("NAME", NAME)
    call, comma, where = contract.factory.partition(", where")
    return [
        f"### {kind}",
        "",
        inspect.getdoc(getattr(hookspecs, f"register_{kind}")) or "",
        "",
        f"The factory is called as `{call}`{comma}{where} and returns {contract.returns}. "
        f"More stands in `{contract.where}`.",
        *(["", f"    {usage}"] if usage else []),
        "",
        f"`mtplug.testing.check_{one}` checks what it promises:",
        "",
        *(f"- **{key}**: {text}" for key, text in contract.promises.items()),
        "",
        *example(one),
    ]


def example(one: str) -> list[str]:
    text = (TEMPLATES / f"{one}.py").read_text(encoding="utf-8").strip().replace("NAME", NAME)
    return [f"<!-- executed: {one} -->", "```python", text, "```", ""]


def text() -> str:
    lines = ["| kind | group in a configuration | template |", "|---|---|---|"]
    for kind in KINDS:
        group = CONTRACTS[kind].group
        shown = group if group.startswith("(") else f"`{group}`"
        lines.append(f"| [{kind}](#{kind}) | {shown} | `--with {singular(kind)}` |")
    lines.append("| [the life of a run](#the-life-of-a-run) | | `--with hooks` |")
    lines.append("")
    for kind in KINDS:
        lines += section(kind)
    lines += ["### The life of a run", "", "| hook | when |", "|---|---|"]
    for name in LIFECYCLE:
        hook = getattr(hookspecs, name)
        lines.append(f"| `{name}{inspect.signature(hook)}` | {inspect.getdoc(hook)} |")
    return "\n".join([*lines, "", *example("hooks")]).rstrip() + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    made = f"{before}{BEGIN}\n\n{text()}\n{END}{rest.split(END)[1]}"
    if "--check" not in sys.argv:
        PAGE.write_text(made, encoding="utf-8")
    elif made != page:
        sys.exit("docs/plugins.md is not up to date: python docs/build_kinds.py")
