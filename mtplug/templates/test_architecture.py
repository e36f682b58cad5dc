"""The architecture."""

from mtplug import testing


def test_a_tiny_run_trains_with_it(tmp_path):
    run = testing.train(tmp_path, "architecture.name=NAME")
    assert (run / "checkpoints/last/model.safetensors").is_file()
