"""The LSTM against its equations, written out token by token in float64."""

import pytest
import torch

from mtplug import testing
from tests.architectures.models import build, inputs

SIZES = ("dim=8", "encoder_layers=2", "decoder_layers=2")
FORMS = [
    (score, feeding) for score in ("general", "dot", "additive") for feeding in ("true", "false")
]


def cell(x, h, c, rnn, suffix):
    """One step of an LSTM (Hochreiter and Schmidhuber 1997, with forget gates of Gers et al. 2000)."""
    w = {n: getattr(rnn, f"{n}_{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    gates = w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]
    i, f, g, o = gates.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def literally(model, source, prev):
    """Features (T, C) and attention (T, S) of one sentence without padding."""
    config, dim = model.config, model.config.dim
    outputs = list(model.encoder_embedding(source) * dim**0.5)
    for layer in range(config.encoder_layers):
        ways = []
        for way, order in (("", outputs), ("_reverse", outputs[::-1])):
            h = c = torch.zeros(dim // 2, dtype=torch.float64)
            found = []
            for x in order:
                h, c = cell(x, h, c, model.encoder, f"l{layer}{way}")
                found.append(h)
            ways.append(found if not way else found[::-1])
        outputs = [torch.cat(pair) for pair in zip(*ways, strict=True)]
    last = torch.cat([outputs[-1][: dim // 2], outputs[0][dim // 2 :]])
    states = torch.tanh(model.bridge.weight @ last + model.bridge.bias).split(dim)
    hs, cs = list(states[: config.decoder_layers]), list(states[config.decoder_layers :])
    fed = torch.zeros(dim, dtype=torch.float64)
    features, attention = [], []
    for x in model.decoder_embedding(prev) * dim**0.5:
        if config.input_feeding:
            x = torch.cat([x, fed])
        for layer in range(config.decoder_layers):
            hs[layer], cs[layer] = cell(x, hs[layer], cs[layer], model.decoder, f"l{layer}")
            x = hs[layer]
        part = model.attention
        if config.attention == "dot":
            scores = [x @ e for e in outputs]
        elif config.attention == "general":
            scores = [x @ part.key.weight @ e for e in outputs]
        else:
            scores = [
                part.vector.weight[0]
                @ torch.tanh(part.query.weight @ x + part.key.weight @ e + part.key.bias)
                for e in outputs
            ]
        weights = torch.stack(scores).exp()
        weights = weights / weights.sum()
        context = sum(w * e for w, e in zip(weights, outputs, strict=True))
        fed = torch.tanh(model.mix.weight @ torch.cat([context, x]))
        features.append(fed)
        attention.append(weights)
    return torch.stack(features), torch.stack(attention)


@pytest.mark.parametrize(("score", "feeding"), FORMS)
def test_it_is_what_the_equations_say(score, feeding):
    model = build("lstm", *SIZES, f"attention={score}", f"input_feeding={feeding}")
    source, lengths, prev = inputs()
    features, attention = literally(model, source[0], prev[0])
    found = model(source, lengths, prev)[0]
    torch.testing.assert_close(found, features, rtol=1e-9, atol=1e-9)
    shown = model.cross_attention(source, lengths, prev)[0]
    torch.testing.assert_close(shown, attention, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("score", "feeding"), FORMS)
def test_every_form_keeps_the_contract(score, feeding):
    settings = (f"attention={score}", f"input_feeding={feeding}", "tie_embeddings=none")
    testing.check_architecture("lstm", *SIZES, *settings, compile=score == "dot")


def test_dropout_is_on_embeddings_between_layers_and_on_features():
    """What attention found is fed whole into the next step."""
    model = build("lstm", *SIZES, "dropout=1", "tie_embeddings=none")
    source, lengths, prev = inputs()
    state = model.start(source, lengths)
    assert not model.extend(state, prev[:, :1]).any() and state.fed.any()
    for table in (model.encoder_embedding, model.decoder_embedding):
        assert not model.embed(table, source).any()
    assert model.encoder.dropout == model.decoder.dropout == 1.0
    assert build("lstm", "dim=8", "encoder_layers=1", "dropout=1").encoder.dropout == 0.0


def test_without_feeding_all_steps_at_once_have_the_gradients_of_one_after_the_other():
    model = build("lstm", *SIZES, "input_feeding=false")
    source, lengths, prev = inputs()
    grads = []
    for pieces in (1, prev.shape[1]):  # all steps at once, and one after the other
        model.zero_grad()
        state = model.encode(source, lengths)
        parts = [model.decode(part, state)[0] for part in prev.chunk(pieces, 1)]
        torch.cat(parts, 1).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*grads)
