"""From text to translations: the one path of validation, `mtplug-evaluate`, `mtplug-translate` and Python."""

from mtplug.translator.inputs import NoPosition, TooLong
from mtplug.translator.loading import load, load_run, translator_of
from mtplug.translator.result import Translation, words_of
from mtplug.translator.translator import Translator

__all__ = [
    "NoPosition",
    "TooLong",
    "Translation",
    "Translator",
    "load",
    "load_run",
    "translator_of",
    "words_of",
]
