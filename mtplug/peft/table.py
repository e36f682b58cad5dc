"""What of a model is trained, as a table to read."""

from __future__ import annotations

from torch import nn

from mtplug.peft.base import attached, changes
from mtplug.peft.targets import collapsed, roles_of


def trained_table(model: nn.Module) -> list[str]:
    """Lines: modules whose parameters, or what is attached to them, are trained, and the share of all.

    Modules that differ in a number only stand in one line. Works for any model with frozen parameters.
    """
    roles = roles_of(model)
    rows: dict[tuple[str, str, str], list[int]] = {}
    counted: set[int] = set()
    for path, module in model.named_modules():
        if attached(path):
            continue
        own: list[nn.Parameter] = [
            p for p in module.parameters(recurse=False) if id(p) not in counted
        ]
        for name, child in module.named_children():
            if attached(name):
                own += [p for p in child.parameters() if id(p) not in counted]
        trained = sum(p.numel() for p in own if p.requires_grad)
        if trained:
            counted |= {id(p) for p in own}
            key = (collapsed(path) or "(model)", roles.get(path, ""), type(module).__name__)
            row = rows.setdefault(key, [0, 0, 0])
            for i, number in enumerate((1, trained, sum(p.numel() for p in own))):
                row[i] += number
    cells: list[tuple[str, ...]] = [("module", "role", "class", "count", "trained", "of")]
    cells += [(*key, *(f"{n:,}" for n in row)) for key, row in rows.items()]
    whole = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    wide = [max(len(row[i]) for row in cells) for i in range(6)]
    lines = [
        "  ".join(
            c.ljust(w) if i < 3 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in cells
    ]
    share = f"{trained / whole:.2%}" if whole else "none"
    lines.append(
        f"trained: {trained:,} of {whole:,} parameters ({share}), in {len(rows)} kinds of modules"
    )
    shared = _shared(model)
    return ["peft:"] + [f"  {line.rstrip()}" for line in lines] + [f"  {line}" for line in shared]


def _shared(model: nn.Module) -> list[str]:
    """Which modules have one change together."""
    holders: dict[int, list[str]] = {}
    for path, _, own in changes(model):
        for change in own:
            holders.setdefault(id(change), []).append(path)
    return [
        f"tied, adapted as one: {' = '.join(paths)}" for paths in holders.values() if len(paths) > 1
    ]
