"""A teacher of several directions that is told both languages, as NLLB-200 is."""

from pathlib import Path

import pytest
from mtplug_distill.__main__ import main

import mtplug
from mtplug import plugins, testing
from mtplug.data.tags import TAG
from mtplug.testing.material import Words

LANGUAGES = ("de", "en", "fr")
FIRST = len(Words.words)


class Named(Words):
    """Words, behind which the vocabulary has the symbols of three languages, of which one may be called otherwise."""

    languages = LANGUAGES
    prefixes = frozenset(range(FIRST, FIRST + len(LANGUAGES)))

    def __len__(self):
        return FIRST + len(LANGUAGES)

    def language(self, name):
        return super().language({"german": "de"}.get(name, name))

    def directed(self):
        return self

    def encode(self, texts):
        found = []
        for text in texts:
            tag = TAG.match(text)
            names = tag[2].split(":") if tag else []
            (ids,) = super().encode([text[tag.end() :] if tag else text])
            found.append([FIRST + LANGUAGES.index(name) for name in names] + ids if ids else [])
        return found

    def tokens(self, ids):
        return [LANGUAGES[i - FIRST] if i >= FIRST else self.words[i] for i in ids]

    def decode(self, ids):
        return super().decode([[i for i in row if i < FIRST] for row in ids])


class Factory:
    joint = True

    def __init__(self, config):
        pass

    def train(self, texts, side):
        return Named()

    def load(self, folder, side):
        return Named()


@mtplug.hookimpl
def register_tokenizers(register):
    register("named", Factory)


FILE = Path(__file__)


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """The tokenizer by its name: this file is a plugin."""
    monkeypatch.setattr(plugins, "_current", plugins.PluginHost(files=[FILE]))


def distill(teacher, folder, *options):
    return main(
        [
            str(teacher),
            str(folder),
            "search.min_length=1",
            "--device",
            "cpu",
            "--plugin",
            str(FILE),
            *options,
        ]
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """German is learnt from English and from French, English from German."""
    folder = tmp_path_factory.mktemp("directions")
    ways = (("train.xx", "train.en", "en", "german"), ("valid.xx", "valid.en", "fr", "de"),
            ("train.en", "train.xx", "de", "en"))  # fmt: skip
    corpora = ",".join(
        f"{{source: {s}, target: {t}, source_lang: {a}, target_lang: {b}}}" for s, t, a, b in ways
    )
    task = "task={name: translation, source_lang: en, target_lang: de, language_tags: true}"
    how = ("tokenizer={name: named}", "data.test=null", "validation.search.min_length=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_current", plugins.PluginHost(files=[FILE]))
        yield testing.train(
            folder, f"data.train=[{corpora}]", f"data.valid=[{corpora}]", task, *how
        )


def made(teacher, folder, *options):
    assert distill(teacher, folder, *options) == 0
    return [(folder / side).read_text().splitlines() for side in ("source", "target")]


def translated(teacher, tag, sources):
    overrides = ["search.min_length=1"]
    model = mtplug.load(teacher, device="cpu", overrides=overrides)
    return model.translate([f"{tag} {source}" for source in sources])


@pytest.mark.parametrize("given", [("de", "fr"), ("german", "en"), ("en", "")])
def test_one_direction_is_distilled_at_a_time(teacher, tmp_path, given):
    target, source = given
    options = ["--target-lang", target, *(["--source-lang", source] if source else [])]
    sources, targets = made(teacher, tmp_path / "made", *options)
    file, tag = {
        "fr": ("valid.xx", "<2de:fr>"), "en": ("train.xx", "<2de:en>"), "": ("train.en", "<2en:de>")
    }[source]  # fmt: skip
    assert sources == (teacher.parent / file).read_text().splitlines()
    assert targets == translated(teacher, tag, sources)


def test_other_text_is_in_the_language_that_is_told(teacher, tmp_path):
    (tmp_path / "text").write_text("ka lo mi\nnu\n")
    given = ["--input", str(tmp_path / "text"), "--target-lang", "de", "--source-lang"]
    sources, targets = made(teacher, tmp_path / "fr", *given, "fr")
    assert targets == translated(teacher, "<2de:fr>", sources)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "--target-lang: the training data is in de and en, and a folder holds one language"),
        (("--target-lang", "de"), "--source-lang: what is translated into de is in en and fr"),
        (("--target-lang", "en", "--source-lang", "fr"), "the training data has none from fr into en; it has de-en, en-de, fr-de"),
        (("--target-lang", "nl"), "--target-lang: nl is no language code"),
        (("--target-lang", "de", "--source-lang", "nl"), "--source-lang: nl is no language code"),
    ],
)  # fmt: skip
def test_what_is_not_told_or_not_there_is_one_line(teacher, tmp_path, capsys, given, said):
    assert distill(teacher, tmp_path / "made", *given) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not (tmp_path / "made").exists()


def test_a_folder_is_not_continued_in_another_direction(teacher, tmp_path, capsys):
    (tmp_path / "text").write_text("ka lo mi\nnu\n")
    command = [teacher, tmp_path / "made", "--input", str(tmp_path / "text"), "--target-lang"]
    assert distill(*command, "de") == 0
    (tmp_path / "made" / "target").rename(tmp_path / "made" / ".target.partial")
    for other in (["en"], ["de", "--source-lang", "fr"]):
        assert distill(*command, *other) == 2
        assert "begun with another teacher, other settings" in capsys.readouterr().err
    assert distill(*command, "german") == 0
