"""Which terms are found and tagged, what a run learns of it, and how terms are counted."""

import gzip
import json

import pytest
from mtplug_terminology.__main__ import main
from mtplug_terminology.glossary import TAGS, Glossary, extract, tagged, untagged

import mtplug
from mtplug import plugins, testing
from mtplug.cli import score
from mtplug.config import load_config
from mtplug.testing.tiny import LEXICON
from mtplug.training.run import prepare
from mtplug.training.trackers import read_events
from mtplug.training.validation import read_samples
from mtplug.translator.attention import source_words

FILE = """\
# source\ttarget
dog\tHund | Hunde
hot dog\tWürstchen
狗\tHund
C++\tC++
ihracat\texports
"""


@pytest.fixture
def glossary(tmp_path):
    (tmp_path / "glossary.tsv").write_text(FILE, encoding="utf-8")
    return Glossary.read(tmp_path / "glossary.tsv")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("A dog runs.", "A <term> dog <target> Hund </term> runs."),
        ("Dog, dogs", "<term> Dog <target> Hund </term>, dogs"),  # whole words, any case
        ("a hot  dog", "a <term> hot  dog <target> Würstchen </term>"),  # the longest
        (
            "hot dog dog",
            "<term> hot dog <target> Würstchen </term> <term> dog <target> Hund </term>",
        ),
        ("一只狗跑", "一只<term> 狗 <target> Hund </term>跑"),  # no spaces, no words
        ("in C++.", "in <term> C++ <target> C++ </term>."),
        ("İHRACAT arttı", "<term> İHRACAT <target> exports </term> arttı"),  # of Turkish, too
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_terms_are_tagged(glossary, source, expected):
    assert tagged(source, glossary.terms(source)) == expected


def test_in_training_the_form_that_the_translation_has_is_due(glossary):
    (term,) = glossary.found("two dogs and a dog", "zwei Hunde")
    assert term.target == "Hunde"
    assert glossary.found("a dog", "ein Hundehalsband") == []  # part of a word is no form


@pytest.mark.parametrize("line", ["dog Hund", "\tHund", "dog\t | "])
def test_a_line_without_both_sides_is_refused(tmp_path, line):
    (tmp_path / "g").write_text(f"cat\tKatze\n{line}\n")
    with pytest.raises(mtplug.UserError, match=r"g:2: expected source term, a tab"):
        Glossary.read(tmp_path / "g")


def test_extraction_finds_what_is_translated_alike():
    pairs = [
        ("the red dog", "der rote Hund"),
        ("the dog ran", "der Hund lief"),
        ("red cat", "rote Katze"),
    ]
    pairs += [("the dogs", "die Hunde"), ("a dog", "ein Hund")]
    found = extract(pairs, least=2, dice=0.7)
    assert found["dog"] == ["Hund"] and found["red"] == ["rote"]
    assert "cat" not in found  # once is not enough


@pytest.fixture
def corpus(tmp_path):
    """The made-up corpus with a glossary of four of its ten words."""
    testing.write_corpus(tmp_path)
    lines = [f"{word}\t{LEXICON[word]}" for word in ("ka", "lo", "mi", "nu")]
    (tmp_path / "glossary.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_share_and_the_choice_are_those_asked_for(corpus):
    from mtplug.config import component_from_overrides

    def pairs(share, most=3):
        settings = [f"root={corpus}", "source=train.xx", "target=train.en", "glossary=glossary.tsv",
                    f"share={share}", f"max_terms={most}"]  # fmt: skip
        return list(component_from_overrides("corpora", "glossary", settings).build(("xx", "en")))

    plain, half, whole = pairs(0), pairs(0.5), pairs(1)
    assert (
        [t for _, t in plain]
        == [t for _, t in half]
        == (corpus / "train.en").read_text().split("\n")[:-1]
    )
    counts = [sum("<term>" in s for s, _ in some) for some in (plain, half, whole)]
    able = sum(any(w in s.split() for w in ("ka", "lo", "mi", "nu")) for s, _ in plain)
    assert counts[0] == 0 and counts[2] == able
    assert abs(counts[1] / able - 0.5) < 0.1
    assert all(h in (p, w) for (h, _), (p, _), (w, _) in zip(half, plain, whole, strict=True))
    assert max(s.count("<term>") for s, _ in pairs(1, 1)) == 1


def test_they_keep_their_contracts(corpus):
    files = [f"root={corpus}", "source=train.xx", "target=train.en", "glossary=glossary.tsv"]
    testing.check_corpus("glossary", *files)
    testing.check_task("terminology")
    english = corpus / "english.tsv"
    english.write_text("ka\tone | two\nmi\tthree\n")
    testing.check_metric("terminology_accuracy", f"glossary={english}")


def test_a_trained_run_reads_its_input_with_the_tags_of_a_glossary(corpus):
    """What it makes of them after a real training is measured in benchmarks/results/plugins.md."""
    data = (
        "data.train=[{name: glossary, source: train.xx, target: train.en, glossary: glossary.tsv}]"
    )
    run = testing.train(
        corpus, data, "task.name=terminology", "tokenizer.vocab_size=27", "data.test=[]",
        "tokenizer.user_symbols=[<term>, <target>, </term>]",
    )  # fmt: skip
    (corpus / "new.tsv").write_text("pe\tsix\n")
    plain = mtplug.load(run, device="cpu")
    asked = mtplug.load(run, device="cpu", overrides=[f"task.glossary={corpus}/new.tsv"])
    text, tags = "ka pe lo", "ka <term> pe <target> six </term> lo"
    assert asked.task.input_text(text) == asked.task.input_text(tags) == tags
    tokens = plain.task.source_tokenizer
    pieces = [t.strip("▁") for t in tokens.tokens(tokens.encode([tags])[0])]
    assert [p for p in pieces if p in TAGS] == ["<term>", "<target>", "</term>"]
    found, wanted, without = (
        t.score([given], ["one six two"])[0].token_scores
        for t, given in ((asked, text), (plain, tags), (plain, text))
    )
    assert found == wanted != without
    # What the glossary puts into a text is no word of it.
    (ids,) = tokens.encode(["ka <term> pe <target> one </term> ka"])
    words = source_words(asked.task, "ka pe ka", [ids])
    pieces = [t.strip("▁") for t in tokens.tokens(ids)]
    assert [(t, n) for t, n in zip(pieces, words, strict=True) if t] == [
        ("ka", 0), ("<term>", -1), ("pe", 1), ("<target>", -1), ("one", -1), ("</term>", -1), ("ka", 2),
    ]  # fmt: skip


def test_a_glossary_for_translating_is_refused_in_training(corpus):
    settings = ("task.name=terminology", f"task.glossary={corpus}/glossary.tsv")
    with pytest.raises(mtplug.UserError, match=r"task\.glossary: is for translating"):
        testing.train(corpus, *settings)


@pytest.mark.parametrize(("symbols", "told"), [("[]", 1), (f"[{', '.join(TAGS)}]", 0)])
def test_tags_that_the_vocabulary_lacks_are_told(corpus, symbols, told):
    """Each was <unk>, and the only advice was a larger character_coverage."""
    settings = ["task.name=terminology", f"tokenizer.user_symbols={symbols}", f"data.root={corpus}",
                "tokenizer.vocab_size=23", f"run_dir={corpus}/run"]  # fmt: skip
    run, _ = load_config(corpus / "run.yaml", settings)
    lines = []
    prepare(run, lines.append)
    said = [line for line in lines if "lacks <term> <target> </term>" in line]
    assert len(said) == told
    assert not told or "user_symbols='[<term>, <target>, </term>]'" in said[0]


def test_a_glossary_is_refused_for_a_run_whose_vocabulary_lacks_the_tags(corpus):
    """Its model read <unk> in their place, and translated the text worse without a word."""
    testing.train(corpus, "task.name=terminology", "tokenizer.vocab_size=23", "training.max_updates=1",
                  f"run_dir={corpus}/run")  # fmt: skip
    glossary = f"task.glossary={corpus}/glossary.tsv"
    with pytest.raises(mtplug.UserError, match=r"task\.glossary: .* lacks <term> <target> </term>"):
        mtplug.load(corpus / "run", device="cpu", overrides=[glossary])


def accuracy(glossary):
    from mtplug.config import component_from_overrides

    made = component_from_overrides("metrics", "terminology_accuracy", [f"glossary={glossary}"])
    return made.build("de")


def test_accuracy_counts_terms_of_the_source(tmp_path, glossary):
    metric = accuracy(tmp_path / "glossary.tsv")
    sources = ["A dog and a hot dog.", "A dog.", "", "A cat."]
    hypotheses = ["Ein hunde und ein Würstchen.", "Ein Hündchen.", "", "Ein Hund."]
    score = metric.score(hypotheses, [[""] * 4], sources)
    assert score.value == pytest.approx(100 * 2 / 3)  # two of "dog", "hot dog", "dog"
    assert "2 of 3 terms" in score.text
    assert metric.score([], [[]], []).value == 0
    with pytest.raises(mtplug.UserError, match="needs the source text"):
        metric.score(hypotheses, [[""] * 4])


@pytest.mark.parametrize(
    "text", ["a C++ <term> dog <target> C++ </term> runs, C++", "a <term>dog<target>dog</term> C++"]
)
def test_accuracy_looks_for_no_terms_in_tags(tmp_path, glossary, text):
    plain = "a C++ dog runs, C++" if "runs" in text else "a dog C++"
    assert untagged(text) == plain
    assert untagged(tagged(plain, glossary.terms(plain))) == plain
    metric = accuracy(tmp_path / "glossary.tsv")
    tags, without = (metric.score(["Hund C++"], [[""]], [source]) for source in (text, plain))
    assert tags == without and tags.value == 100


def test_accuracy_in_training_is_of_the_sentences_that_were_translated(corpus):
    """It read one file of sources: scoring the test set failed after the whole training, and `max_sentences` at once."""
    for side in ("xx", "en"):  # between documents
        lines = (corpus / f"valid.{side}").read_text().split("\n")
        (corpus / f"valid.{side}").write_text("\n".join([*lines[:7], "", *lines[7:]]))
    tags = "{name: glossary, source: test.xx, target: test.en, glossary: glossary.tsv, share: 1}"
    of = f"glossary: {corpus}/glossary.tsv, source: {corpus}/valid.xx"  # as configurations had it
    metrics = f"[{{name: terminology_accuracy, {of}}}]"
    run = testing.train(
        corpus, "task.name=terminology", f"data.test={tags}", f"validation.metrics={metrics}",
        "validation.max_sentences=7", "logging.samples=7", "validation.best_metric=loss",
        "tokenizer.vocab_size=27", "tokenizer.user_symbols=[<term>, <target>, </term>]", updates=60,
    )  # fmt: skip
    told = [e for e in read_events(run / "metrics.jsonl") if e["event"] in ("validation", "test")]

    def expected(pairs):
        due = [
            (LEXICON[w], h) for s, h in pairs for w in s.split() if w in ("ka", "lo", "mi", "nu")
        ]
        return 100 * sum(word in h.split() for word, h in due) / len(due)

    *_, last = sorted((run / "samples").glob("valid-*.txt"))
    samples = read_samples(last)
    assert len(samples) == 7
    found, tested = (e["scores"]["terminology_accuracy"] for e in told[-2:])
    assert found == pytest.approx(expected([(s, h) for s, _, h in samples])) and found > 0
    sources, hypotheses = (
        f.read_text().split("\n") for f in (corpus / "test.xx", run / "samples" / "test-test.txt")
    )
    assert tested == pytest.approx(expected(zip(sources, hypotheses, strict=True))) and tested > 0


def test_accuracy_of_files_is_scored_and_tested(tmp_path, glossary, capsys, monkeypatch):
    monkeypatch.setattr(plugins, "_current", plugins._current)
    texts = {"in": ["a dog"] * 8, "out": ["ein Hund"] * 8, "base": ["eine Katze"] * 8}
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    given = "{name: terminology_accuracy, glossary: glossary.tsv}"
    line = ["out", "--ref", "base", "--metrics", given, "--baseline", "base", "--samples", "20"]
    assert score.main([*line, "--source", "in", "--json", "--compare", "page.html"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["score"], row["baseline"]) == (100, 0) and row["p"] is not None
    assert "terminology_accuracy ↑ by length" in (tmp_path / "page.html").read_text()
    assert score.main(line) == 2
    assert "needs the source text: --source FILE" in capsys.readouterr().err


def test_the_command_writes_a_glossary_that_can_be_read(tmp_path, capsys):
    (tmp_path / "a").write_text("red dog\nblue dog\nred cat\n" * 5)
    (tmp_path / "b").write_text("roter Hund\nblauer Hund\nrote Katze\n" * 5)
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    (tmp_path / "made.tsv").write_text(capsys.readouterr().out)
    assert Glossary.read(tmp_path / "made.tsv").terms("a dog")[0].target == "Hund"
    assert main([str(tmp_path / "a"), "nowhere"]) == 2


def test_the_command_reads_files_as_others_do(tmp_path, capsys):
    (tmp_path / "a.gz").write_bytes(gzip.compress("\ufeffred dog\r\na\rb\n".encode() * 5))
    (tmp_path / "b").write_text("roter Hund\nc\n" * 5)
    assert main([str(tmp_path / "a.gz"), str(tmp_path / "b")]) == 0
    assert "dog\t" in capsys.readouterr().out
    (tmp_path / "b").write_bytes(b"roter \xff\n")
    assert main([str(tmp_path / "a.gz"), str(tmp_path / "b")]) == 2
    assert "b:1: not valid UTF-8" in capsys.readouterr().err


def test_filters_and_metrics_do_not_look_at_tags(tmp_path):
    """Of a filter for lengths hardly a tagged sentence was left, and COMET read tags and translations as words."""
    testing.write_corpus(tmp_path)
    (tmp_path / "terms.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in LEXICON.items()))
    glossary = "data.train={name: glossary, source: train.xx, target: train.en, glossary: terms.tsv, share: 1, prefix: <a>}"
    words = ("tokenizer={name: words, vocab_size: 0}", "data.filters={max_length: 5, max_ratio: 2}")

    def kept(name, *settings):
        here = (f"run_dir={tmp_path / name}", f"data.root={tmp_path}", *words)
        return prepare(load_config(tmp_path / "run.yaml", [*here, *settings])[0], print)

    task = kept("tagged", "task.name=terminology", glossary)
    pairs = list(task.views[0])
    assert sum("<term>" in source for source, _ in pairs) == len(pairs)
    assert [(task.wording(source, "<a>"), target) for source, target in pairs] == list(
        kept("plain").views[0]
    )
