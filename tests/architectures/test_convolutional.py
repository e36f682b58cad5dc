"""The convolutional model against loops over positions, channels and layers in float64."""

import math

import pytest
import torch

from mtplug import testing
from mtplug.config.build import component_from_overrides
from mtplug.errors import UserError
from tests.architectures import models
from tests.architectures.models import batch, build, inputs

SIZES = ("dim=6", "channels=8", "encoder_layers=2", "decoder_layers=3")
HALF = math.sqrt(0.5)


def convolution(conv, rows):
    """Gated convolution of a list of inputs (C,) that already has what lies around."""
    kernel, size = conv.kernel_size[0], conv.out_channels // 2
    # weight normalisation: v · g / |v|, for each output channel (Salimans and Kingma 2016)
    g, v = (getattr(conv.parametrizations.weight, f"original{n}") for n in (0, 1))
    weight = torch.stack([v[o] * g[o, 0, 0] / v[o].square().sum().sqrt() for o in range(len(v))])
    found = []
    for i in range(len(rows) - kernel + 1):
        a = conv.bias.clone()
        for k in range(kernel):
            a = a + weight[:, :, k] @ rows[i + k]
        found.append(a[:size] * torch.sigmoid(a[size:]))
    return found


def literally(model, source, prev):
    """Features (T, E) of one sentence without padding."""
    width = model.config.kernel
    embedded = model.encoder_embedding(source) + model.encoder_position.weight[: len(source)]
    x = [model.encoder_in(e) for e in embedded]
    zero = torch.zeros_like(x[0])
    for layer in model.encoder:
        around = [zero] * (width // 2)
        found = convolution(layer.conv, [*around, *x, *around])
        x = [(h + r) * HALF for h, r in zip(found, x, strict=True)]
    z = [model.encoder_out(h) for h in x]
    values = [(k + e) * HALF for k, e in zip(z, embedded, strict=True)]
    embedded = model.decoder_embedding(prev) + model.decoder_position.weight[: len(prev)]
    x = [model.decoder_in(e) for e in embedded]
    for layer in model.decoder:
        found = convolution(layer.conv.conv, [*[zero] * (width - 1), *x])
        changed = []
        for h, g in zip(found, embedded, strict=True):
            d = (layer.query(h) + g) * HALF
            weights = torch.stack([d @ k for k in z]).exp()
            weights = weights / weights.sum()
            context = sum(w * v for w, v in zip(weights, values, strict=True)) * len(z) ** 0.5
            changed.append((h + layer.out(context)) * HALF)
        x = [(h + r) * HALF for h, r in zip(changed, x, strict=True)]
    return torch.stack([model.decoder_out(h) for h in x])


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_it_is_what_the_equations_say(kernel):
    model = build("convolutional", *SIZES, f"kernel={kernel}").eval()
    source, lengths, prev = inputs()
    found = model(source, lengths, prev)[0]
    expected = literally(model, source[0], prev[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_encoders_gradient_is_shared_among_the_attentions():
    model = build("convolutional", *SIZES)
    source, lengths, prev = inputs()
    grads = []
    for training in (True, False):
        model.train(training).zero_grad()
        model(source, lengths, prev).square().sum().backward()
        grads.append(model.encoder_out.bias.grad.clone())
    torch.testing.assert_close(grads[0], grads[1] / 6)  # 2 · 3 decoder layers


@pytest.mark.parametrize("kernel", [1, 5])
def test_decoding_step_by_step_equals_all_at_once(kernel):
    model = build("convolutional", *SIZES, f"kernel={kernel}").eval()
    source, lengths, _ = inputs()
    tokens = torch.randint(3, 30, (1, 20), generator=torch.Generator().manual_seed(1))
    whole = model.project(model(source, lengths, tokens))
    state = model.start(source, lengths)
    for t in range(20):
        logits = model.step(state, tokens[:, t : t + 1])
        torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=1e-9, atol=1e-9)


def test_initial_weights_keep_the_variance():
    """Section 3.6: √(1/n) of linear maps with n inputs, √(4p/n) of gated convolutions that see n numbers, each kept
    with probability p; √0.01 of embeddings."""
    torch.manual_seed(0)
    task, dropout = models.Task(500), 0.4
    settings = [
        "dim=48",
        "channels=64",
        "encoder_layers=1",
        "decoder_layers=1",
        f"dropout={dropout}",
    ]
    made = component_from_overrides("architectures", "convolutional", settings)
    model = made.build(task)
    for linear in (
        model.encoder_in,
        model.decoder_out,
        model.decoder[0].query,
        model.decoder[0].out,
    ):
        inputs = linear.weight.shape[1]
        assert linear.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.05)
        assert not linear.bias.any()
    for gated in (model.encoder[0], model.decoder[0].conv):
        expected = math.sqrt(4 * (1 - dropout) / (3 * 64))
        assert gated.conv.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not gated.conv.bias.any()
    assert model.decoder_embedding.weight[1:].std().item() == pytest.approx(0.1, rel=0.05)
    assert not model.decoder_embedding.weight[0].any()  # of padding


def test_dropout_is_on_embeddings_on_each_layers_input_and_on_features():
    """A probability of 1 leaves nothing of them: what is left are biases."""
    model = build("convolutional", *SIZES, "dropout=1", "tie_embeddings=none")
    b = batch()
    memory = model.encode(b.source_tokens, b.source_lengths)
    x = model.encoder_in.bias
    for layer in model.encoder:
        x = (torch.nn.functional.glu(layer.conv.bias, 0) + x) * HALF
    expected = model.encoder_out(x).expand_as(memory.keys)
    torch.testing.assert_close(memory.keys, expected)
    past = model._nothing(memory)
    features, entered, _ = model.decode(b.prev_output_tokens, 0, past, memory)
    assert not features.any() and not any(x.any() for x in entered)


def test_cross_attention_sums_to_one_over_true_tokens():
    model, b = build("convolutional", *SIZES).eval(), batch()
    weights = model.cross_attention(b.source_tokens, b.source_lengths, b.prev_output_tokens)
    torch.testing.assert_close(
        weights.sum(-1), torch.ones(3, weights.shape[1], dtype=torch.float64)
    )
    assert not weights[2, :, int(b.source_lengths[2]) :].any()


def test_other_forms_keep_the_contract():
    settings = ("kernel=5", "tie_embeddings=none", "position.name=sinusoidal")
    testing.check_architecture("convolutional", *SIZES, *settings, compile=False)


def test_positions_that_change_scores_are_refused():
    with pytest.raises(UserError, match=r"alibi adds nothing to embeddings.*learned or sinusoidal"):
        build("convolutional", *SIZES, "position.name=alibi")
