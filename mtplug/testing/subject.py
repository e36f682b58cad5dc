"""The component under a check, and the error that says which promise it breaks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mtplug.config.build import component_from_overrides, component_from_plain, to_plain
from mtplug.contracts import CONTRACTS
from mtplug.errors import UserError
from mtplug.registry import Selected, singular


class ContractBroken(AssertionError):
    """A component does not keep a promise of its kind."""


class Subject:
    """A component by name, with `key=value` settings.

    Args:
        kind: such as architectures.
        name: what it is registered under.
        settings: as on a command line, without the group: `dim=16`.

    Raises:
        UserError: there is no such component, or a setting is wrong.
        ContractBroken: its settings don't survive being written and read.
    """

    def __init__(self, kind: str, name: str, settings: tuple[str, ...]):
        self.kind, self.name = kind, name
        self.selected: Selected = component_from_overrides(kind, name, list(settings))
        with self.promise("config"):
            plain = to_plain(self.selected)
            again = component_from_plain(kind, plain)
            same(to_plain(again), plain, "the settings read again")
            same(again.config, self.selected.config, "the dataclass read again")

    def build(self, *args: Any, kind: type = object) -> Any:
        """The component, made as a run makes it.

        Args:
            args: what the factory is called with besides the settings.
            kind: the class that it has to be of.

        Raises:
            ContractBroken: it isn't, or the factory raised anything but UserError.
            UserError: the factory refuses the settings.
        """
        with self.promise("factory"):
            # Not `selected.build`, whose UserError about wrong arguments is no refusal of settings.
            made = self.selected.component.factory(self.selected.config, *args)
            require(isinstance(made, kind), f"it returned a {type(made).__name__}")
        return made

    @contextlib.contextmanager
    def promise(self, key: str) -> Iterator[None]:
        """Whatever fails inside breaks the promise `key`."""
        contract = CONTRACTS[self.kind]
        called = f"it is called as {contract.factory} and returns {contract.returns}"
        sentence = {"factory": called, **contract.promises}[key]
        try:
            yield
        except ContractBroken:
            raise
        except Exception as error:
            if key == "factory" and isinstance(error, UserError):
                raise  # settings, or a model, that it refuses in words for their author
            detail = str(error) or "no reason given"
            if not isinstance(error, AssertionError):
                detail = f"{type(error).__name__}: {detail}"
            raise ContractBroken(
                f"{singular(self.kind)} '{self.name}' breaks '{key}': {sentence}.\n"
                f"  {detail}\n"
                f"  The contract: mtplug-plugins docs {singular(self.kind)}, "
                f"docs/plugins.md#{self.kind}"
            ) from error


def same(found: Any, expected: Any, what: str) -> None:
    """Equality, with both sides in the message."""
    if found != expected:
        raise AssertionError(f"{what}: {_short(found)} instead of {_short(expected)}")


def require(condition: bool, detail: str) -> None:
    if not condition:
        raise AssertionError(detail)


def close(found: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Equality within `tolerance`, relative where numbers are above 1."""
    require(
        found.shape == expected.shape,
        f"{what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}",
    )
    found, expected = found.detach(), expected.detach()
    error = (found - expected).abs() / expected.abs().clamp(min=1)
    worst = float(error.max()) if error.numel() else 0.0
    require(worst <= tolerance, f"{what} differ by {worst:.2g}; {tolerance:g} is allowed")


def equal(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Equality bit for bit."""
    require(torch.equal(found, expected), f"{what} are not the same")


def reached(model: nn.Module, loss: Callable[[], torch.Tensor], part: str = "") -> None:
    """Train two steps: every trainable parameter has a finite gradient, and not both times one of zeros.

    Args:
        model: is changed.
        loss: of the model as it is.
        part: what the names of those parameters that count have in them.
    """
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    checked = {k: p for k, p in trained.items() if part in k}
    alive = set()
    for _ in range(2):  # behind what starts as zero, gradients come after a step only
        model.zero_grad()
        loss().backward()
        for name, parameter in checked.items():
            gradient = parameter.grad
            if gradient is None:
                raise AssertionError(f"{name} has no gradient")
            require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
            if bool(gradient.any()):
                alive.add(name)
        torch.optim.SGD(trained.values(), lr=0.1).step()
    for name in checked:
        require(name in alive, f"the gradient of {name} is zero throughout")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:200] + " …"
