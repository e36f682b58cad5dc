"""The tokenizer."""

from mtplug import testing


def test_it_keeps_its_contract():
    testing.check_tokenizer("NAME")


def test_a_tiny_run_trains_with_it(tmp_path):
    run = testing.train(tmp_path, "tokenizer={name: NAME}")
    assert (run / "checkpoints/last/model.safetensors").is_file()
