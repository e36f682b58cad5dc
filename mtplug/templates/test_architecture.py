"""The architecture."""

from mtplug import testing

SMALL = ("dim=16", "ffn_dim=16", "heads=2", "encoder_layers=1", "decoder_layers=1")


def test_it_keeps_its_contract():
    testing.check_architecture("NAME", *SMALL)


def test_a_tiny_run_trains_with_it(tmp_path):
    run = testing.train(tmp_path, "architecture.name=NAME")
    assert (run / "checkpoints/last/model.safetensors").is_file()
