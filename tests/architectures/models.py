"""Small models and batches for the tests of architectures."""

import torch

from mtplug.config.build import component_from_overrides
from mtplug.data.batching import collate


class Sized:
    """Stands for a tokenizer: only its size matters."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


class Task:
    def __init__(self, size=30):
        self.source_tokenizer = self.target_tokenizer = Sized(size)


def build(name, *settings, seed=3):
    """A model in float64, every parameter moved away from its initial value, without dropout."""
    torch.manual_seed(seed)
    made = component_from_overrides("architectures", name, ["dropout=0", *settings])
    model = made.build(Task()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch():
    pairs = [([3, 4, 5, 6], [7, 8, 9]), ([10, 11], [12, 13, 14, 15, 16]), ([20], [21])]
    return collate(pairs, torch.arange(3).numpy())


def inputs(row=1):
    """A sentence alone."""
    b = batch()
    s, t = int(b.source_lengths[row]), int(b.target_lengths[row])
    one = slice(row, row + 1)
    return b.source_tokens[one, :s], b.source_lengths[one], b.prev_output_tokens[one, :t]
