"""What fine-tuning does to modules that are not plain: adapted right, or refused by name."""

import pytest
import torch

import mtplug
from mtplug import testing
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


TINY = ("dim=16", "decoder_layers=1", "dropout=0")
HEADS = ("heads=2", "ffn_dim=16")
ARCHITECTURES = {
    "lstm": ("encoder_layers=1", *TINY),
    "convolutional": ("encoder_layers=1", *TINY),
    "merged_transformer": ("encoder_layers=1", *TINY, *HEADS),
    "shared_transformer": ("encoder_layers=2", "decoder_layers=2", *TINY[::2], *HEADS),
    "transformer_lm": ("layers=1", *TINY[::2], *HEADS),
    "decoder_only": ("layers=2", *TINY[::2], *HEADS),
}
METHODS = {
    "lora": ("rank=2",),
    "lora_xs": ("share=0.2",),
    "adapter": ("bottleneck=4",),
    "prefix_tuning": (),
    "prompt_tuning": (),
    "ia3": (),
    "bitfit": (),
    "select": ("targets=[embedding]",),
}
REFUSED = {
    ("lstm", "prefix_tuning"): "and this LSTM has none",
    ("lstm", "adapter"): "no ffn.out among its roles",
    ("convolutional", "adapter"): "no ffn.out among its roles",
    ("lstm", "ia3"): "no module is called 'v'",
    ("convolutional", "lora"): r"no linear maps .*: \d+ are under weight normalisation",
    ("convolutional", "lora_xs"): "are under weight normalisation",
    ("convolutional", "prefix_tuning"): "and this Convolutional has none",
    ("convolutional", "ia3"): "no module is called 'k'",
    ("merged_transformer", "prefix_tuning"): "takes no prefix",
    ("transformer_lm", "prompt_tuning"): "no encoder.embedding among its roles",
}
"""What a method's own targets have no place for, told so; others can be named."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_method_keeps_its_contract_on_every_architecture(architecture, method):
    def check():
        testing.check_peft_method(
            method,
            *METHODS[method],
            architecture=(architecture, *ARCHITECTURES[architecture]),
            starts_as_model=method not in ("prefix_tuning", "prompt_tuning"),
        )

    if said := REFUSED.get((architecture, method)):
        with pytest.raises(mtplug.UserError, match=said):
            check()
    else:
        check()
