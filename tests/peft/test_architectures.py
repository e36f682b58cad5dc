"""What fine-tuning does to modules that are not plain: adapted right, or refused by name."""

import pytest
import torch

import mtplug
from mtplug.config.build import component_from_overrides
from mtplug.testing.material import WordsTask

SMALL = ("dim=16", "encoder_layers=1", "decoder_layers=1")


def model(name, *settings):
    torch.manual_seed(1)
    return component_from_overrides("architectures", name, [*SMALL, *settings]).build(WordsTask())


def apply(method, made, *settings):
    return component_from_overrides("peft_methods", method, list(settings)).build().apply(made)


def test_weights_that_are_computed_from_others_are_refused():
    made = model("convolutional")
    linear = next(
        path for path, module in made.named_modules()
        if isinstance(module, torch.nn.Linear) and torch.nn.utils.parametrize.is_parametrized(module)
    )  # fmt: skip
    with pytest.raises(mtplug.UserError, match="computes its weight"):
        apply("lora", made, f"targets=[{linear}]")


def test_prefixes_are_refused_by_attention_that_sums_over_two_sides():
    with pytest.raises(mtplug.UserError, match="MergedAttention, which takes no prefix"):
        apply("prefix_tuning", model("merged_transformer", "ffn_dim=16", "heads=2"))
