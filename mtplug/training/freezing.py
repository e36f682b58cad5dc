"""Parameters frozen for good or by a schedule (`training.freeze`)."""

from __future__ import annotations

from torch import nn

from mtplug.config.schema import FreezeConfig
from mtplug.errors import UserError
from mtplug.training.names import all_names, matching


class Freezing:
    """Which parameters are frozen at which update; those frozen for good no longer require gradients.

    A frozen parameter has no gradient, so that optimizers leave it and its state alone. Which ones are
    frozen is a function of the update, so a resumed run needs no memory of it.

    Args:
        model: whose parameters are told by name; a tied one is frozen under all its names.
        entries: of `training.freeze`.

    Raises:
        UserError: a pattern fits no parameter, or nothing is left to train.
    """

    def __init__(self, model: nn.Module, entries: list[FreezeConfig]):
        named = {n: p for n, p in all_names(model).items() if isinstance(p, nn.Parameter)}
        first = {id(p): n for n, p in reversed(named.items())}
        for_good: set[str] = set()
        scheduled: list[tuple[FreezeConfig, set[str]]] = []
        self.lines: list[str] = []
        for entry in entries:
            matched = matching(entry.parameters, list(named), "training.freeze")
            chosen = {first[id(named[n])] for n in matched}
            if entry.until or entry.since > 1:
                scheduled.append((entry, chosen))
            else:
                for_good |= chosen
            tied = [n for n, p in named.items() if first[id(p)] in chosen and n not in matched]
            self.lines.append(_told(entry, [named[n] for n in chosen], tied))
        for name in for_good:
            named[name].requires_grad_(False)
        trained = {n for n in first.values() if named[n].requires_grad}
        self.scheduled = [(entry, chosen & trained) for entry, chosen in scheduled]
        for update in (0, *(e.since for e, _ in scheduled)):
            if entries and not trained - self.frozen(update):
                raise UserError(
                    f"training.freeze: every parameter is frozen at update {update or 1}, nothing is "
                    "left to train"
                )

    def frozen(self, update: int) -> set[str]:
        """Names of what the schedule freezes at an update, besides what is frozen for good."""
        now = [
            chosen
            for entry, chosen in self.scheduled
            if entry.since <= update and (update <= entry.until or not entry.until)
        ]
        return set().union(*now)


def _told(entry: FreezeConfig, chosen: list[nn.Parameter], tied: list[str]) -> str:
    count = sum(p.numel() for p in chosen)
    when = f"until update {entry.until}" if entry.until else "for good"
    if entry.since > 1:
        when = f"from update {entry.since} " + (when if entry.until else "on")
    also = f"; tied to them, and so frozen too: {', '.join(tied)}" if tied else ""
    return f"freeze: {entry.parameters}: {len(chosen)} tensors, {count:,} parameters, {when}{also}"
