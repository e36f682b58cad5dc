"""Every ready configuration is one: a model is built of it and makes an update."""

from pathlib import Path

import pytest

from mtplug.config import load_config
from mtplug.training.dry_run import dry_run

FOLDER = Path(__file__).parents[1] / "configs"
CORPORA = FOLDER.parents[1] / "shared" / "data"
SMALL = sorted([*FOLDER.glob("multi30k_*.yaml"), *FOLDER.glob("ta*.yaml")])


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_model_makes_an_update(path):
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


@pytest.mark.skipif(not CORPORA.is_dir(), reason=f"the corpora are not at {CORPORA}")
@pytest.mark.parametrize("name", ["multi30k_en_de", "tatoeba_en_zh", "tanaka_en_ja"])
def test_corpus_has_enough_text_for_the_vocabulary(name):
    run, _ = load_config(FOLDER / f"{name}.yaml")
    corpus = run.data.train[0].config
    sides = {side: (CORPORA / getattr(corpus, side)).read_text(encoding="utf-8").splitlines()
             for side in ("source", "target")}  # fmt: skip
    if run.tokenizer.config.joint:
        sides = {"joint": sides["source"] + sides["target"]}
    for side, lines in sides.items():
        tokenizer = run.tokenizer.build().train(lines, side)
        assert len(tokenizer) == run.tokenizer.config.vocab_size
