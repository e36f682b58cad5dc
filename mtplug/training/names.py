"""Parameters chosen by patterns of their names."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import Tensor, nn

from mtplug.errors import UserError, did_you_mean


def all_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by every name they have: tied ones come several times."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    kept = set(model.state_dict())
    named.update({n: b for n, b in model.named_buffers(remove_duplicate=False) if n in kept})
    return named


def matching(patterns: str, names: list[str], where: str) -> list[str]:
    """The names that one of `patterns`, separated by blanks, fits; `*` also spans dots.

    Raises:
        UserError: a pattern fits none.
    """
    found: dict[str, None] = {}
    for pattern in patterns.split():
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            # Parts of names are nearer to a pattern such as `encodr.*` than whole names are.
            beginnings = {f"{n.split('.')[0]}.*" for n in names if "." in n}
            hint = did_you_mean(pattern, {*names, *beginnings})
            raise UserError(f"{where}: no parameter of the model is called '{pattern}'{hint}")
        found.update(dict.fromkeys(fitting))
    return list(found)
