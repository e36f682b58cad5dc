"""For authors of plugins: a tiny corpus, a tiny trained run, and checks of the contract of each kind.

Fixtures of pytest: `mtplug_corpus`, `mtplug_run`. A check takes a component's name and settings, and raises
`ContractBroken`, which says what promise is broken and where it is documented.
"""

import importlib

_HOMES = {
    "attention": ("check_attention_backend", "check_position_encoding"),
    "models": ("check_architecture", "check_peft_method"),
    "learning": ("check_criterion", "check_lr_scheduler", "check_optimizer"),
    "text": ("check_corpus", "check_task", "check_tokenizer"),
    "results": ("check_benchmark", "check_exporter", "check_hooks", "check_metric",
                "check_search_strategy", "check_tracker"),
    "subject": ("ContractBroken",),
    "tiny": ("finetune", "pairs", "train", "write_corpus"),
}  # fmt: skip
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    # pytest imports this package in every session, so it must not import torch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"mtplug.testing.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'mtplug.testing' has no attribute {name!r}")
