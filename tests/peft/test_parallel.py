"""Adapters trained by several processes against one with as many times the accumulation."""

import pytest
import torch

from mtplug.peft import files
from tests import tiny
from tests.training.test_parallel import OPTIONS, together

METHODS = {
    "lora": "{name: lora, rank: 2, targets: [embedding, self, ffn.in], lora_plus: 8}",
    "lora_xs": "{name: lora_xs, share: 0.2}",
    "prefix_tuning": "prefix_tuning",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("parallel-peft")
    tiny.write_corpus(made)
    tiny.train(made, "base", *OPTIONS)
    return made


@pytest.mark.parametrize(
    ("parallel", "method"),
    [
        ("ddp", "lora"),
        ("fsdp", "lora"),
        ("ddp", "lora_xs"),
        ("fsdp", "lora_xs"),
        ("fsdp", "prefix_tuning"),
    ],
)
def test_adapters_of_many_processes_equal_accumulation(folder, parallel, method):
    """Also where some parameters have a rate of their own, which shares of them had not."""
    options = (*OPTIONS, f"peft={METHODS[method]}", f"training.finetune_from={folder / 'base'}",
               "optimizer.lr=1e-2", "training.max_updates=4")  # fmt: skip
    name = f"{parallel}-{method}"
    tiny.train(folder, f"one-{name}", *options, "training.accumulate=2")
    together(folder, name, 2, *options, f"training.parallel={parallel}")
    one, many = (files.read(folder / n / "checkpoints" / "last") for n in (f"one-{name}", name))
    assert one.keys() == many.keys()
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-3, atol=2e-5)
