"""Directions of a vocabulary that has languages of its own: what is said of them, and what is not."""

import pytest

from mtplug.data.directions import Directions
from mtplug.data.scripts import primary
from mtplug.data.splitting import split
from mtplug.data.tags import TAG, UnknownTag
from mtplug.errors import UserError
from mtplug.testing.material import Words

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
