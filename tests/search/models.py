"""A model small enough to enumerate every translation of."""

import itertools
import random

import torch

from mtplug.architectures import Model
from mtplug.data.tokenizers import EOS


class RandomModel(Model):
    """Logits that depend on the source and on the whole prefix, drawn once for each prefix."""

    def __init__(self, vocabulary: int, seed: int):
        super().__init__()
        self.vocabulary, self.seed = vocabulary, seed
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, source_tokens, source_lengths, prev_output_tokens):
        rows = []
        for source, length, prefix in zip(
            source_tokens.tolist(),
            source_lengths.tolist(),
            prev_output_tokens.tolist(),
            strict=True,
        ):
            rows.append(
                [self.logits(source[:length], prefix[: t + 1]).tolist() for t in range(len(prefix))]
            )
        return torch.tensor(rows)

    def logits(self, source, prefix):
        rng = random.Random(f"{self.seed} {source} {prefix}")
        return torch.tensor([rng.gauss(0, 2) for _ in range(self.vocabulary)])

    def project(self, features):
        return features


def every_sequence(model, source, limit):
    """(tokens, log-probability, length) of all sequences of at most `limit` tokens, `</s>` counted."""
    words = range(2, model.vocabulary)
    for length in range(limit):
        for tokens in itertools.product(words, repeat=length):
            total = 0.0
            for t, token in enumerate([*tokens, EOS]):
                log_probs = model.logits(source, [EOS, *tokens[:t]]).log_softmax(-1)
                if t + 1 == limit:  # at the limit only the end is allowed
                    assert token == EOS
                total += float(log_probs[token])
            yield list(tokens), total, length + 1
