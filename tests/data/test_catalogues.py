"""Readers of gettext catalogues and of interface strings in JSON."""

import json

import pytest

from mtplug.data.corpora.gettext import Gettext, GettextConfig
from mtplug.data.corpora.json_strings import JsonStrings, JsonStringsConfig
from mtplug.errors import UserError

polib = pytest.importorskip("polib")

CATALOGUE = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

msgid "Open the file"
msgstr "Datei öffnen"

#, fuzzy
msgid "Close"
msgstr "Vielleicht schließen"

msgid "Two \n\nlines here"
msgstr "Zwei\nZeilen hier"

msgid "Not translated"
msgstr ""

msgid "one day"
msgid_plural "%d days"
msgstr[0] "ein Tag"
msgstr[1] "%d Tage"

#~ msgid "Old"
#~ msgstr "Alt"
"""
PAIRS = [
    ("Open the file", "Datei öffnen"),
    ("Two lines here", "Zwei Zeilen hier"),
    ("one day", "ein Tag"),
    ("%d days", "%d Tage"),
]


@pytest.fixture
def catalogues(tmp_path):
    source = tmp_path / "po" / "de.po"
    source.parent.mkdir()
    source.write_text(CATALOGUE, encoding="utf-8")
    (tmp_path / "mo").mkdir()
    polib.pofile(str(source)).save_as_mofile(str(tmp_path / "mo" / "de.mo"))
    return tmp_path


def read(folder, languages=("en", "de"), **settings):
    return list(Gettext(GettextConfig(root=str(folder), **settings), languages))


@pytest.mark.parametrize("path", ["po", "mo", "po/de.po", "*/de.mo"])
def test_messages_plurals_and_line_breaks(catalogues, path):
    assert sorted(read(catalogues, path=path)) == sorted(PAIRS)


def test_direction_follows_the_task(catalogues):
    assert read(catalogues, ("de", "en"), path="po")[0] == ("Datei öffnen", "Open the file")
    with pytest.raises(UserError, match="message_lang en is neither"):
        read(catalogues, ("de", "fr"), path="po")


def test_fuzzy_entries_only_when_asked_for(catalogues):
    assert ("Close", "Vielleicht schließen") in read(catalogues, path="po", fuzzy=True)


def test_nothing_there_and_no_catalogue(catalogues):
    with pytest.raises(UserError, match=r"no \.po or \.mo file is there"):
        read(catalogues, path="nowhere")
    (catalogues / "bad.mo").write_bytes(b"no catalogue at all")
    with pytest.raises(UserError, match=r"bad\.mo: no readable gettext catalogue"):
        read(catalogues, path="bad.mo")


def test_json_strings_pair_by_key(tmp_path):
    for component, language, content in (
        ("a", "en", {"title": "Door", "state": {"open": "It is\nopen", "new": "New"}}),
        ("a", "de", {"title": "Tür", "state": {"open": "Sie ist offen"}}),
        ("b", "en", {"list": ["First", "Second"]}),
        ("b", "de", {"list": ["Erste", "Zweite"]}),
        ("c", "en", {"title": "Alone"}),
    ):
        folder = tmp_path / component / "i18n"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{language}.json").write_text(json.dumps(content))
    config = JsonStringsConfig(path="*/i18n/{lang}.json", root=str(tmp_path))
    pairs = [
        ("Door", "Tür"),
        ("It is open", "Sie ist offen"),
        ("First", "Erste"),
        ("Second", "Zweite"),
    ]
    assert list(JsonStrings(config, ("en", "de"))) == pairs
    assert list(JsonStrings(config, ("de", "en"))) == [p[::-1] for p in pairs]
    with pytest.raises(UserError, match="no file is there in both en and fr"):
        JsonStrings(config, ("en", "fr")).files()
    with pytest.raises(UserError, match=r"path needs \{lang\}"):
        JsonStrings(JsonStringsConfig(path="x.json"), ("en", "de")).files()


def test_catalogues_of_other_languages_are_passed_over(catalogues):
    headed = CATALOGUE.replace("UTF-8\\n", "UTF-8\\nLanguage: LANG\\n")
    for language in ("de_DE", "fr"):
        (catalogues / "po" / f"{language}.po").write_text(
            headed.replace("LANG", language).replace("Datei", language), encoding="utf-8"
        )
    polib.pofile(str(catalogues / "po" / "fr.po")).save_as_mofile(str(catalogues / "po" / "fr.mo"))
    found = [target for _, target in read(catalogues, path="po") if "öffnen" in target]
    assert found == ["Datei öffnen", "de_DE öffnen"]
    assert len(read(catalogues, path="po", languages=("en-US", "de"))) == 8
    with pytest.raises(UserError, match="no pair of en and de; languages there: fr"):
        read(catalogues, path="po/fr.*")


def test_a_catalogue_that_is_cut_off_is_an_error(catalogues):
    file = catalogues / "po" / "de.po"
    text = file.read_text(encoding="utf-8")
    for cut in ('msgstr "Datei öff', "msgstr"):
        file.write_text(text[: text.index('msgstr "Datei')] + cut, encoding="utf-8")
        with pytest.raises(UserError, match=r"de.po:6: no readable gettext catalogue"):
            read(catalogues, path="po")


@pytest.mark.parametrize("missing", [1, 8, 60])
def test_a_compiled_catalogue_that_is_cut_off_is_an_error(catalogues, missing):
    """polib took what was there of a text for the whole of it."""
    file = catalogues / "mo" / "de.mo"
    whole = file.read_bytes()
    assert whole.endswith(b"%d Tage\0")  # the zero belongs to no text's length
    file.write_bytes(whole[: -1 - missing])
    with pytest.raises(UserError, match=r"de\.mo: no readable gettext catalogue: it is cut off"):
        read(catalogues, path="mo")
    file.write_bytes(whole[:-1])
    assert sorted(read(catalogues, path="mo")) == sorted(PAIRS)


def test_a_compiled_catalogue_of_the_other_order_of_bytes(catalogues):
    import struct

    file = catalogues / "mo" / "de.mo"
    whole = file.read_bytes()
    count, first, second = struct.unpack_from("<3I", whole, 8)
    words = 7 + 4 * count
    assert sorted([first, second])[0] == 28 and max(first, second) == 28 + 8 * count
    turned = struct.pack(f">{words}I", *struct.unpack_from(f"<{words}I", whole))
    file.write_bytes(turned + whole[4 * words :])
    assert sorted(read(catalogues, path="mo")) == sorted(PAIRS)
    file.write_bytes((turned + whole[4 * words :])[:-9])
    with pytest.raises(UserError, match="it is cut off"):
        read(catalogues, path="mo")


@pytest.mark.parametrize("charset", ["rot13", "base64", "zlib"])
@pytest.mark.parametrize("kind", ["po", "mo"])
def test_a_charset_that_is_no_encoding_of_text_is_told(catalogues, kind, charset):
    file = catalogues / kind / f"de.{kind}"
    file.write_bytes(file.read_bytes().replace(b"UTF-8", charset.ljust(5).encode()[:6]))
    with pytest.raises(UserError, match=r"no readable gettext catalogue: "):
        read(catalogues, path=kind)


@pytest.mark.parametrize(("content", "said"), [
    (r'{"a": "\ud83d"}', r"de\.json: no valid JSON: half of a surrogate pair"),
    ("[" * 3000 + "]" * 3000, r"de\.json: no valid JSON: nested too deeply"),
    ("[" * 200_000, r"de\.json: no valid JSON: nested too deeply"),
])  # fmt: skip
def test_json_that_is_no_text_is_told(tmp_path, content, said):
    (tmp_path / "en.json").write_text('{"a": "b"}')
    (tmp_path / "de.json").write_text(content)
    config = JsonStringsConfig(root=str(tmp_path), path="{lang}.json")
    with pytest.raises(UserError, match=said):
        list(JsonStrings(config, ("en", "de")))


def test_brackets_of_a_folder_s_name_are_no_pattern(catalogues, tmp_path):
    root = tmp_path / "a [1]"
    for name in ("b [2]", "c"):
        (root / name).mkdir(parents=True)
        for language in ("en", "de"):
            (root / name / f"{language}.json").write_text(json.dumps({"key": language + name}))
    config = JsonStringsConfig(root=str(root), path="b [2]/{lang}.json")
    assert list(JsonStrings(config, ("en", "de"))) == [("enb [2]", "deb [2]")]
    config = JsonStringsConfig(root=str(root), path="*/{lang}.json")
    assert list(JsonStrings(config, ("en", "de"))) == [("enb [2]", "deb [2]"), ("enc", "dec")]
    (catalogues / "po").rename(root / "po")
    assert read(root, path="*/*.po") == PAIRS
