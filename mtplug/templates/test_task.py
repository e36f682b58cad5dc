"""The task."""

from mtplug import testing


def test_it_keeps_its_contract():
    testing.check_task("NAME")


def test_a_tiny_run_trains_with_it(tmp_path):
    run = testing.train(tmp_path, "task.name=NAME")
    assert (run / "checkpoints/last/model.safetensors").is_file()
