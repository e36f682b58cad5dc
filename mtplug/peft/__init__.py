"""Parameter-efficient fine-tuning: the kind `peft_methods`."""

from mtplug.peft.base import Change, PeftMethod
from mtplug.peft.targets import matched, matched_parameters

__all__ = ["Change", "PeftMethod", "matched", "matched_parameters"]
