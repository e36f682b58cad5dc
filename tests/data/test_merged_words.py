"""Tokenizer `words`: merge operations by hand, and against subword-nmt's own cuts (in tests/golden/fairseq)."""

import json
import math
import pickle
from collections import Counter
from pathlib import Path

import pytest

import mtplug
from mtplug import testing
from mtplug.config import load_config
from mtplug.data.merged_words import Words, WordsConfig, WordsFactory
from mtplug.exporting.marian_model import MarianTokenizer
from mtplug.training.run import prepare
from tests import tiny

GOLDEN = Path(__file__).parents[1] / "golden" / "fairseq" / "codes"
PIECES = ["<pad>", "</s>", "<unk>"]


@pytest.mark.parametrize(("codes", "cut"), [
    # The third operation joins what the first two made; "w e" comes too late to split them again.
    ("#version: 0.2\ne s\nes t</w>\nl o\nw e\n", {"lowest": "lo@@ w@@ est", "west": "w@@ est", "we": "w@@ e"}),
    # fastBPE's counts stand behind
    ("e s 9\nes t</w> 9\nl o 7\n", {"lowest": "lo@@ w@@ est", "lo": "l@@ o", "es": "e@@ s"}),
    # In the first format the end of a word is a symbol of its own, which merges like others.
    ("e s\nes t\nest </w>\nl o\n", {"lowest": "lo@@ w@@ est", "lo": "lo", "estes": "est@@ es"}),
    # all places of a pair at once, from the left
    ("#version: 0.2\na a\naa aa\n", {"aaaaab": "aaaa@@ a@@ b", "aaa": "aa@@ a", "a": "a"}),
])  # fmt: skip
def test_words_are_cut_by_the_earliest_operation_first(codes, cut):
    words = Words(PIECES, codes)
    for word, wanted in cut.items():
        assert words.cut(word) == wanted.split(), word
    assert words.cut("  we  lo\t") == words.cut("we") + words.cut("lo")


def test_cuts_are_those_of_subword_nmt():
    words = Words(PIECES, (GOLDEN / "codes").read_text())
    rows = json.loads((GOLDEN / "expected.json").read_text())
    assert len(rows) == 20
    for row in rows:
        assert words.cut(row["source"]) == row["pieces"]


def test_text_comes_back_and_what_is_unknown_is_marked(tmp_path):
    words = Words([*PIECES, "lo@@", "w", "est"], "#version: 0.2\nl o\ne s\nes t</w>\n")
    assert words.encode(["low est", "lo", ""]) == [[3, 4, 5], [2, 2], []]
    assert words.decode([[3, 4, 5, 1], [3, 2, 0], []]) == ["low est", "lo<unk>", ""]
    assert words.encode(["low </s> <pad> est"]) == [
        [3, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 5]
    ]  # no end within
    whole = Words([*PIECES, "lo@@", "w"])  # cut before it came here
    assert whole.decode(whole.encode(["lo@@ w"])) == ["lo@@ w"]
    with pytest.raises(mtplug.UserError, match="codes:3: expected two symbols"):
        Words(PIECES, "#version: 0.2\na b\na\n")
    with pytest.raises(mtplug.UserError, match="has no words of side joint"):
        Words.load(tmp_path, "joint")


@pytest.mark.parametrize("joint", ["true", "false"])
def test_words_keep_the_contract(joint):
    testing.check_tokenizer("words", f"joint={joint}")
    testing.check_tokenizer("words", f"joint={joint}", f"codes={GOLDEN}/codes")
    testing.check_tokenizer("words", f"joint={joint}", f"codes={GOLDEN}/codes", "sampling=0.3")
    testing.check_tokenizer("words", "vocab_size=9", f"joint={joint}", lossless=False)


def test_a_run_of_words(tmp_path, capsys):
    """Its folder holds the codes, so that it translates without the file."""
    from mtplug.cli.train import main

    tiny.write_corpus(tmp_path)
    codes = tmp_path / "my.codes"
    codes.write_text((GOLDEN / "codes").read_text())
    text = (tmp_path / "run.yaml").read_text().split("\n")
    at = next(i for i, line in enumerate(text) if line.startswith("tokenizer"))
    text[at] = f"tokenizer: {{name: words, codes: {codes}}}"
    (tmp_path / "run.yaml").write_text("\n".join(text))
    settings = ("training.max_updates=3", "data.test=null")
    run = tiny.train(tmp_path, "run", *settings)
    codes.unlink()
    assert mtplug.load(run).translate(["ka lo"])
    assert main(tiny.arguments(tmp_path, "other", *settings)) == 2
    assert "my.codes is no file" in capsys.readouterr().err


@pytest.mark.parametrize(("lines", "said"), [
    (["lo@@ w er", "low"], "joint text is cut into subwords already.*sed 's/@@ //g'.*tokenizer.codes"),
    (["▁lo w ▁er", "▁low"], "cut into subwords already.*sed 's/ //g; s/▁/ /g'.*model: FILE"),
])  # fmt: skip
def test_text_that_is_cut_into_subwords_is_refused(lines, said):
    with pytest.raises(mtplug.UserError, match=said):
        WordsFactory(WordsConfig()).train(lines, "joint")
    rare = ["low low"] * 100 + ["me@@ home"]
    assert "me@@" in WordsFactory(WordsConfig()).train(rare, "joint").pieces
    patch = ["@@ -1,3 +1,4 @@"] * 3
    assert "@@" in WordsFactory(WordsConfig()).train(patch, "joint").pieces


@pytest.mark.parametrize("lines", [["lo@@ w er", "low"], ["▁lo w ▁er", "▁low"]])
def test_cut_text_is_refused_beside_codes_too(lines):
    """It was cut again, into pieces such as `@@@ @@@`, without a word."""
    factory = WordsFactory(WordsConfig(codes=str(GOLDEN / "codes")))
    with pytest.raises(mtplug.UserError, match="the joint text is cut into subwords already"):
        factory.train(lines, "joint")
    factory.train(["low low"] * 100 + ["me@@ home"], "joint")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A corpus, the same cut by `codes`, and a run of words with these codes."""
    folder = tmp_path_factory.mktemp("cut")
    tiny.write_corpus(folder)
    words = Words(PIECES, (GOLDEN / "codes").read_text())
    for split in ("train", "valid", "test"):
        for side in ("xx", "en"):
            lines = (folder / f"{split}.{side}").read_text().splitlines()
            text = "".join(" ".join(words.cut(line)) + "\n" for line in lines)
            (folder / f"{split}.cut.{side}").write_text(text)
    assert "@@ " in text
    tiny.train(folder, "run", CODES, "training.max_updates=2", "data.test=null")
    return folder


CODES = f"tokenizer={{name: words, codes: {GOLDEN}/codes}}"


def test_references_that_are_cut_are_refused(cut):
    settings = [f"data.root={cut}", f"run_dir={cut / 'none'}", CODES]
    valid = "data.valid=[{source: valid.xx, target: valid.en, references: [valid.cut.en]}]"
    run, _ = load_config(cut / "run.yaml", [*settings, valid])
    with pytest.raises(mtplug.UserError, match=r"data\.valid\.0: .*is cut into subwords already"):
        prepare(run, print)


def cut_split(split):
    return f"data.{split}=[{{source: {split}.xx, target: {split}.cut.en}}]"


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("tokenizer", [CODES, "tokenizer={name: words}"])
def test_cut_text_of_any_split_stops_a_run_before_anything_is_written(cut, split, tokenizer):
    """Only training text was looked at, and not where there were codes."""
    settings = [f"data.root={cut}", f"run_dir={cut / 'none'}", tokenizer, cut_split(split)]
    run, _ = load_config(cut / "run.yaml", settings)
    said = rf"data\.{split}\.0: .*{split}\.cut\.en: the joint text is cut into subwords already; join them"
    with pytest.raises(mtplug.UserError, match=said):
        prepare(run, print)
    assert not (cut / "none").exists()


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("of", ["training.finetune_from", "tokenizer.model"])
def test_cut_text_is_refused_where_the_tokenizer_is_another_run_s(cut, split, of, tmp_path):
    settings = [f"data.root={cut}", f"run_dir={tmp_path / 'run'}", f"{of}={cut / 'run'}"]
    named = "tokenizer={name: words}" if of == "tokenizer.model" else "data.test=null"
    run, _ = load_config(cut / "run.yaml", [named, *settings, cut_split(split)])
    with pytest.raises(mtplug.UserError, match=rf"data\.{split}\.0: .*is cut into subwords"):
        prepare(run, print)


@pytest.mark.parametrize(("of", "settings", "said"), [
    ("run", "", "name=words"),
    ("run", "{name: words, joint: false}", "joint=true"),
    ("tiny", "{name: words}", "name=sentencepiece"),
    ("tiny", "{joint: false}", "joint=true"),
    ("tiny", "{name: words, joint: false}", "name=sentencepiece and joint=true"),
])  # fmt: skip
def test_another_run_s_tokenizer_of_other_settings_is_named(
    cut, tiny_run, of, settings, said, tmp_path
):
    """It said that the other run's folder was not complete."""
    given = tiny_run if of == "tiny" else cut / "run"
    own = [f"tokenizer={settings}"] if settings else []
    overrides = [*own, f"tokenizer.model={given}", f"run_dir={tmp_path / 'run'}", f"data.root={cut}",
                 "architecture.tie_embeddings=decoder"]  # fmt: skip
    run, _ = load_config(cut / "run.yaml", overrides)
    with pytest.raises(
        mtplug.UserError, match=rf"tokenizer of {given} was made with {said}; set the same"
    ):
        prepare(run, print)


def test_a_run_begun_with_cut_text_goes_on_and_is_told(cut, tmp_path, capsys, monkeypatch):
    """As an earlier version could begin it."""
    settings = (f"run_dir={tmp_path / 'run'}", CODES, cut_split("valid"))
    with monkeypatch.context() as earlier:
        for of in (Words, WordsFactory):
            earlier.setattr(of, "unfit", lambda self, texts: "")
        tiny.train(cut, "old", *settings, "training.max_updates=2", "data.test=null")
    capsys.readouterr()
    tiny.train(cut, "old", *settings, "training.max_updates=3", "data.test=null")
    assert "valid.cut.en: the joint text is cut into subwords" in capsys.readouterr().err


def test_cut_text_is_not_scored_by_evaluate(cut, capsys):
    from mtplug.cli.evaluate import main

    assert main([str(cut / "run"), cut_split("test"), "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert "the target text is cut into subwords already; join them" in told
    assert len(told.strip().splitlines()) == 1


def test_cut_text_is_told_by_translate(cut, capsys):
    """Once for all lines of input; not for a word that happens to end so."""
    from mtplug.cli.translate import main

    note = "cut into subwords already; join them (sed 's/@@ //g')"
    plain, pieces = ([str(cut / f"test{c}.{side}") for side in ("xx", "en")] for c in ("", ".cut"))
    for given, said in (
        (["--input", pieces[0]], 1),
        (["--input", pieces[0], "--score", pieces[1]], 1),
        (["--input", plain[0], "--score", pieces[1]], 1),
        (["--input", plain[0], "--score", plain[1]], 0),
    ):
        assert main([str(cut / "run"), *given, "--device", "cpu"]) == 0
        assert capsys.readouterr().err.count(note) == said, given
    translator = mtplug.load(cut / "run")
    (many,) = {tuple(row[0].notes) for row in translator.nbest(["ka lo mi"] * 99 + ["ka@@ lo"])}
    assert not many
    found = translator.nbest(["ka lo", "ka@@ lo"])
    assert [row[0].notes for row in found] == [[], [note]]


def test_text_for_a_vocabulary_of_pieces_without_codes_comes_cut():
    """As of a model of fairseq that was imported without its codes."""
    pieces = Words([*PIECES, "lo@@", "w", "est"])
    assert not pieces.unfit(["lo@@ w"]) and pickle.loads(pickle.dumps(pieces)).tokens([3])
    whole, codes = Words([*PIECES, "low"]), Words([*PIECES, "lo@@", "w"], "#version: 0.2\nl o\n")
    for words in (whole, codes):
        assert "cut into subwords" in words.unfit(["lo@@ w"]) and not words.unfit(["low", ""])


def test_merges_are_left_out_with_their_probability():
    """Of "a b" and "ab c</w>", each looked at once: nothing is merged with probability p, both with (1 - p)²."""
    p, count = 0.3, 20_000
    words = Words(
        [*PIECES, "a@@", "b@@", "c", "ab@@", "abc"], "#version: 0.2\na b\nab c</w>\n", sampling=p
    )
    assert words.samples and words.decode(words.encode(["abc"])) == ["abc"]
    rows = words.sample(["abc"] * count, list(range(count)))
    assert rows == words.sample(["abc"] * count, list(range(count)))
    assert set(words.decode(rows)) == {"abc"}
    found = Counter(tuple(words.tokens(row)) for row in rows)
    for pieces, share in (
        (("a@@", "b@@", "c"), p),
        (("ab@@", "c"), p * (1 - p)),
        (("abc",), (1 - p) ** 2),
    ):
        assert abs(found[pieces] / count - share) < 4 * math.sqrt(share * (1 - share) / count)


def test_a_given_vocabulary(tmp_path):
    """Of a file, as fairseq's dictionary, of two, or of a run; with the codes that cut its text."""
    (tmp_path / "dict.txt").write_text("<s> 1\n<pad> 1\nlow 7\nlo@@ 5\nw 2\nlow 1\n")
    (tmp_path / "other").write_text("eins\nzwei\n")
    (tmp_path / "codes").write_text("#version: 0.2\nl o\n")
    model, other = str(tmp_path / "dict.txt"), str(tmp_path / "other")
    made = WordsFactory(WordsConfig(model=model, codes=str(tmp_path / "codes"))).train([], "joint")
    assert made.pieces == [*PIECES, "low", "lo@@", "w"] and made.tokens(
        made.encode(["low"])[0]
    ) == ["lo@@", "w"]
    two = WordsFactory(WordsConfig(joint=False, model=model, target_model=other))
    assert two.train([], "source").pieces == [*PIECES, "low", "lo@@", "w"]
    assert two.train([], "target").pieces == [*PIECES, "eins", "zwei"]
    made.save(tmp_path / "run" / "tokenizer", "joint")
    config = WordsConfig(model=str(tmp_path / "run"), sampling=0.5)
    WordsFactory.check_files(config)
    again = WordsFactory(config).train([], "joint")
    assert (again.pieces, again.codes, again.samples) == (made.pieces, made.codes, True)
    with pytest.raises(mtplug.UserError, match=r"one file for two vocabularies.*target_model"):
        WordsFactory.check_files(WordsConfig(joint=False, model=model))
    with pytest.raises(mtplug.UserError, match=r"tokenizer\.model: nowhere is no run"):
        WordsFactory.check_files(WordsConfig(model="nowhere"))
    with pytest.raises(ValueError, match="without `codes`"):
        WordsConfig(sampling=0.1)


def test_symbols_are_never_cut(tmp_path):
    codes = tmp_path / "codes"
    codes.write_text("#version: 0.2\nl o\n")
    config = WordsConfig(codes=str(codes), user_symbols=["<news>", "<bt>"], sampling=1.0)
    made = WordsFactory(config).train(["<news> low", "low"], "joint")
    assert made.pieces == [*PIECES, "<news>", "<bt>", "lo@@", "w"]
    made.save(tmp_path / "run" / "tokenizer", "joint")
    loaded = WordsFactory(config).load(tmp_path / "run" / "tokenizer", "joint")
    for words in (made, loaded, pickle.loads(pickle.dumps(made))):
        (ids,), (drawn,) = words.encode(["<news> low"]), words.sample(["<bt> <news>"], [1])
        assert words.tokens(ids) == ["<news>", "lo@@", "w"] and drawn == [4, 3]
        assert words.decode([ids]) == ["<news> low"]
    # Behind a vocabulary that is given, whose pieces keep their ids.
    again = WordsConfig(model=str(tmp_path / "run"), user_symbols=["<news>", "<x>"])
    taken = WordsFactory(again).train([], "joint")
    assert taken.pieces == [*made.pieces, "<x>"] and taken.cut("<bt> <x>") == ["<bt>", "<x>"]
    (tmp_path / "dict.txt").write_text("low 7\n<news> 5\n")
    given = WordsConfig(model=str(tmp_path / "dict.txt"), user_symbols=["<news>", "<x>"])
    assert WordsFactory(given).train([], "joint").pieces == [*PIECES, "low", "<news>", "<x>"]
    small = WordsConfig(vocab_size=4, user_symbols=["<news>", "<x>"])
    with pytest.raises(mtplug.UserError, match="no room for 2 symbols"):
        WordsFactory(small).train(["low"], "joint")
    with pytest.raises(ValueError, match="'two words' is not one word"):
        WordsConfig(user_symbols=["two words"])


@pytest.mark.parametrize("content", ["{}", "5", '"abc"', "[" * 100_000])
def test_files_of_a_vocabulary_that_are_no_lists_are_told(tmp_path, content):
    """An empty mapping was a vocabulary of no pieces."""
    Words([*PIECES, "a", "b"], symbols=["a"]).save(tmp_path, "joint")
    whole = (tmp_path / "joint.symbols.json").read_text()
    for name in ("symbols", "pieces"):
        (tmp_path / f"joint.{name}.json").write_text(content)
        with pytest.raises(mtplug.UserError, match=rf"joint\.{name}\.json is damaged"):
            Words.load(tmp_path, "joint")
        (tmp_path / "joint.symbols.json").write_text(whole)
    with pytest.raises(mtplug.UserError, match=r"joint\.pieces\.json is damaged"):
        MarianTokenizer.load(tmp_path, "joint")
