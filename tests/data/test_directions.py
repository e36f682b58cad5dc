"""Directions of a vocabulary that has languages of its own: what is said of them, and what is not."""

import json
from pathlib import Path

import pytest

import mtplug
from mtplug import plugins, testing
from mtplug.cli.translate import main as translate
from mtplug.config import load_config
from mtplug.data.directions import Directions
from mtplug.data.scripts import primary
from mtplug.data.splitting import split
from mtplug.data.tags import TAG, UnknownTag
from mtplug.errors import UserError
from mtplug.testing.material import Words
from mtplug.training.run import train
from tests import tiny

LANGUAGES = ("de", "en", "fr")
FIRST = len(Words.words)


class Named(Words):
    """Words, behind which the vocabulary has the symbols of three languages."""

    languages = LANGUAGES

    def __len__(self) -> int:
        return FIRST + len(LANGUAGES)

    def tokens(self, ids):
        return [LANGUAGES[i - FIRST] if i >= FIRST else self.words[i] for i in ids]

    def decode(self, ids):
        return super().decode([[i for i in row if i < FIRST] for row in ids])

    def directed(self):
        return Both()


class Both(Named):
    prefixes = frozenset(range(FIRST, FIRST + len(LANGUAGES)))

    def encode(self, texts):
        found = []
        for text in texts:
            tag = TAG.match(text)
            names = tag[2].split(":") if tag else []
            (ids,) = super().encode([text[tag.end() :] if tag else text])
            found.append([FIRST + LANGUAGES.index(name) for name in names] + ids if ids else [])
        return found


class Factory:
    joint = False

    def __init__(self, config):
        pass

    def train(self, texts, side):
        return Named()

    def load(self, folder, side):
        return Named()


@mtplug.hookimpl
def register_tokenizers(register):
    register("named", Factory)


@pytest.fixture
def named(monkeypatch):
    """The tokenizer by its name: this file is a plugin."""
    monkeypatch.setattr(plugins, "_current", plugins.PluginHost(files=[Path(__file__)]))


def directions(*learnt, usual=("en", "de")):
    return Directions(Named(), learnt, usual)


def test_languages_that_are_not_said():
    assert directions().address("ka") == "<2de:en> ka"
    for learnt, given, wanted in (
        ([("fr", "de")], (), "<2de:fr> ka"),  # the only source for the target
        ([("en", "de"), ("fr", "de")], (), "<2de:en> ka"),  # the task's, if it is one of several
        ([("en", "fr")], (), "<2fr:en> ka"),  # the only target
        ([("fr", "en"), ("en", "de")], ("en",), "<2en:fr> ka"),
        ([("fr", "en")], ("fr",), "<2fr:en> ka"),  # not learnt: the task's source
        ([("fr", "en")], ("de", "de"), "<2de:de> ka"),
    ):
        assert directions(*learnt).address("ka", *given) == wanted


@pytest.mark.parametrize(
    ("learnt", "usual", "given", "said"),
    [
        ([("de", "fr"), ("en", "fr")], ("", "fr"), (), "nothing says the source's language: one of de, en; give --source-lang"),
        ([("en", "fr"), ("fr", "en")], ("en", "de"), (), "target language de is not among fr, en, which this run writes"),
        ([], ("", ""), (), "choose one of de, en, fr, which this run writes: give --target-lang"),
        ([], ("en", "de"), ("en",), "nothing says the source's language; give --source-lang"),
        ([], ("", "de"), ("en",), "nothing says the source's language; give --source-lang"),
        ([], ("en", "de"), ("nl",), "target language nl is no language code of this model; known: de, en, fr"),
        ([], ("en", "de"), ("fr", "nl"), "source language nl is no language code of this model"),
    ],
)  # fmt: skip
def test_what_nothing_says_is_told_in_one_line(learnt, usual, given, said):
    with pytest.raises(UserError) as error:
        directions(*learnt, usual=usual).address("ka", *given)
    assert said in str(error.value) and not isinstance(error.value, UnknownTag)


def test_a_text_says_it_itself():
    made = directions(("fr", "de"))
    assert made.address(" <2fr:de>  ka", "en", "en") == "<2fr:de> ka"
    assert made.address("<2fr> ka", "en", "en") == "<2fr:en> ka"
    assert made.address("<25> ka <2fr>") == "<2de:fr> <25> ka <2fr>"
    for wrong in ("<2nl> ka", "<2fr:nl> ka", "<2nl:fr> ka"):
        with pytest.raises(UnknownTag, match="nl is no language code of this model"):
            made.address(wrong)
        # In a corpus it is text, as a tag that a run does not have is otherwise.
        assert made.addressed(wrong, "de", "fr") == f"<2de:fr> {wrong}"


def test_each_piece_of_a_long_text_begins_with_both():
    tokenizer = Both()
    (ids,) = tokenizer.encode(["<2fr:de> " + "ka lo mi ti " * 5])
    (parts,) = split([(tokenizer, ids)], 8)
    assert len(parts) > 2 and {tuple(part[:2]) for part in parts} == {(FIRST + 2, FIRST)}
    assert [i for part in parts for i in part[2:]] == ids[2:]


def test_a_language_is_the_same_in_two_letters_and_in_three():
    """BLEU cut `zho_Hans` into words as if it had blanks."""
    assert [primary(c) for c in ("zho_Hans", "zh-TW", "__zh__", "jpn_Jpan", "eng_Latn", "")] == [
        "zh", "zh", "zh", "ja", "eng", ""
    ]  # fmt: skip


def test_the_tokenizer_keeps_the_contract(named):
    testing.check_tokenizer("named")


def test_a_run_of_such_a_tokenizer_has_no_tags_of_its_own(named, tmp_path, capsys):
    """Both languages are ids of the vocabulary, in front of what is learnt and of what is translated."""
    tiny.write_corpus(tmp_path)
    ways = "[{source: S.xx, target: S.en, source_lang: fr, target_lang: de}, "
    ways += "{source: S.en, target: S.xx, source_lang: de, target_lang: fr}]"
    settings = [
        "tokenizer={name: named}", "task.language_tags=true", f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}",
        f"data.train={ways.replace('S.', 'train.')}", f"data.valid={ways.replace('S.', 'valid.')}", "data.test=null",
        "architecture.tie_embeddings=decoder", "training.max_updates=2", "validation.every_updates=2",
    ]  # fmt: skip
    text = (tmp_path / "run.yaml").read_text().split("\n")
    (tmp_path / "run.yaml").write_text("\n".join(t for t in text if "tokenizer:" not in t))
    run, _ = load_config(tmp_path / "run.yaml", settings)
    made = train(run, report=lambda text: None)
    assert not (made / "tokenizer" / "tags.json").exists()
    ours = mtplug.load(made, device="cpu")
    assert len(ours.task.source_tokenizer) == FIRST + 3
    labels = [label for label, _ in ours.task.pairs(run, "valid")]
    assert labels == ["valid.fr-de", "valid.de-fr"]
    task = run.task.build()
    task.prepare(run, made, lambda text: None)
    fronts = {tuple(store[0][0][:2].tolist()) for store in task.stores}
    assert fronts == {(FIRST, FIRST + 2), (FIRST + 2, FIRST)}
    ours.target_lang = "fr"
    assert ours.address("one") == "<2fr:de> one"
    assert len(ours.translate(["one two"])) == 1

    given = [{"source": "one", "target_lang": "fr", "source_lang": s} for s in ("en", "nl")]
    (tmp_path / "in").write_text("".join(json.dumps(row) + "\n" for row in given))
    how = ["--input", str(tmp_path / "in"), "--input-format", "jsonl", "--format", "jsonl"]
    assert translate([str(made), *how, "--plugin", __file__]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["source_tokens"] == ["fr", "en", "one"]
    assert (
        rows[1]["error"]
        == "source language nl is no language code of this model; known: de, en, fr"
    )
