"""Shared layers against a Transformer with copies of them."""

import pytest
import torch

from mtplug import testing
from mtplug.architectures.layers import EncoderLayer
from mtplug.architectures.shared import SharedTransformer, sets_of_layers
from mtplug.errors import UserError
from tests.architectures.models import Task, batch, build

SIZES = ("dim=16", "ffn_dim=24", "heads=4")


@pytest.mark.parametrize(
    ("order", "layers", "sets", "expected"),
    [  # Takase and Kiyono 2023, figure 1, and uneven ones
        ("cycle", 6, 3, [0, 1, 2, 0, 1, 2]),
        ("sequence", 6, 3, [0, 0, 1, 1, 2, 2]),
        ("cycle_rev", 6, 3, [0, 1, 2, 2, 1, 0]),
        ("cycle_rev", 9, 3, [0, 1, 2, 0, 1, 2, 2, 1, 0]),
        ("cycle", 5, 2, [0, 1, 0, 1, 0]),
        ("sequence", 5, 2, [0, 0, 0, 1, 1]),
        ("cycle_rev", 3, 3, [0, 1, 2]),
        ("cycle", 4, 1, [0, 0, 0, 0]),
    ],
)
def test_layers_use_the_sets_of_the_paper(order, layers, sets, expected):
    assert sets_of_layers(order, layers, sets) == expected


def both(*settings):
    layers = ("encoder_layers=4", "decoder_layers=3", "encoder_sets=2", "decoder_sets=1")
    shared = build("shared_transformer", *SIZES, *layers, *settings)
    plain = build("transformer", *SIZES, *layers[:2], *(s for s in settings if "order" not in s))
    plain.load_state_dict(shared.state_dict())  # which has a copy for each place
    return shared, plain


@pytest.mark.parametrize("settings", [("order=cycle",), ("order=sequence", "norm=pre")])
def test_it_computes_what_copies_of_the_layers_compute(settings):
    shared, plain = both(*settings)
    b = batch()
    args = (b.source_tokens, b.source_lengths, b.prev_output_tokens)
    torch.testing.assert_close(shared(*args), plain(*args))
    torch.testing.assert_close(shared.cross_attention(*args), plain.cross_attention(*args))


def test_the_gradient_of_a_shared_weight_is_the_sum_over_its_copies():
    shared, plain = both()
    b = batch()
    for model in (shared, plain):
        model(b.source_tokens, b.source_lengths, b.prev_output_tokens).square().sum().backward()
    copies = [plain.encoder[n].ffn.body.inner.weight.grad for n in (1, 3)]
    found = shared.encoder[1].ffn.body.inner.weight.grad
    torch.testing.assert_close(found, copies[0] + copies[1], rtol=1e-9, atol=1e-9)


def test_it_has_the_parameters_of_its_sets_only():
    def count(name, *settings):
        return sum(p.numel() for p in build(name, *SIZES, *settings).parameters())

    shared = count(
        "shared_transformer",
        "encoder_layers=6",
        "decoder_layers=6",
        "encoder_sets=2",
        "decoder_sets=1",
    )
    assert shared == count("transformer", "encoder_layers=2", "decoder_layers=1")


def test_a_subclass_with_layers_of_its_own_shares_them_as_its_settings_say():
    """They were known by the class EncoderLayer, so that the encoder had the decoder's number of sets."""

    class Own(EncoderLayer):
        pass

    class Shared(SharedTransformer):
        encoder_layer = Own

    sizes = ("encoder_layers=4", "decoder_layers=4", "encoder_sets=2", "decoder_sets=1")
    model = Shared(build("shared_transformer", *SIZES, *sizes).config, Task())
    assert [len(set(layers)) for layers in (model.encoder, model.decoder)] == [2, 1]


def test_it_trains_and_its_checkpoint_holds_each_set_once(tmp_path):
    from safetensors.torch import load_file

    run = testing.train(
        tmp_path,
        "architecture={name: shared_transformer, dim: 16, ffn_dim: 16, heads: 2, encoder_layers: 3, decoder_layers: 2}",
    )
    kept = load_file(run / "checkpoints" / "last" / "model.safetensors")
    assert {k.split(".")[1] for k in kept if k.startswith(("encoder.", "decoder."))} == {"0"}
    import mtplug

    assert mtplug.load(run, device="cpu").translate(["ka lo"])


def test_more_sets_than_layers_are_refused():
    with pytest.raises(UserError, match="encoder_sets must be from 1 to 2"):
        build("shared_transformer", *SIZES, "encoder_layers=2", "encoder_sets=3")


def test_other_orders_keep_the_contract():
    settings = ("dim=16", "ffn_dim=16", "heads=2", "encoder_layers=3", "decoder_layers=4")
    testing.check_architecture(
        "shared_transformer",
        *settings,
        "decoder_sets=2",
        "order=cycle_rev",
        "position.name=t5_bias",
        compile=False,
    )
