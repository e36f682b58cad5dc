"""The exporter."""

import numpy as np

import mtplug
from mtplug import testing
from mtplug.config import component_from_overrides


def test_it_keeps_its_contract(mtplug_run):
    testing.check_exporter("NAME", run=mtplug_run)


def test_exported_weights_are_those_of_the_run(mtplug_run, tmp_path):
    translator = mtplug.load(mtplug_run, device="cpu")
    component_from_overrides("exporters", "NAME", []).build().export(translator, tmp_path / "out")
    exported = np.load(tmp_path / "out" / "weights.npz")
    for name, tensor in translator.model.state_dict().items():
        np.testing.assert_array_equal(exported[name], tensor.numpy())
    tokens = (tmp_path / "out" / "vocabulary.txt").read_text().splitlines()
    assert tokens[:3] == translator.task.target_tokenizer.tokens([0, 1, 2])
