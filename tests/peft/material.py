"""Models for tests of PEFT methods."""

import torch

from mtplug.config.build import component_from_overrides
from mtplug.testing.material import TINY_TRANSFORMER, WordsTask, random_batch

BATCH = random_batch()


def transformer(*settings, seed=1):
    """A tiny Transformer whose biases are no longer zero, so that it matters what is done to them."""
    torch.manual_seed(seed)
    model = component_from_overrides(
        "architectures", "transformer", [*TINY_TRANSFORMER, "dropout=0", *settings]
    ).build(WordsTask())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def method(name, *settings):
    return component_from_overrides("peft_methods", name, list(settings)).build()


def adapted(name, *settings, base=()):
    """A tiny Transformer with a method, whose new parameters are no longer what they started as."""
    model = method(name, *settings).apply(transformer(*base))
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def logits(model):
    b = BATCH
    return model.project(model(b.source_tokens, b.source_lengths, b.prev_output_tokens))
