"""Formats of corpora: the same pairs from each of them, and errors that name file and line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtplug.data.corpora import files
from mtplug.data.corpora.csv import Csv, CsvConfig
from mtplug.data.corpora.gettext import Gettext, GettextConfig
from mtplug.data.corpora.jsonl import Jsonl, JsonlConfig
from mtplug.data.corpora.text import Text, TextConfig, Tsv, TsvConfig
from mtplug.data.corpora.tmx import Tmx, TmxConfig
from mtplug.data.corpora.xliff import Xliff, XliffConfig
from mtplug.errors import UserError

zstandard = pytest.importorskip("zstandard")

PAIRS = [
    ("A dog runs.", "Ein Hund rennt."),
    ("Tom & Jerry <3", "Tom & Jerry „lieben“ sich"),
    ("two  blanks\u2028and\u00a0more", "日本 😀"),
]
PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
READERS = {
    "tsv": (Tsv, TsvConfig), "jsonl": (Jsonl, JsonlConfig), "tmx": (Tmx, TmxConfig), "xlf": (Xliff, XliffConfig),
    "po": (Gettext, GettextConfig), "csv": (Csv, CsvConfig),
}  # fmt: skip


def tmx(units, head="<?xml version='1.0'?>\n"):
    return f"{head}<tmx version='1.4'>\n<header srclang='en'/>\n<body>\n{units}\n</body>\n</tmx>\n"


def xliff(units, target="target-language='de-DE'", version="1.2"):
    return (
        f"<xliff xmlns='urn:oasis:names:tc:xliff:document:{version}' version='{version}'>\n"
        f"<file source-language='en-US' {target}><body>\n{units}\n</body></file></xliff>"
    )


def written(kind, pairs=PAIRS):
    """The text of a file of this format."""
    if kind == "tsv":
        return "".join(f"{s}\t{t}\n" for s, t in pairs)
    if kind == "jsonl":
        return "".join(
            json.dumps({"translation": {"en": s, "de": t}}, ensure_ascii=i % 2 == 0) + "\n"
            for i, (s, t) in enumerate(pairs)
        )
    if kind == "csv":
        table = io.StringIO()
        csv.writer(table).writerows([("id", "en", "de"), *((n, *p) for n, p in enumerate(pairs))])
        return table.getvalue()
    if kind == "po":
        head = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
        return head + "".join(f'msgid "{s}"\nmsgstr "{t}"\n\n' for s, t in pairs)
    pairs = [(escape(s), escape(t)) for s, t in pairs]
    if kind == "tmx":
        unit = "<tu><tuv xml:lang='en'><seg>{}</seg></tuv><tuv xml:lang='de-DE'><seg>{}</seg></tuv></tu>"
        return tmx("\n".join(unit.format(s, t) for s, t in pairs))
    unit = "<trans-unit id='1'>\n<source>{}</source><target>{}</target></trans-unit>"
    return xliff("\n".join(unit.format(s, t) for s, t in pairs))


def reader(path, languages=("en", "de"), **config):
    kind = files.kind_of(path).removeprefix(".")
    factory, config_class = READERS[kind]
    return factory(config_class(path=str(path), on_error=config.pop("on_error", "error"), **config)
                   if kind != "po" else config_class(path=str(path), **config), languages)  # fmt: skip


def read(tmp_path, content, name, **config):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(reader(path, **config))


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_file_of_no_bytes_is_an_error(tmp_path, packing):
    with pytest.raises(UserError, match=f"c.jsonl{packing}: 0 bytes"):
        read(tmp_path, b"", f"c.jsonl{packing}")


def test_a_document_that_names_a_wrong_encoding_is_an_error(tmp_path):
    text = written("tmx").replace(
        "<?xml version='1.0'?>", "<?xml version='1.0' encoding='UTF-16'?>"
    )
    with pytest.raises(UserError, match=r"c.tmx:1: not valid utf-16"):
        read(tmp_path, text, "c.tmx")


@pytest.mark.parametrize("packing", ["", *PACK])
@pytest.mark.parametrize("kind", READERS)
def test_every_format_gives_the_same_pairs_plain_and_packed(tmp_path, kind, packing):
    content = PACK.get(packing, bytes)(written(kind).encode())
    assert read(tmp_path, content, f"c.{kind}{packing}") == PAIRS


@pytest.mark.parametrize("packing", ["", *PACK])
def test_text_sides_may_be_packed_each_in_its_way(tmp_path, packing):
    source = "\ufeff" + "".join(s + "\r\n" for s, _ in PAIRS)
    (tmp_path / f"a{packing}").write_bytes(PACK.get(packing, bytes)(source.encode()))
    (tmp_path / "b.xz").write_bytes(lzma.compress("".join(t + "\n" for _, t in PAIRS).encode()))
    config = TextConfig(source=f"a{packing}", target="b.xz", root=str(tmp_path))
    assert list(Text(config, ("en", "de"))) == PAIRS


@pytest.mark.parametrize(
    ("pack", "packer"),
    [(bz2.compress, "bzip2"), (gzip.compress, "gzip"), (lzma.compress, "xz"), (zstandard.compress, "Zstandard")],
)  # fmt: skip
def test_packed_file_whose_name_does_not_say_so_is_told(tmp_path, pack, packer):
    """Of two such files, as `train.de.bz2` or `train.de.GZ`, it was said that they differ in their number of lines."""
    for side in "ab":
        (tmp_path / side).write_bytes(pack(b"one\ntwo\n" * 99))
    config = TextConfig(source="a", target="b", root=str(tmp_path))
    with pytest.raises(UserError, match=rf"a is packed \({packer}\); unpack it"):
        list(Text(config, ("en", "de")))


@pytest.mark.parametrize("packing", PACK)
def test_cut_off_archive_names_the_line_and_is_never_skipped(tmp_path, packing):
    rng = random.Random(1)
    lines = [f"{rng.random()}\t{rng.random()}\n" for _ in range(8_000)]
    whole = PACK[packing]("".join(lines).encode())
    path = tmp_path / f"c.tsv{packing}"
    path.write_bytes(whole[: len(whole) // 2])
    got = []
    with pytest.raises(
        UserError, match=rf"c\.tsv{packing}:\d+: the packed file is cut off"
    ) as error:
        got.extend(reader(path, on_error="skip"))
    number = int(str(error.value).split(":")[1])
    assert 1000 < number < 7_000
    path.write_bytes(b"this was never packed\n")
    with pytest.raises(UserError, match=rf"c\.tsv{packing}:1: not a whole {packing} file"):
        list(reader(path))


@pytest.mark.parametrize("packing", [".gz", ".xz"])
def test_an_archive_of_few_lines_is_read_up_to_where_it_is_cut_off(tmp_path, packing):
    """The error was told of line 1."""
    rng = random.Random(1)
    lines = [f"{rng.random()}\t{rng.random()}\n" for _ in range(300)]
    path = tmp_path / f"c.tsv{packing}"
    path.write_bytes(PACK[packing]("".join(lines).encode())[:-2000])
    got = []
    with pytest.raises(UserError) as error:
        got.extend(reader(path))
    assert len(got) > 150 and f"{path}:{len(got) + 1}: the packed" in str(error.value)


@pytest.mark.parametrize("packing", PACK)
def test_archives_of_several_parts_are_read_to_the_end(tmp_path, packing):
    parts = [PACK[packing](part.encode()) for part in ("a\tb\nc", "\td\n", "e\tf\n")]
    assert read(tmp_path, b"".join(parts), f"c.tsv{packing}") == [
        ("a", "b"),
        ("c", "d"),
        ("e", "f"),
    ]


def test_zst_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(files.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"pip install 'mtplug\[zstd\]'"):
        read(tmp_path, zstandard.compress(b"a\tb\n"), "c.tsv.zst")


@pytest.mark.parametrize(
    ("name", "good", "bad", "problem"),
    [
        ("c.jsonl", '{"translation": {"en": "a", "de": "b"}}', b"{nonsense", "not valid JSON"),
        ("c.jsonl", '{"translation": {"en": "a", "de": "b"}}', b'{"translation": {"en": "a"}}',
         r"no text in field translation\.de; fields: translation"),
        ("c.jsonl", '{"translation": {"en": "a", "de": "b"}}', b'["a", "b"]', "no JSON object"),
        ("c.jsonl", '{"translation": {"en": "a", "de": "b"}}', b'{"translation": {"en": "\xff"}}', "not valid UTF-8"),
        ("c.jsonl", '{"translation": {"en": "a", "de": "b"}}',
         b'{"translation": {"en": "\\ud800", "de": "x"}}', ".*surrogate pair"),
        ("c.jsonl", '{"translation": {"en": "a", "de": "b"}}', b"[" * 100_000, "nested too deeply|not valid JSON"),
        ("c.csv", "a,b", b"a", "1 cells, and there are 2 columns"),
        ("c.csv", "a,b", b"a,b,c", "3 cells, and there are 2 columns; a cell that holds ',' has to be quoted"),
        ("c.csv", "a,b", b'"a" b,c', "not valid CSV"),
        ("c.csv", "a,b", b"a,\xff", r"not valid UTF-8 \(byte 3 of the line\)"),
        ("c.tsv", "a\tb", b"only one", "no column 1"),
        ("c.tsv", "a\tb", b"\xff\t\xfe", "not valid UTF-8"),
    ],
)  # fmt: skip
def test_bad_line_is_named_or_skipped_and_counted(tmp_path, name, good, bad, problem):
    path = tmp_path / name
    path.write_bytes(b"\n".join([good.encode(), bad, good.encode()]) + b"\n")
    how = {"header": False, "source": "0", "target": "1"} if name == "c.csv" else {}
    with pytest.raises(UserError, match=rf"{name}:2: ({problem}).*data\.on_error=skip"):
        list(reader(path, **how))
    lenient = reader(path, on_error="skip", **how)
    assert list(lenient) == [("a", "b")] * 2
    assert lenient.bad_lines == 1


TU = "<tu><tuv xml:lang='en'><seg>a</seg></tuv><tuv xml:lang='de'><seg>b</seg></tuv></tu>"
TRANS = "<trans-unit id='1'><source>a</source><target>b</target></trans-unit>"


@pytest.mark.parametrize(
    ("name", "bad", "problem"),
    [
        ("c.tmx", b"<tu><tuv><seg>x</seg></tuv></tu>", "a tuv has no xml:lang"),
        ("c.tmx", b"<tu><tuv xml:lang='de'/></tu>", "the tuv of de has no seg"),
        ("c.xlf", b"<trans-unit id='2'><target>x</target></trans-unit>", "a trans-unit has no source"),
        ("c.tmx", TU.encode().replace(b"a</seg>", b"\xff</seg>"), "not valid UTF-8"),
        ("c.xlf", TRANS.encode().replace(b"a</s", b"\xc3</s"), "not valid UTF-8"),
        ("c.tmx", TU.encode().replace(b"a</seg>", b"\x02</seg>"), "not well-formed XML"),
        ("c.xlf", TRANS.encode().replace(b"a</s", b"&#x1F;</s"), "not well-formed XML"),
    ],
)  # fmt: skip
def test_bad_unit_is_named_or_skipped_and_counted(tmp_path, name, bad, problem):
    good, around = (TU, tmx) if name == "c.tmx" else (TRANS, xliff)
    content = around(f"{good}\nBAD\n{good}").encode().replace(b"BAD", bad)
    line = content[: content.index(bad)].count(b"\n") + 1
    with pytest.raises(UserError, match=rf"{name}:{line}: {problem}"):
        read(tmp_path, content, name)
    lenient = reader(tmp_path / name, on_error="skip")
    assert list(lenient) == [("a", "b")] * 2
    assert lenient.bad_lines == 1


def test_broken_markup_names_the_line_and_is_never_skipped(tmp_path):
    content = tmx(f"{TU}\n{TU}")
    for broken, line in ((content.replace("</tu>\n", "\n", 1), 7), (content[:-20], 6)):
        with pytest.raises(UserError, match=rf"c\.tmx:{line}: not well-formed XML"):
            read(tmp_path, broken, "c.tmx", on_error="skip")


def test_declared_entities_are_refused_and_unknown_ones_are_an_error(tmp_path):
    bomb = "<!DOCTYPE tmx [\n<!ENTITY a 'aaaaaaaaaa'>\n<!ENTITY b '&a;&a;&a;&a;'>]>\n"
    with pytest.raises(UserError, match=r"c\.tmx:2: the document declares the entity 'a'"):
        read(tmp_path, tmx(TU.replace(">a<", ">&b;<"), bomb), "c.tmx")
    outside = "<!DOCTYPE tmx SYSTEM 'tmx14.dtd'>\n"
    assert read(tmp_path, tmx(TU, outside), "c.tmx") == [("a", "b")]
    with pytest.raises(UserError, match=r"c\.tmx:5: unknown entity &nbsp;"):
        read(tmp_path, tmx(TU.replace(">a<", ">&nbsp;<"), outside), "c.tmx")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "iso-8859-1", "cp1252"])
def test_documents_in_other_encodings(tmp_path, encoding):
    declared = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>\n"
    content = tmx(TU.replace(">b<", ">süß<"), declared).encode(encoding)
    for on_error in ("error", "skip"):
        assert read(tmp_path, content, "c.tmx", on_error=on_error) == [("a", "süß")]


def test_jsonl_fields_are_chosen(tmp_path):
    line = '{"src": {"text": "a"}, "hyp.best": "b\\n c", "other": 1}\n\n'
    assert read(tmp_path, line, "c.jsonl", source="src.text", target="hyp.best") == [("a", "b c")]
    flat = '{"en": "a", "de": "b"}'
    assert read(tmp_path, flat, "c.jsonl", source="{lang}", target="{lang}") == [("a", "b")]


def test_folder_is_read_in_the_order_of_names(tmp_path):
    for name, text in (("b.jsonl.gz", "2"), ("a.jsonl", "1"), ("c.txt", "no JSON")):
        content = json.dumps({"translation": {"en": text, "de": text}}).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(Jsonl(JsonlConfig(path=str(tmp_path)), ("en", "de"))) == [("1", "1"), ("2", "2")]
    (tmp_path / "sub").mkdir()
    for circle in ("again", "0", "sub/up"):
        (tmp_path / circle).symlink_to(tmp_path)
    files = Jsonl(JsonlConfig(path=str(tmp_path)), ("en", "de")).files()
    assert files == [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    with pytest.raises(UserError, match=r"no \.tmx file is there"):
        Tmx(TmxConfig(path=str(tmp_path)), ("en", "de")).files()


SPOKEN = [
    ("en", "de", "a", "b"),
    ("de", "en", "c", "d"),
    ("en-GB", "de_AT", "e", "f"),
    ("fr", "de", "g", "h"),
]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_of_a_file_of_several_languages_the_pairs_of_the_corpus_are_read(tmp_path, kind):
    names = ("from", "to", "source", "target")
    rows = [dict(zip(names, row, strict=True)) for row in SPOKEN]
    if kind == "csv":
        content = "\n".join(",".join(row) for row in [names, *SPOKEN])
    else:
        content = "\n".join(map(json.dumps, rows))
    (tmp_path / f"c.{kind}").write_text(content)

    def pairs(languages, **config):
        corpus = reader(
            tmp_path / f"c.{kind}", languages, source="source", target="target", **config
        )
        return list(corpus)

    both = {"source_lang_field": "from", "target_lang_field": "to"}
    assert pairs(("en", "de"), **both) == [("a", "b"), ("e", "f")]
    assert pairs(("de", "en"), **both) == [("c", "d")]
    assert pairs(("de", "en"), target_lang_field="from") == [("a", "b"), ("e", "f")]
    assert len(pairs(("en", "de"))) == 4
    with pytest.raises(
        UserError, match=r"no pair of de and fr; languages there: de, de_AT, en, en-GB, fr"
    ):
        pairs(("de", "fr"), **both)
    with pytest.raises(UserError, match=r"no (text in field|column) lang; "):
        pairs(("en", "de"), source_lang_field="lang")


TABLE = b"""\xef\xbb\xbfid, en ,de,note
1,"A dog, and a ""cat"".",Ein "Hund",x
2,"two
lines",zwei Zeilen,"y

z"

3,,nichts,x
"""


def test_csv_cells_are_those_of_rfc_4180(tmp_path):
    expected = [('A dog, and a "cat".', 'Ein "Hund"'), ("two lines", "zwei Zeilen"), ("", "nichts")]
    for content in (TABLE, TABLE.replace(b"\n", b"\r\n"), TABLE.replace(b"o\nl", b"o\rl")):
        assert read(tmp_path, content, "c.csv") == expected
    corpus = reader(tmp_path / "c.csv", ("note", "id"))
    assert list(corpus) == [("x", "1"), ("y z", "2"), ("x", "3")]
    assert [corpus.document for _ in corpus] == [1, 1, 2]
    semicolons = "de;en\n'b;b';a\n"
    assert read(tmp_path, semicolons, "s.csv", delimiter=";", quote="'") == [("a", "b;b")]
    plain = 'de\ten\n"b\t"a\n'
    assert read(tmp_path, plain.encode(), "c.csv", delimiter="\t", quote="") == [('"a', '"b')]
    assert read(tmp_path, b"en,de\na\rb,c\r\n", "c.csv") == [("a b", "c")]
    table = Csv(CsvConfig(path=str(tmp_path / "t.tsv")), ("en", "de"))
    (tmp_path / "t.tsv").write_text('en\tde\n"a\tb"\tc,d\n')
    assert list(table) == [("a\tb", "c,d")]


def test_what_is_wrong_with_a_table_is_told_with_its_place(tmp_path):
    for content, config, said in (
        (b"en;de\na;b\n", {}, r"c\.csv has no column en; its columns: en;de; or set delimiter, which is ',' here"),
        (b"en,fr\na,b\n", {}, r"c\.csv has no column de; its columns: en, fr$"),
        (b"en,d\xff\na,b\n", {"on_error": "skip"}, r"c\.csv:1: not valid UTF-8"),
        (b"a,b\n", {"header": False}, r"c\.csv has no column en; its columns: 0, 1$"),
        (b'en,de\na,b\n"c\nd,e\nf,g\n', {}, r"c\.csv:3: not valid CSV: unexpected end of data"),
        (b'en,de\n"a\nb\n\xff",c\n', {}, r"c\.csv:4: not valid UTF-8 \(byte 1 of the line\)"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read(tmp_path, content, "c.csv", **config)
    # All lines that a quote took in are counted.
    (tmp_path / "c.csv").write_bytes(b'en,de\na,b\n"c\nd,e\nf" g,h\ni,j\n')
    lenient = reader(tmp_path / "c.csv", on_error="skip")
    assert list(lenient) == [("a", "b"), ("i", "j")] and lenient.bad_lines == 3
    for wrong in ({"delimiter": "||"}, {"quote": "\n"}, {"delimiter": "'", "quote": "'"}):
        with pytest.raises(ValueError, match=r"delimiter|quote"):
            CsvConfig(**wrong)


def test_tsv_columns_and_header(tmp_path):
    content = "id\tscore\ten\tde\n1\t0.9\ta\tb\n"
    assert read(tmp_path, content, "c.tsv", source_column=2, target_column=-1, header=True) == [
        ("a", "b")
    ]


def test_tmx_languages(tmp_path):
    def variants(*tags):
        return f"<tu>{''.join(f'<tuv xml:lang={t!r}><seg>{t}</seg></tuv>' for t in tags)}</tu>"

    content = tmx(
        variants("de-AT", "de-DE", "EN", "fr") + variants("en_GB", "de") + variants("en", "fr")
        + "<tu><tuv lang='en'><seg>old</seg></tuv><tuv lang='de'><seg>alt</seg></tuv></tu>"
    )  # fmt: skip
    expected = [("EN", "de-AT"), ("en_GB", "de"), ("old", "alt")]
    assert read(tmp_path, content, "c.tmx") == expected
    assert read(tmp_path, content, "c.tmx", languages=("de", "en")) == [p[::-1] for p in expected]
    assert read(tmp_path, content, "c.tmx", languages=("en", "de-DE"))[0] == ("EN", "de-DE")
    with pytest.raises(UserError, match=r"no pair of en and ja; languages there: .*de-AT.*fr"):
        read(tmp_path, content, "c.tmx", languages=("en", "ja"))


def test_inline_tags_are_dropped_or_kept(tmp_path):
    source = (
        "Press <bpt i='1'>&lt;b&gt;<sub>tip</sub></bpt>OK<ept i='1'>&lt;/b&gt;</ept>, <hi>then</hi>"
        "<ph type='lb'>\\n</ph>wait <ph>%d</ph> s.\n   "
    )
    content = tmx(TU.replace(">a<", f">{source}<"))
    assert read(tmp_path, content, "c.tmx") == [("Press OK, then wait  s.", "b")]
    kept = "Press <b>tipOK</b>, then\\nwait %d s."
    assert read(tmp_path, content, "c.tmx", inline="keep") == [(kept, "b")]


def test_xliff_1_2_states_segments_and_what_is_left_out(tmp_path):
    def unit(body, attributes=""):
        return f"<trans-unit id='1' {attributes}>{body}</trans-unit>"

    states = "".join(
        unit(f"<source>{s}</source><target state='{s}'>{s}</target>")
        for s in ("new", "needs-review-translation", "translated", "final")
    )
    segmented = unit(
        "<source>One. Two.</source><seg-source><mrk mtype='seg' mid='1'>One.</mrk> "
        "<mrk mtype='seg' mid='2'>Two<x id='1' equiv-text='{n}'/>.</mrk></seg-source>"
        "<target><mrk mtype='seg' mid='2'>Zwei.</mrk> <mrk mtype='seg' mid='1'>Eins.</mrk></target>"
    )
    left_out = (
        unit("<source>x</source>") + unit("<source>x</source><target/>")
        + unit("<source>x</source><target>y</target>", "translate='no'")
        + unit("<source>x</source><alt-trans><source>x</source><target>y</target></alt-trans>")
    )  # fmt: skip
    content = xliff(states + segmented + left_out)
    segments = [("One.", "Eins."), ("Two.", "Zwei.")]
    assert read(tmp_path, content, "c.xlf") == [("translated",) * 2, ("final",) * 2, *segments]
    assert read(tmp_path, content, "c.xlf", states=["final", "new"]) == [
        ("new",) * 2,
        ("final",) * 2,
    ]
    assert read(tmp_path, content, "c.xlf", inline="keep")[-1] == ("Two{n}.", "Zwei.")


def test_xliff_2_segments(tmp_path):
    content = """<xliff xmlns='urn:oasis:names:tc:xliff:document:2.0' version='2.0' srcLang='en' trgLang='de-DE'
      xmlns:mtc='urn:oasis:names:tc:xliff:matches:2.0'>
     <file id='f'><unit id='u'>
      <mtc:matches><mtc:match ref='#1'><source>not</source><target>this</target></mtc:match></mtc:matches>
      <segment state='final'><source>An <pc id='1'>old</pc> <ph id='2' equiv='%s'/>dog.</source>
        <target>Ein <pc id='1'>alter</pc> Hund.</target></segment>
      <ignorable><source> </source></ignorable>
      <segment state='initial'><source>no</source><target>nein</target></segment>
      <segment><source>It runs.</source><target>Er rennt.</target></segment>
     </unit><unit id='v' translate='no'><segment><source>x</source><target>y</target></segment></unit></file></xliff>"""
    assert read(tmp_path, content, "c.xlf") == [
        ("An old dog.", "Ein alter Hund."),
        ("It runs.", "Er rennt."),
    ]


def test_xliff_2_codes_are_kept_as_the_original_document_has_them(tmp_path):
    """What stands in `originalData` was dropped."""
    content = """<xliff xmlns='urn:oasis:names:tc:xliff:document:2.0' version='2.0' srcLang='en' trgLang='de'><file id='f'>
     <unit id='1'><originalData><data id='d1'>&lt;b></data><data id='d2'>&lt;/b></data><data id='d3'>%1</data></originalData>
      <segment><source>See <pc id='1' dataRefStart='d1' dataRefEnd='d2'>page <ph id='2' dataRef='d3' equiv='no'/></pc>.</source>
      <target>Siehe <sc id='1' dataRef='d1'/>Seite<ec startRef='1' dataRef='d2'/>.</target></segment></unit>
     <unit id='2'><segment><source>A <pc id='1' equivStart='[' dispEnd=')'>b</pc><ph id='2' dataRef='d3' disp='?'/></source>
      <target>A <pc id='1'>b</pc><ph id='2'/></target></segment></unit></file></xliff>"""
    assert read(tmp_path, content, "c.xlf", inline="keep") == [
        ("See <b>page %1</b>.", "Siehe <b>Seite</b>."),
        ("A [b)?", "A b"),
    ]
    assert read(tmp_path, content, "c.xlf") == [("See page .", "Siehe Seite."), ("A b", "A b")]


def test_states_that_fit_nothing_are_told(tmp_path):
    """They left everything or half of it out, with a message about languages or none."""

    def unit(state):
        return f"<trans-unit id='1'><source>a</source><target{state}>b</target></trans-unit>"

    content = xliff(unit(" state='new'") + unit(" state='x-mine'") + unit(""))
    assert read(tmp_path, content, "c.xlf", states=["final", "new", "x-mine"]) == [("a", "b")] * 2
    for states, message in (
        (["new", "finall"], "no target has 'finall'; there: none, new, x-mine"),
        (["final"], r"no target has one that is taken \(final\); there: none, new, x-mine"),
    ):
        with pytest.raises(UserError, match=rf"c\.xlf: .*{message}"):
            read(tmp_path, content, "c.xlf", states=states)
    with pytest.raises(UserError, match=r"taken \(any but new, initial and needs-…\); there: new"):
        read(tmp_path, xliff(unit(" state='new'")), "c.xlf")


def test_xliff_direction_follows_the_task(tmp_path):
    assert read(tmp_path, xliff(TRANS), "c.xlf", languages=("de", "en")) == [("b", "a")]
    assert read(tmp_path, xliff(TRANS, target=""), "c.xlf", languages=("fr", "en")) == [("b", "a")]
    with pytest.raises(UserError, match=r"no pair of en and fr; languages there: de-DE, en-US"):
        read(tmp_path, xliff(TRANS), "c.xlf", languages=("en", "fr"))
    with pytest.raises(UserError, match=r"c\.xlf:3: nothing says the language"):
        read(tmp_path, xliff(TRANS).replace("source-language='en-US'", ""), "c.xlf")


def test_gettext_errors_name_the_line(tmp_path):
    good = written("po").encode()
    with pytest.raises(UserError, match=r"c\.po:4: not valid utf-8"):
        read(tmp_path, good.replace(b"A dog", b"A \xff"), "c.po")
    with pytest.raises(UserError, match=r"c\.po:4: no readable gettext catalogue: syntax error"):
        read(tmp_path, good.replace(b'msgid "A', b'magid "A'), "c.po")


@pytest.mark.parametrize("kind", ["jsonl", "tmx", "xlf", "csv"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    peaks = []
    for count in (1_500, 4_000):
        path = tmp_path / f"{count}.{kind}"
        path.write_text(written(kind, [("A dog runs & runs.", "Ein Hund rennt.")] * count))
        tracemalloc.start()
        assert sum(1 for _ in reader(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A tree of the larger file would take some megabytes more.
    assert peaks[1] < peaks[0] + 300_000


# What any of the formats can hold: no control characters, no blanks at the ends, and not the one
# noncharacter by which the reader of XML marks what XML does not allow.
TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff\ufeff\ufdd0"), min_size=1
).map(str.strip)  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(TEXTS, TEXTS).filter(all), min_size=1, max_size=4))
def test_any_text_comes_back_from_any_format(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("formats")
    for kind in ("jsonl", "tmx", "xlf", "tsv", "csv"):
        for on_error in ("error", "skip"):
            assert read(folder, written(kind, pairs), f"c.{kind}", on_error=on_error) == pairs


def test_xz_of_several_streams_is_read_to_the_end_or_refused(tmp_path):
    """What lzma's own reader finds behind a stream and cannot unpack is the end of the file to it."""
    lines = ["a\tb\n", "c\td\n", "e\tf\n"]
    streams = [lzma.compress(line.encode()) for line in lines]
    pairs = [tuple(line.strip().split("\t")) for line in lines]
    # Padding as in the format's description, section 2.2.
    for between, end in ((b"", b""), (bytes(4), bytes(8)), (bytes(40_000), bytes(4))):
        assert read(tmp_path, between.join(streams) + end, "c.tsv.xz") == pairs
    for second in (b"\xff" + streams[1][1:], b"rubbish", bytes(3) + streams[1], bytes(6)):
        with pytest.raises(UserError, match=r"c\.tsv\.xz:2: not a whole \.xz file"):
            read(tmp_path, streams[0] + second, "c.tsv.xz")
    with pytest.raises(UserError, match="cut off here"):
        read(tmp_path, streams[0] + bytes(4) + streams[1][:-7], "c.tsv.xz")


@pytest.mark.parametrize("encoding", ["rot13", "base64", "zlib", "nonsense"])
def test_a_codec_that_is_no_encoding_of_text_is_told(tmp_path, encoding):
    content = tmx("", f"<?xml version='1.0' encoding='{encoding}'?>\n").encode()
    with pytest.raises(UserError, match=rf"c\.tmx:1: unknown encoding {encoding}"):
        read(tmp_path, content, "c.tmx")
