"""Every architecture learns the made-up language, in which each word has one translation."""

import math

import pytest

from mtplug import testing
from mtplug.training.trackers import read_events

MODELS = {
    "lstm": "dim: 32, encoder_layers: 1, decoder_layers: 1, dropout: 0",
    "convolutional": "dim: 32, channels: 32, encoder_layers: 2, decoder_layers: 2, dropout: 0",
    "merged_transformer": "dim: 32, ffn_dim: 64, heads: 2, norm: pre, encoder_layers: 2, decoder_layers: 2, dropout: 0",
    "decoder_only": "dim: 32, ffn_dim: 64, heads: 2, layers: 3, dropout: 0",
    "shared_transformer": "dim: 32, ffn_dim: 64, heads: 2, norm: pre, encoder_layers: 2, decoder_layers: 2, dropout: 0",
}
BLIND = (4 * math.log(10) + math.log(5)) / 5
"""Nats a token of the best model that does not look at the source."""


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_to_look_at_the_source(name, tmp_path):
    run = testing.train(
        tmp_path, f"architecture={{name: {name}, {MODELS[name]}}}", "validation.translate=false", "data.test=[]",
        "validation.best_metric=loss", "criterion.smoothing=0", updates=120,
    )  # fmt: skip
    losses = [
        e["scores"]["loss"]
        for e in read_events(run / "metrics.jsonl")
        if e["event"] == "validation"
    ]
    assert losses[-1] < BLIND / 2 and losses[-1] < losses[0]
