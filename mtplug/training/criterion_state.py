"""What a criterion learns besides the model: parameters of its own, and what it keeps from update to update.

Parameters are those of a criterion that is an `nn.Module`; state is what any criterion with `state_dict` and
`load_state_dict` gives, which checkpoints keep as tensors `criterion.…` and JSON.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.errors import MtplugError, UserError

PREFIX = "criterion."
BETWEEN = "/"
"""stands between the keys of dictionaries that lie in each other; names of parameters have dots"""


def trained_parameters(criterion: Any) -> dict[str, nn.Parameter]:
    """The parameters of a criterion that is a module, by name; none of another."""
    if not isinstance(criterion, nn.Module):
        return {}
    return {name: p for name, p in criterion.named_parameters() if p.requires_grad}


def saved(criterion: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Its state as JSON and as tensors, copied to the CPU; both empty if it has none.

    Raises:
        MtplugError: it holds something that is neither, even in dictionaries inside.
    """
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}

    def take(values: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            name = f"{path}{key}"
            if isinstance(value, dict) and value:
                take(value, f"{name}{BETWEEN}")
            elif isinstance(value, Tensor):
                tensors[PREFIX + name] = value.detach().to("cpu", copy=True)
            else:
                plain[name] = _as_json(value, f"{type(criterion).__name__}.state_dict(): {name}")
            if not isinstance(key, str) or BETWEEN in key:
                raise MtplugError(
                    f"{type(criterion).__name__}.state_dict(): key {key!r} is no text without '{BETWEEN}'"
                )

    if hasattr(criterion, "state_dict"):
        take(criterion.state_dict(), "")
    return plain, tensors


def _as_json(value: Any, what: str) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        raise MtplugError(
            f"{what} is a {type(value).__name__}, which is neither a tensor nor JSON, so no checkpoint can hold it"
        ) from None


def restore(
    criterion: Any, plain: dict[str, Any], tensors: dict[str, Tensor], where: Any = "a checkpoint"
) -> None:
    """Give a criterion what `saved` told, among other tensors.

    Raises:
        UserError: it does not take it.
    """
    values = {**plain, **{n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}}  # fmt: skip
    state: dict[str, Any] = {}
    for name, value in values.items():
        *path, key = name.split(BETWEEN)
        inner = state
        for one in path:
            inner = inner.setdefault(one, {})
        inner[key] = value
    try:
        criterion.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{where}: {type(criterion).__name__} does not take its state: {why}"
        ) from None


def on_device(criterion: Any, device: torch.device) -> Any:
    """The same, and what is a module moved to a device."""
    return criterion.to(device) if isinstance(criterion, nn.Module) else criterion
