"""How large vocabularies are, asked for or given, also before there is one."""

import pytest

from mtplug import plugins, testing
from mtplug.cli.train import main as train
from mtplug.config import load_config
from mtplug.errors import UserError
from mtplug.plugins import PluginHost
from mtplug.scaffold import TEMPLATES
from mtplug.training.dry_run import stand_ins
from mtplug.translator import load
from tests import tiny

APART = (
    "tokenizer={joint: false, vocab_size: 30, target_vocab_size: 26, model_type: bpe}",
    "architecture.tie_embeddings=decoder",
)


@pytest.fixture
def folder(tmp_path):
    tiny.write_corpus(tmp_path)
    return tmp_path


def sizes(task):
    return len(task.source_tokenizer), len(task.target_tokenizer)


def test_each_side_has_its_own(folder):
    run = testing.train(folder, *APART, updates=2)
    assert sizes(load(run).task) == (30, 26)
    assert sizes(stand_ins(load_config(run / "config.yaml")[0])[0]) == (30, 26)
    for given, said in (
        ("vocab_size: 30, target_vocab_size: 26", "target_vocab_size is for joint=false"),
        (
            "joint: false, vocab_size: 30, target_vocab_size: 2",
            "target_vocab_size must be from 4 to",
        ),
    ):
        with pytest.raises(UserError, match=said):
            load_config(None, [f"tokenizer={{{given}}}"])
    with pytest.raises(
        UserError, match=r"tokenizer\.target_vocab_size: 9999 is more than the target text allows"
    ):
        testing.train(folder, APART[0].replace("26", "9999"), APART[1], updates=2, name="no")


@pytest.mark.parametrize(
    "tokenizer",
    [
        "{name: words, vocab_size: 0}",
        "{name: words, vocab_size: 100000000}",  # a model of that size took all memory
        "{name: words, model: FILE}",
        "{name: sentencepiece, model: RUN}",
        "{name: sentencepiece, model: RUN, extend: 5}",
    ],
)
def test_a_dry_run_counts_what_is_there(folder, tokenizer, capsys):
    """A vocabulary of all words had no row, and one that is given was taken for 8,000."""
    words = sorted(tiny.LEXICON.values())
    (folder / "words").write_text("\n".join([*tiny.LEXICON, *words]) + "\n")
    if "RUN" in tokenizer:
        testing.train(folder, updates=2, name="base")
    chosen = tokenizer.replace("FILE", str(folder / "words")).replace("RUN", str(folder / "base"))
    given = tiny.arguments(folder, "new", f"tokenizer={chosen}", "training.freeze=encoder.0.*")
    assert train([*given, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "configuration is ready" in said
    size = 8000 if "model" not in tokenizer else 3 + 2 * len(words)
    if "RUN" in tokenizer:
        size = len(load(folder / "base").task.source_tokenizer) + 5 * ("extend" in tokenizer)
    assert (
        len(stand_ins(load_config(folder / "run.yaml", given[1:])[0])[0].source_tokenizer) == size
    )


def test_a_tokenizer_of_a_plugin_says_its_size(folder, monkeypatch):
    """Only those with a setting `vocab_size` could: the name was read from the settings."""
    template = (TEMPLATES / "tokenizer.py").read_text().replace("NAME", "letters")
    (folder / "letters.py").write_text(template)
    monkeypatch.setattr(plugins, "_current", PluginHost(files=[folder / "letters.py"]))
    given = tiny.arguments(folder, "new", "tokenizer={name: letters}")
    task, _ = stand_ins(load_config(folder / "run.yaml", given[1:])[0])
    assert sizes(task) == (259, 259)
