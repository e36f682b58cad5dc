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
