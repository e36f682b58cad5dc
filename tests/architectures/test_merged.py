"""Merged attention against its formula, written out position by position."""

import math

import pytest
import torch

from mtplug import testing
from mtplug.config.build import component_from_overrides
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig
from mtplug.data.batching import collate, concatenate
from tests.architectures.models import Task, batch, build, inputs
from tests.nn.test_layers import is_xavier

SIZES = ("dim=16", "ffn_dim=24", "heads=4", "encoder_layers=2", "decoder_layers=2")


def literally(body, x, memory, averages):
    """(T, C) and (S, C): for each position and head softmax(q Kᵀ/√D) V over the prefix and over the source."""
    rows = []
    size = x.shape[1] // body.heads
    for i in range(len(x)):
        heads = []
        for h in range(body.heads):
            part = slice(h * size, (h + 1) * size)

            def look(keys, values, i=i, part=part):
                scores = torch.stack([body.q(x[i])[part] @ k[part] for k in keys]) / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum()
                return sum(w * v[part] for w, v in zip(weights, values, strict=True))

            values = [body.own_v(x[j]) for j in range(i + 1)]
            if averages:
                own = sum(v[part] for v in values) / (i + 1)
            else:
                own = look([body.own_k(x[j]) for j in range(i + 1)], values)
            heads.append(own + look([body.k(m) for m in memory], [body.v(m) for m in memory]))
        rows.append(body.out(torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize("prefix", ["attention", "average"])
def test_it_is_the_sum_over_prefix_and_source(prefix):
    model = build("merged_transformer", *SIZES, f"prefix={prefix}")
    body = model.decoder[0].cross.body
    generator = torch.Generator().manual_seed(1)
    x, memory = (torch.randn(n, 16, dtype=torch.float64, generator=generator) for n in (5, 3))
    expected = literally(body, x, memory, prefix == "average")
    found = body(x[None], memory[None], {}, {})[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prefix", ["attention", "average"])
@pytest.mark.parametrize("position", ["sinusoidal", "t5_bias", "rope"])
def test_decoding_step_by_step_equals_all_at_once(prefix, position):
    model = build(
        "merged_transformer", *SIZES, f"prefix={prefix}", f"position.name={position}"
    ).eval()
    source, lengths, _ = inputs()
    tokens = torch.randint(3, 30, (1, 40), generator=torch.Generator().manual_seed(1))
    whole = model.project(model(source, lengths, tokens))
    state = model.start(source, lengths)
    for t in range(40):
        logits = model.step(state, tokens[:, t : t + 1])
        torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prefix", ["attention", "average"])
def test_a_packed_batch_has_the_loss_and_gradients_of_a_padded_one(prefix):
    model = build("merged_transformer", *SIZES, f"prefix={prefix}")
    criterion = LabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyConfig(0.1), None)
    pairs = [([3, 4, 5, 6], [7, 8, 9]), ([10, 11], [12, 13, 14, 15, 16]), ([20], [21])]
    results = []
    for make in (collate, concatenate):
        model.zero_grad()
        loss = criterion(model, make(pairs, torch.arange(3).numpy()))
        loss.sum.backward()
        results.append(
            (loss.sum.detach(), {n: p.grad.clone() for n, p in model.named_parameters()})
        )
    torch.testing.assert_close(*results)


def test_the_prefix_s_maps_start_as_those_of_the_source_and_weights_of_both_are_dropped():
    """As one fused projection has them: Glorot and Bengio (2010) with a gain of 1/√2."""
    made = component_from_overrides(
        "architectures", "merged_transformer", [*SIZES, "dim=64", "attention_dropout=0.25"]
    )
    model, b, asked = made.build(Task()), batch(), []
    body = model.decoder[0].cross.body
    for linear in (body.q, body.k, body.v, body.own_k, body.own_v):
        assert is_xavier(linear, 1 / math.sqrt(2)) and not linear.bias.any()

    def backend(q, k, v, dropout_p, **where):
        asked.append(dropout_p)
        return q

    for layer in model.decoder:
        layer.cross.body.backend = backend
    for training in (True, False):
        model.train(training)(*b.inputs)
    assert asked == [0.25] * 4 + [0.0] * 4  # over prefix and source, in two layers


def test_one_sublayer_less_for_each_decoder_layer():
    def count(name, *settings):
        return sum(p.numel() for p in build(name, *SIZES, *settings).parameters())

    square, norm = 16 * 16 + 16, 2 * 16
    plain = count("transformer")
    # queries and the output are common: two of eight maps less; of averages a third
    assert count("merged_transformer") == plain - 2 * (2 * square + norm)
    assert count("merged_transformer", "prefix=average") == plain - 2 * (3 * square + norm)


def test_cross_attention_sums_to_one():
    model, b = build("merged_transformer", *SIZES), batch()
    weights = model.cross_attention(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    torch.testing.assert_close(
        weights.sum(-1), torch.ones(3, weights.shape[1], dtype=torch.float64)
    )


def test_averages_keep_the_contract():
    testing.check_architecture("merged_transformer", *SIZES, "prefix=average", "norm=pre")
