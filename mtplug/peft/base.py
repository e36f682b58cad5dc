"""What built-in methods have in common: changes attached to modules, everything else frozen."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtplug.architectures.base import output_of
from mtplug.errors import UserError

ATTACHED = re.compile(r"(^|\.)peft\d*(\.|$)")
"""What stands in a name from where something was attached."""


def attached(path: str) -> bool:
    """Whether a name lies inside of what a method attached."""
    return bool(ATTACHED.search(path))


class Change(nn.Module):
    """What a method attaches to a module: new parameters, and what they do to its input or output.

    It becomes a child `peft` of the module (a second one `peft2`), so that it moves, is saved and is
    copied with it, and names of the base stay as they are.
    """

    def before(self, module: nn.Module, args: tuple) -> Any:
        """As a forward pre-hook of torch: new arguments, or None."""
        return None

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """As a forward hook of torch: a new output, or None."""
        return None

    def merge(self, module: nn.Module) -> None:
        """Let the module's own weights do the same; called once where several modules share them.

        Raises:
            UserError: no weights can.
        """
        raise UserError(
            f"{type(self).__name__} cannot be merged: no weights of a {type(module).__name__} can express it"
        )

    def attach(self, module: nn.Module, owner: bool = True) -> Change:
        """Take part in `module`'s passes.

        Args:
            owner: false for the further modules of a tied weight, which the parameters don't belong to.
        """
        if owner:
            number = sum(name.startswith("peft") for name, _ in module.named_children()) + 1
            module.add_module("peft" if number == 1 else f"peft{number}", self)
        # Bound methods, so that a deep copy's hooks are those of the copy.
        if type(self).before is not Change.before:
            module.register_forward_pre_hook(self.before)
        if type(self).after is not Change.after:
            module.register_forward_hook(self.after)
        return self

    def detach_from(self, module: nn.Module) -> None:
        """Undo `attach`."""
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
        for name in [n for n, child in module.named_children() if child is self]:
            delattr(module, name)


class PeftMethod(ABC):
    """Base of built-in methods, open to others.

    Attributes:
        config: its settings.
        peft_type: what Hugging Face `peft` calls it; empty if it has no such method.
        neutral: what new parameters are where they change nothing, for weighted sums.
        lr: peak learning rate that is taken where the run's configuration gives none.
        twins: paths of modules that share a table with another, by path.
    """

    peft_type: ClassVar[str] = ""
    lr: ClassVar[float] = 1e-3
    neutral: ClassVar[float] = 0.0

    def __init__(self, config: Any):
        self.config = config
        self.twins: dict[str, str] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze the model, and attach what is trained instead.

        Raises:
            UserError: targets mean nothing, or nothing that the method is for.
        """
        model.requires_grad_(False)
        model = self.adapt(model) or model
        output, _ = output_of(model)
        changed = [m for _, m, _ in changes(model) if not isinstance(m, nn.Embedding)]
        if output is not None and any(p is output for m in changed for p in m.parameters()):
            become(model, UnfusedOutput)
        return model

    @abstractmethod
    def adapt(self, model: nn.Module) -> nn.Module | None:
        """Attach to a frozen model, or choose what of it is trained."""

    def describe(self) -> dict[str, Any]:
        """After `apply`: what stands in `adapter_config.json`, in the words of Hugging Face `peft`."""
        return {}

    @classmethod
    def sum(
        cls, parts: list[Any], base: dict[str, Tensor]
    ) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
        """A weighted sum of adapters (`mtplug.peft.combine.Part`): of how far their tensors are from those
        that change nothing. Where a method is not linear in them, its outputs are not summed by that.

        Args:
            parts: weights, settings and tensors with bare names.
            base: weights of the base by name.

        Returns:
            Settings, tensors, and what in the description is other than in the first one's.

        Raises:
            UserError: settings or tensors differ.
        """
        first = parts[0]
        shapes = [{n: t.shape for n, t in part.tensors.items()} for part in parts]
        if any(part.settings != first.settings for part in parts) or any(
            s != shapes[0] for s in shapes
        ):
            raise UserError(
                "peft: adapters with different settings or tensors have no sum; stack them instead"
            )
        found = {}
        for name, tensor in first.tensors.items():
            start = base[name] if name in base else torch.full_like(tensor, cls.neutral)
            found[name] = start + sum(p.weight * (p.tensors[name] - start) for p in parts)
        return first.settings, found, {}

    @classmethod
    def settings(cls, described: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `describe`, for a file that Hugging Face `peft` wrote: settings of our method.

        Raises:
            UserError: it asks for what this method does not do.
        """
        raise UserError(f"an adapter of type {described.get('peft_type')} cannot be read")


def changes(model: nn.Module) -> list[tuple[str, nn.Module, list[Change]]]:
    """(path, module, its changes in the order they act in) of all modules that something is attached to."""
    found = []
    for path, module in model.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        own = [*module.children(), *(getattr(h, "__self__", None) for h in hooks)]
        distinct = list({id(c): c for c in own if isinstance(c, Change)}.values())
        if distinct:
            found.append((path, module, distinct))
    return found


def become(model: nn.Module, mixin: type) -> None:
    """Let a model's own class come after `mixin` in its method resolution order, and keep its name."""
    if not isinstance(model, mixin):
        model.__class__ = type(type(model).__name__, (mixin, type(model)), {})


class UnfusedOutput:
    """For a model whose output projection is more than its own map."""

    output_weight = None
    output_map = None
