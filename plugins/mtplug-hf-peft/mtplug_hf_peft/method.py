"""A PEFT method that lets Hugging Face `peft` change the modules."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import peft
import yaml
from torch import nn

import mtplug
from mtplug.errors import UserError, did_you_mean
from mtplug.peft import matched
from mtplug.peft.targets import named_modules, roles_of, tied

MTPLUG_API = {"peft_methods": 1}


@dataclass
class HFPeftConfig:
    """A method of Hugging Face `peft` on linear maps."""

    type: str = "LORA"
    """what peft calls the method, such as LOHA, LOKR, OFT, HRA or FOURIERFT"""
    targets: tuple[str, ...] = ()
    """roles, paths or patterns of linear maps; none: all but the output's"""
    options: dict[str, Any] = field(default_factory=dict)
    """further settings of peft's configuration class, such as {r: 4}"""


class HFPeft:
    """Replaces linear maps by peft's layers, whose adapter is called `peft`, as mtplug's own changes are.

    Attributes:
        peft_type: for `adapter_config.json`.
    """

    lr = 1e-3

    def __init__(self, config: HFPeftConfig):
        self.config, self.peft_type = config, config.type
        known = sorted(str(kind.value) for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
        if config.type not in known:
            raise UserError(
                f"peft.type: peft has no {config.type}{did_you_mean(config.type, known)}"
            )

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze the model and put peft's layers into it.

        Raises:
            UserError: targets mean nothing or a tied weight, or peft refuses.
        """
        chosen = self._chosen(model)
        model.requires_grad_(False)
        options = {
            k: yaml.safe_load(v) if isinstance(v, str) else v
            for k, v in self.config.options.items()
        }
        try:
            self.made = peft.get_peft_config(
                {"peft_type": self.config.type, "target_modules": sorted(chosen), **options}
            )
            peft.inject_adapter_in_model(self.made, model, adapter_name="peft")
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            raise UserError(f"peft.type={self.config.type}: peft refuses: {error}") from None
        return model

    def _chosen(self, model: nn.Module) -> dict[str, nn.Module]:
        output, roles = getattr(model, "output_weight", None), roles_of(model)
        if self.config.targets:
            chosen = matched(model, self.config.targets, (nn.Linear,), "peft.targets")
        else:
            chosen = {
                path: m
                for path, m in named_modules(model).items()
                if isinstance(m, nn.Linear)
                and m.weight is not output
                and roles.get(path) != "output"
            }
        shared = {p for group in tied(model, (nn.Linear, nn.Embedding)).values() for p in group}
        for path, module in chosen.items():
            if path in shared or module.weight is output:
                raise UserError(
                    f"peft.targets: {path} is tied, or fused with the loss; hf_peft cannot adapt it, peft.name=lora can"
                )
        return chosen

    def describe(self) -> dict[str, Any]:
        """What peft would write."""
        plain = json.dumps(
            self.made.to_dict(), default=lambda v: sorted(v) if isinstance(v, set) else str(v)
        )
        return {k: v for k, v in json.loads(plain).items() if k != "base_model_name_or_path"}


@mtplug.hookimpl
def register_peft_methods(register):
    register("hf_peft", HFPeft, HFPeftConfig)
