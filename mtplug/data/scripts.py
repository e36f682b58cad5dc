"""Which script a letter belongs to, and which scripts a language is written in."""

from __future__ import annotations

import unicodedata

from mtplug.errors import UserError, did_you_mean

# ISO 15924 code: the name as Unicode has it, which also begins the names of its letters.
SCRIPTS = {
    "Arab": "Arabic", "Armn": "Armenian", "Beng": "Bengali", "Cyrl": "Cyrillic", "Deva": "Devanagari",
    "Ethi": "Ethiopic", "Geor": "Georgian", "Grek": "Greek", "Gujr": "Gujarati", "Guru": "Gurmukhi",
    "Hang": "Hangul", "Hani": "Han", "Hebr": "Hebrew", "Hira": "Hiragana", "Kana": "Katakana",
    "Khmr": "Khmer", "Knda": "Kannada", "Laoo": "Lao", "Latn": "Latin", "Mlym": "Malayalam",
    "Mong": "Mongolian", "Mymr": "Myanmar", "Orya": "Oriya", "Sinh": "Sinhala", "Taml": "Tamil",
    "Telu": "Telugu", "Thaa": "Thaana", "Thai": "Thai", "Tibt": "Tibetan",
}  # fmt: skip
_ALIASES = {
    "Hans": ("Han",), "Hant": ("Han",), "Jpan": ("Han", "Hiragana", "Katakana"), "Kore": ("Hangul", "Han"),
}  # fmt: skip

# Languages by the script of their common spelling (CLDR's likely subtags); a script in the code
# (`sr-Latn`) goes before. Serbian is written in two.
_LANGUAGES = {
    ("Latin",): "af az bs ca cs cy da de en eo es et eu fi fil fr ga gl ha hr ht hu id ig is it jv la lb lt lv mg "
    "mi ms mt nb nl nn no oc pl pt ro rw sk sl sn so sq st su sv sw tk tl tn tr uz vi wo xh yo zu",
    ("Cyrillic",): "ba be bg ce cv kk ky mk mn os ru tg tt uk",
    ("Cyrillic", "Latin"): "sr",
    ("Arabic",): "ar arz ckb fa ps sd ug ur",
    ("Devanagari",): "bho hi mai mr ne sa",
    ("Bengali",): "as bn",
    ("Ethiopic",): "am ti",
    ("Hebrew",): "he iw yi",
    ("Hangul", "Han"): "ko",
    ("Han",): "yue zh",
    ("Han", "Hiragana", "Katakana"): "ja",
    ("Armenian",): "hy", ("Georgian",): "ka", ("Greek",): "el", ("Gujarati",): "gu", ("Gurmukhi",): "pa",
    ("Kannada",): "kn", ("Khmer",): "km", ("Lao",): "lo", ("Malayalam",): "ml", ("Myanmar",): "my",
    ("Oriya",): "or", ("Sinhala",): "si", ("Tamil",): "ta", ("Telugu",): "te", ("Thaana",): "dv",
    ("Thai",): "th", ("Tibetan",): "bo dz",
}  # fmt: skip
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""What stands in [] of a regular expression for the characters of scripts that write words without spaces: Thai, Lao,
Burmese, Khmer, kana, Han."""
UNSPACED_LANGUAGES = {"zh", "ja", "yue", "th", "lo", "km", "my"}
"""Languages written without spaces between words."""
_SHORT = {"zho": "zh", "jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "mya": "my"}
"""Of codes of three letters (ISO 639-3) those whose language is cut or joined in a way of its own."""
_BY_LANGUAGE = {code: scripts for scripts, codes in _LANGUAGES.items() for code in codes.split()}


def primary(language: str) -> str:
    """The language of a code without script and region: `zh` of `zh`, `zh-Hans`, `ZH_CN`, `zho_Hans` and `__zh__`."""
    found = language.strip("_").replace("_", "-").split("-")[0].lower()
    return _SHORT.get(found, found)


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts that text in a language (a BCP 47 code such as `ja` or `sr-Latn`) is written in.

    Raises:
        UserError: the language is not known here.
    """
    _, *subtags = language.replace("_", "-").split("-")
    for tag in (subtag.title() for subtag in subtags):
        if tag in _ALIASES:
            return _ALIASES[tag]
        if tag in SCRIPTS:
            return (SCRIPTS[tag],)
    try:
        return _BY_LANGUAGE[primary(language)]
    except KeyError:
        raise UserError(
            f"data.filters.script: the script of language '{language}' is not known; set "
            "data.filters.source_scripts or target_scripts, such as [Latin]"
        ) from None


def checked(scripts: list[str], key: str) -> tuple[str, ...]:
    """Names of scripts, as the user gave them.

    Raises:
        UserError: one is unknown.
    """
    for script in scripts:
        if script not in SCRIPTS.values():
            hint = did_you_mean(script, SCRIPTS.values())
            raise UserError(f"{key}: '{script}' is no script that is known here{hint}")
    return tuple(scripts)


def script_of(character: str) -> str:
    """Unicode's script of a letter; empty for what is no letter or shared by many scripts.

    From the character's name, since Python's Unicode tables lack the script: LATIN SMALL LETTER A,
    CJK UNIFIED IDEOGRAPH-4E00, HALFWIDTH KATAKANA LETTER A.
    """
    if not character.isalpha():
        return ""
    words = unicodedata.name(character, "").replace("-", " ").split()
    while words and words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words.pop(0)
    first = words[0].title() if words else ""
    if first in ("Cjk", "Ideographic"):
        return "Han"
    return first if first in SCRIPTS.values() else ""


class ScriptShare(dict):
    """Share of a text's letters that belong to some scripts: `ScriptShare(("Latin",))("abc д") == 0.75`.

    A table from character to a count, filled as characters come: a letter of another script is 1, one of
    the scripts is 1 and 2^32 on top, so that one sum counts both.
    """

    _FOUND = 1 << 32

    def __init__(self, scripts: tuple[str, ...]):
        super().__init__()
        self.scripts = scripts

    def __missing__(self, character: str) -> int:
        script = script_of(character)
        self[character] = (1 + self._FOUND if script in self.scripts else 1) if script else 0
        return self[character]

    def __call__(self, text: str) -> float:
        """From 0 to 1; 1 for a text without letters."""
        found, letters = divmod(sum(map(self.__getitem__, text)), self._FOUND)
        return found / letters if letters else 1.0
