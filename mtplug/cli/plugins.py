"""mtplug-plugins: what there is, what it takes, what is wrong with it, and a package to start from."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import shlex
import sys
from pathlib import Path

from mtplug.cli import common
from mtplug.errors import UserError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    made = common.Parser(
        prog="mtplug-plugins", description="List, show, examine and begin plugins."
    )
    commands = made.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="every plugin, its state and what it registers")
    listing.add_argument("--json", action="store_true")

    showing = commands.add_parser("show", help="one component: what it is and its settings")
    showing.add_argument("kind", help="such as architecture, or peft")
    showing.add_argument("name", nargs="?", help="without it: all names of that kind")

    doctor = commands.add_parser("doctor", help="what is wrong with plugins, and what each costs")
    doctor.add_argument("--json", action="store_true")

    documented = commands.add_parser("docs", help="the contract of a kind, with an example")
    documented.add_argument("kind", help="such as criterion; or hooks, for the life of a run")

    new = commands.add_parser("new", help="write an installable, tested package")
    new.add_argument("name", help="such as myidea; the distribution is mtplug-myidea")
    new.add_argument(
        "--with",
        dest="kinds",
        default="architecture",
        metavar="KIND,KIND",
        help="what it adds: kinds such as criterion, and hooks for the life of a run",
    )
    new.add_argument("--folder", type=Path, default=Path(), help="where to write it")
    for command in (listing, showing, doctor, documented, new):
        common.add_common(command)
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    if args.command == "list":
        return list_plugins(args.json)
    if args.command == "show":
        return show(args.kind, args.name)
    if args.command == "doctor":
        return examine(args.json)
    if args.command == "docs":
        from mtplug.contracts import contract_text

        print(contract_text(args.kind))
        return 0
    from mtplug.scaffold import write_package

    kinds = [kind.strip() for kind in args.kinds.split(",") if kind.strip()]
    folder = write_package(args.name, kinds, args.folder)
    print(f"{folder}: pip install -e {folder} && pytest {folder}")
    return 0


def list_plugins(as_json: bool) -> int:
    from mtplug.plugins import host

    plugins = sorted(host().inspect(), key=lambda p: (p.distribution != "mtplug", p.id))
    if as_json:
        wanted = ("name", "distribution", "version", "state", "registers", "hooks", "kinds",
                  "error", "conflicts", "value", "seconds")  # fmt: skip
        print(json.dumps([{k: getattr(p, k) for k in wanted} for p in plugins], indent=1))
        return 0
    rows = []
    for plugin in plugins:
        adds = [f"{kind}: {', '.join(names)}" for kind, names in plugin.registers.items()]
        adds += [f"hooks: {', '.join(plugin.hooks)}"] if plugin.hooks else []
        adds += [f"kinds: {', '.join(plugin.kinds)}"] if plugin.kinds else []
        state = "ok" if plugin.state == "found" else plugin.state
        origin = f"{plugin.distribution} {plugin.version}"
        rows.append((plugin.name, origin, state, plugin.error or "; ".join(adds)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]
        )
    for plugin in plugins:
        for conflict in plugin.conflicts:
            print(
                f"conflict: {plugin}: {conflict}; block one with --block {shlex.quote(plugin.id)}"
            )
    return 0


def examine(as_json: bool) -> int:
    """Exit status 1 if anything is wrong."""
    from mtplug.doctor import examine, versions

    findings = examine()
    status = 1 if any(f.trouble for f in findings) else 0
    if as_json:
        wanted = ("compatible", "seconds", "when", "trouble", "notes")
        about = ("name", "distribution", "version")
        rows = [
            {**{k: getattr(f.plugin, k) for k in about}, **{k: getattr(f, k) for k in wanted}}
            for f in findings
        ]
        print(json.dumps({"versions": versions(), "plugins": rows}, indent=1))
        return status
    print(versions())
    print(f"{'':7} {'to load':>8}  {'':12} {'mtplug':10} plugin")
    for f in findings:
        cost = "" if f.seconds is None else f"{1000 * f.seconds:.0f} ms"
        mark = "TROUBLE" if f.trouble else "ok"
        print(f"{mark:7} {cost:>8}  {f.when:12} {f.compatible:10} {f.plugin}")
        for text in f.trouble:
            print(f"{'':18} {text}")
        for text in f.notes:
            print(f"{'':18} note: {text}")
    troubled = sum(bool(f.trouble) for f in findings)
    print(f"{troubled} of {len(findings)} plugins in trouble" if troubled else "no trouble")
    return status


def show(kind: str, name: str | None) -> int:
    from mtplug.plugins import host
    from mtplug.registry import field_help, field_types, plural, singular, type_name

    host().inspect()
    given, kind = kind, kind if kind in host().kinds() else plural(kind)
    if kind not in host().kinds():
        known = map(singular, host().kinds())
        raise UserError(f"unknown kind '{given}'{did_you_mean(given, known)}")
    if name is None:
        print("\n".join(host().names(kind)))
        common.tell_failed()
        return 0
    component = host().component(kind, name)
    origin = host().provider(component)
    print(f"{singular(kind)} {name}, of plugin {origin['name']} "
          f"({origin['distribution']} {origin['version']})")  # fmt: skip
    config = component.config
    for documented in (component.factory, config):
        text = inspect.cleandoc(documented.__doc__ or "")  # not that of a base, such as nn.Module
        if text and not text.startswith(f"{config.__name__}("):
            print(f"\n{text}")
    fields = dataclasses.fields(config)
    print("\nsettings:" if fields else "\nno settings")
    help_text, hints = field_help(config), field_types(config)
    for f in fields:
        inner = f.metadata.get("component") or f.metadata.get("components")
        options = f.metadata.get("options")
        hint = hints[f.name]
        shown = singular(inner) if inner else type_name(hint)
        if options:
            shown = " | ".join(dict.fromkeys(options))
        default = f.metadata.get("default") if inner else _default(f)
        print(f"  {f.name}: {shown} = {default}")
        if f.name in help_text:
            print(f"      {' '.join(help_text[f.name].split())}")
    return 0


def _default(f) -> object:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else "(required)"


if __name__ == "__main__":
    sys.exit(main())
