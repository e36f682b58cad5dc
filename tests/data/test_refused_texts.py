"""A tokenizer that takes no text of another form: who called it says which text that is, and metrics get what it leaves."""

import copy
from dataclasses import replace

import numpy as np
import pytest

import mtplug
from mtplug.config import load_resolved
from mtplug.data.build import build_store
from mtplug.data.corpora.text import Text, TextConfig
from mtplug.data.encoding import Encoding
from mtplug.data.tags import Tagged
from mtplug.data.text_pools import TextPools
from mtplug.data.tokenizers import SentencePieceFactory, Wrapper
from mtplug.data.training import TrainingData
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score
from mtplug.testing import train
from mtplug.testing.material import Words
from mtplug.training.run import evaluate
from mtplug.training.validation import Validation
from mtplug.translator import NoPosition


class Marked(Wrapper):
    """Each word has a mark, `ka/x`; unknown words have another number than elsewhere."""

    def encode(self, texts):
        for word in (w for text in texts for w in text.split()):
            if not word.endswith("/x"):
                raise UserError(f"'{word}' has no mark")
        return self.inner.encode([self.plain(text) for text in texts])

    def plain(self, text):
        return text.replace("/x", "")

    def unknown(self, ids):
        return 10 * self.inner.unknown(ids)


@pytest.fixture
def corpus(tmp_path):
    marked = [f"ka/x lo/x{' we' * (n == 4999)}" for n in range(6000)]
    (tmp_path / "a").write_text("\n".join(marked) + "\n")
    (tmp_path / "b").write_text("one two\n" * 6000)
    return Text(TextConfig(source="a", target="b", root=str(tmp_path)), ("xx", "en"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_pair_of_the_corpus_is_named(tmp_path, corpus, workers):
    encoding = Encoding((Marked(Words()), Words()), 100, "skip")
    told = r"/a and .*/b: pair 5000: 'we' has no mark$"
    with pytest.raises(UserError, match=told):
        build_store(tmp_path / "store", corpus, encoding, {}, workers=workers)
    assert not (tmp_path / "store").exists()
    with pytest.raises(UserError, match=told):
        list(TrainingData(TextPools([corpus], encoding, [1.0]), 60, 1).remaining())


def test_a_tokenizer_says_what_is_unknown():
    tagged = Tagged(Marked(Words()), ["de"])
    assert tagged.plain("ka/x") == "ka" and tagged.unknown(np.array([2, 3, 2])) == 20
    lines = [("ka/x never/x", "one never")]
    assert Encoding((tagged, Words()), 100, "skip")(lines, 1)[2]["unknown"] == 11


@pytest.fixture
def translator(tiny_run):
    found = copy.copy(mtplug.load(tiny_run, device="cpu"))
    found.task = copy.copy(found.task)
    found.task.source_tokenizer = Marked(found.task.source_tokenizer)
    return found


def test_a_translator_names_the_texts(translator):
    with pytest.raises(NoPosition, match=r"^sentence 2: 'lo' has no mark$") as caught:
        translator.translate(["ka/x", "lo", "mi/x", "ka/x nu"])
    assert caught.value.why == {1: "'lo' has no mark", 3: "'nu' has no mark"}
    with pytest.raises(NoPosition, match=r"^sentence 1: 'ka' has no mark$"):
        translator.score(["ka"], ["one"])
    assert translator.translate(["ka/x lo/x"]) == ["one two"]


def test_glossaries_read_what_the_tokenizer_leaves(translator, tmp_path):
    (tmp_path / "glossary").write_text("ka lo\tnine\n")
    given = {"terminology": str(tmp_path / "glossary")}
    (best,) = translator.nbest(["ka/x lo/x"], **given)
    assert "nine" in best[0].text.split()


class Sources(Metric):
    """What metrics that read sources are given."""

    label, higher_is_better, takes_sources = "sources", True, True

    def __init__(self):
        self.seen = []

    def score(self, hypotheses, references, sources=None):
        self.seen += sources
        return Score("sources", 1.0, "none", "sources")


@pytest.mark.parametrize("module", ["run", "validation"])
def test_metrics_read_what_the_tokenizer_leaves(
    translator, tiny_run, tmp_path, monkeypatch, module
):
    metric = Sources()
    monkeypatch.setattr(f"mtplug.training.{module}.metrics_of", lambda *_: [metric])
    for split in ("valid", "test"):
        (tmp_path / f"{split}.xx").write_text("ka/x lo/x\nmi/x\n")
        (tmp_path / f"{split}.en").write_text("one two\nthree\n")
    run = load_resolved(tiny_run / "config.yaml")
    best = replace(run.validation, best_metric="loss")
    run = replace(run, data=replace(run.data, root=str(tmp_path)), validation=best)
    if module == "run":
        evaluate(run, translator, "test")
    else:
        Validation(run, translator.task)(translator.model, run.criterion.build(translator.task))
    assert metric.seen == ["ka lo", "mi"]


def test_a_tokenizer_may_be_for_certain_models_only(tmp_path, monkeypatch):
    def why_not(config, model):
        return f"{type(model).__name__} with {config.vocab_size} pieces"

    monkeypatch.setattr(SentencePieceFactory, "why_not", staticmethod(why_not), raising=False)
    told = "^tokenizer.name: sentencepiece: Transformer with 23 pieces$"
    with pytest.raises(UserError, match=told):
        train(tmp_path)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(SentencePieceFactory, "why_not", staticmethod(lambda config, model: ""))
    train(tmp_path, updates=1)
