"""The attention backend."""

from mtplug import testing


def test_it_keeps_its_contract():
    testing.check_attention_backend("NAME")


def test_a_tiny_run_trains_with_it(tmp_path):
    run = testing.train(tmp_path, "architecture.attention.backend=NAME")
    assert (run / "checkpoints/last/model.safetensors").is_file()
