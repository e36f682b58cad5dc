"""Every ready configuration is one: a model is built of it and makes an update."""

from pathlib import Path

import pytest

from mtplug.config import load_config
from mtplug.training.dry_run import dry_run

FOLDER = Path(__file__).parents[1] / "configs"
MULTI30K = sorted(FOLDER.glob("multi30k_*.yaml"))


@pytest.mark.parametrize("path", MULTI30K, ids=lambda path: path.stem)
def test_multi30k_model_makes_an_update(path):
    said = []
    dry_run(load_config(path, ["training.max_tokens=64", "training.device=cpu"])[0], said.append)
    assert "ready" in said[-1]


def test_deep_and_shared_models_have_the_sizes_that_they_promise():
    def architecture(name):
        return load_config(FOLDER / f"multi30k_{name}.yaml")[0].architecture.config

    assert architecture("deep").encoder_layers >= 12 and architecture("deep").norm == "pre"
    assert architecture("deep_shallow").encoder_layers >= 12
    assert architecture("deep_shallow").decoder_layers == 1
    assert architecture("shared").encoder_sets < architecture("shared").encoder_layers
