"""The page of mtplug-score --compare, read back with an HTML parser."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mtplug.cli.score import main
from mtplug.evaluation import page as module

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Elements as (tag, attributes, text within); fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [(attrs, text) for t, attrs, text in self.found if t == tag]


@pytest.fixture
def made(tmp_path):
    def make(reference, base, new, *options):
        paths = []
        for name, lines in (("ref", reference), ("base", base), ("new", new), ("src", reference)):
            (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            paths.append(str(tmp_path / name))
        ref, base_file, new_file, src = paths
        out = tmp_path / "out.html"
        arguments = [new_file, "--ref", ref, "--baseline", base_file, "--compare", str(out)]
        arguments += ["--source", src, "--source-lang", "en", "--samples", "20", *options]
        assert main(arguments) == 0
        return Reader(out.read_text(encoding="utf-8")), out.read_text(encoding="utf-8")

    return make


EVIL = '<script>alert(1)</script> & "quotes" \x1b[31m\x00 end'


def test_text_is_escaped_and_needs_no_network(made):
    read, text = made([EVIL, "a b c"], ["a", "a b c"], [EVIL + " </dd>", "a b"])
    assert not read.all("script") and not read.all("link") and not read.all("img")
    assert not re.search(r"""(src|href)=|url\(|@import|https?:""", text)
    shown = [t for _, t in read.all("dd")]
    assert any('<script>alert(1)</script> & "quotes" ␛[31m␀ end' in t for t in shown)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)


def test_marks_are_of_words_and_of_characters_where_there_are_no_spaces(made):
    read, _ = made(["the dog runs fast"], ["the cat sits here"], ["the dog walks fast"])
    marks = [(a["class"], t) for a, t in read.all("mark")[2:]]
    assert marks == [("missing", "runs"), ("extra", "cat sits here"), ("extra", "walks")]
    read, _ = made(["犬が走る。"], ["鳥が飛ぶ。"], ["犬が飛ぶ。"], "--lang", "ja")
    marks = [(a["class"], t) for a, t in read.all("mark")[2:]]
    assert marks == [("missing", "走る"), ("extra", "鳥"), ("extra", "飛ぶ"), ("extra", "飛ぶ")]


def test_languages_and_headings_are_said(made):
    read, _ = made(["犬が走る。"], ["鳥が飛ぶ。"], ["犬が飛ぶ。"], "--lang", "ja")
    assert read.all("html")[0][0]["lang"] == "en"
    texts = [(a["lang"], a["dir"]) for a, _ in read.all("dd") if "dir" in a]
    assert texts == [("en", "auto"), *[("ja", "auto")] * 3]
    assert all(a.get("scope") in ("col", "row") for a, _ in read.all("th"))
    assert all(a["role"] == "img" and a["aria-label"] for a, _ in read.all("svg"))
    assert "characters of the reference" in read.all("svg")[0][1]


def test_words_are_counted_in_the_training_data_if_it_is_given(made, tmp_path):
    (tmp_path / "train").write_text("dog " * 10)
    arguments = (["the dog"], ["the cat"], ["a dog"])
    for options, buckets in (((), {"1"}), (("--train", str(tmp_path / "train")), {"0", "10–99"})):
        read, _ = made(*arguments, *options)
        rows = {text for a, text in read.all("th") if a.get("scope") == "row"}
        assert buckets <= rows and not {"0", "1", "10–99"} - buckets & rows


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_have_the_contrast_that_wcag_asks_for():
    """WCAG 2.2: 4.5 for text, 3 for parts of graphics."""
    style = (Path(module.__file__).parents[1] / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    assert len(blocks) == 2
    for block in blocks:
        c = {k: luminance(v) for k, v in re.findall(r"--([\w-]+): (#\w{6})", block)}

        def ratio(a, b, c=c):
            high, low = max(c[a], c[b]), min(c[a], c[b])
            return (high + 0.05) / (low + 0.05)

        for ink in ("ink", "soft", "better", "worse"):
            assert ratio(ink, "paper") >= 4.5 and ratio(ink, "panel") >= 4.5, ink
        assert ratio("extra-ink", "extra") >= 4.5 and ratio("missing-ink", "missing") >= 4.5
        assert all(ratio(f"s{i}", "paper") >= 3 for i in range(6))


def test_names_that_are_no_plain_text_are_shown_escaped(tmp_path):
    """A file's name may hold bytes that are no UTF-8: the page could not be written, after all had been scored."""
    names = [os.fsdecode(b"a\xff.txt"), "b\x1b[31m<b>.txt"]
    for name in (*names, "ref"):
        (tmp_path / name).write_text("a b c\nd e f\n")
    ref, base, new = (str(tmp_path / name) for name in ("ref", *names))
    out = tmp_path / "out.html"
    assert main([new, "--ref", ref, "--baseline", base, "--compare", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "\x1b" not in text and "␛[31m&lt;b&gt;" in text and "a�.txt" in text
    Reader(text)
