"""Tags say which language is written."""

import json

import pytest

import mtplug
from mtplug.cli.evaluate import main as evaluate
from mtplug.cli.train import main as train
from mtplug.cli.translate import main as translate
from mtplug.data.merged_words import Words
from mtplug.data.tags import Tagged, without_tag
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer():
    lines = [text for pair in tiny.pairs(300, 0) for text in pair]
    return SentencePiece.train(SentencePieceConfig(vocab_size=40), lines, "joint")


def test_tag_is_one_token_in_front_of_the_same_subwords(tokenizer):
    tagged = Tagged(tokenizer, ["fr", "de"])
    plain = tokenizer.encode(["ka lo", "ka lo", "<2es> ka", "ka <2de>", ""])
    given = ["<2de> ka lo", " <2fr>  ka lo", "<2es> ka", "ka <2de>", "<2de>"]
    assert tagged.encode(given) == [[40, *plain[0]], [41, *plain[1]], *plain[2:4], []]
    assert len(tagged) == 42 and tagged.tokens([40, 41, 5])[:2] == ["<2de>", "<2fr>"]
    assert tagged.decode(tagged.encode(given[:2])) == ["ka lo", "ka lo"]
    whole = Tagged(Words(["<pad>", "</s>", "<unk>", "ka"]), ["de"])
    assert "cut into subwords" in whole.unfit(["<2de> ka@@ lo"]) and not tagged.unfit(["ka@@ lo"])


WAYS = """
task: {language_tags: true}
data:
  train:
    - {source: train.xx, target: train.en, source_lang: xx, target_lang: en}
    - {source: train.en, target: train.xx, source_lang: en, target_lang: xx, weight: 0.5}
  valid:
    - {source: valid.xx, target: valid.en, source_lang: xx, target_lang: en}
    - {source: valid.en, target: valid.xx, source_lang: en, target_lang: xx}
  test:
    - {source: test.xx, target: test.en, source_lang: xx, target_lang: en}
    - {source: test.en, target: test.xx, source_lang: en, target_lang: xx}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tags")
    tiny.write_corpus(folder)
    (folder / "both.yaml").write_text("extends: run.yaml\n" + WAYS)
    from mtplug.cli.train import main

    given = [str(folder / "both.yaml"), f"run_dir={folder / 'run'}", f"data.root={folder}"]
    assert main([*given, "training.max_updates=300", "validation.every_updates=300"]) == 0
    return folder / "run"


def translated(capsys, *args):
    assert translate([*map(str, args)]) == 0
    return capsys.readouterr().out.splitlines()


def test_one_model_writes_both_languages(run, capsys, tmp_path):
    """Which one is decided by the tag alone: words of the other language are among neither's output."""
    known = {"xx": set(tiny.LEXICON), "en": set(tiny.LEXICON.values())}
    sources = list(tiny.pairs(12, 77))
    for side, language in ((0, "en"), (1, "xx")):
        (tmp_path / "in").write_text("".join(pair[side] + "\n" for pair in sources))
        found = translated(capsys, run, "--input", tmp_path / "in", "--target-lang", language)
        words = [word for line in found for word in line.split()]
        share = sum(word in known[language] for word in words) / len(words)
        assert share > 0.9, (language, found)
        by_hand = tmp_path / "tagged"
        by_hand.write_text("".join(f"<2{language}> {pair[side]}\n" for pair in sources))
        assert translated(capsys, run, "--input", by_hand) == found


def test_default_is_the_language_of_the_task(run):
    plain = mtplug.load(run)
    told = mtplug.load(run)
    told.target_lang = "en"
    assert plain.translate(["ka lo"]) == told.translate(["ka lo"])


def test_language_that_the_run_does_not_write_is_refused(run, capsys, tmp_path):
    (tmp_path / "in").write_text("ka\n")
    assert translate([str(run), "--input", str(tmp_path / "in"), "--target-lang", "de"]) == 2
    assert "target language de is not among en, xx" in capsys.readouterr().err


def test_a_tag_of_no_language_is_the_error_of_its_line(run, capsys, tmp_path):
    """It was translated into the language of the task, tag and all."""
    (tmp_path / "in").write_text("<2fr> ka\nka lo\n<2en> ka lo\n<25> ka\n")
    assert translate([str(run), "--input", str(tmp_path / "in")]) == 2
    found = capsys.readouterr()
    lines = found.out.split("\n")
    assert len(lines) == 5 and not lines[0] and lines[1] == lines[2] and lines[3]
    assert "1 line (1): not translated" in found.err
    assert "has no language tag <2fr>; known: en, xx" in found.err


def test_a_line_of_json_says_its_language(run, capsys, tmp_path):
    """It was handed through unread, and the line translated into the language of the task."""
    given = [
        {"source": "one two", "target_lang": "xx", "source_lang": "en"},
        {"source": "ka lo"},
        {"source": "<2en> ka lo", "target_lang": "xx"},
        {"source": "ka", "target_lang": "fr"},
        {"source": "ka", "target_lang": None},
    ]
    file, options = tmp_path / "in", ("--input-format", "jsonl", "--format", "jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert translate([str(run), "--input", str(file), *options]) == 2
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    texts = ["<2xx> one two", "<2en> ka lo", "<2en> ka lo", "<2en> ka"]
    right = [row["text"] for row in rows if "text" in row]
    assert right == mtplug.load(run).translate(texts) and len(set(right)) == 3
    assert rows[0]["source"] == "one two" and rows[0]["target_lang"] == "xx"
    assert rows[3]["error"].startswith("target language fr is not among en, xx")
    assert "1 line (4): not translated" in told.err
    # As the command says it, unless the line does.
    assert translate([str(run), "--input", str(file), *options, "--target-lang", "xx"]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (second,) = mtplug.load(run).translate(["<2xx> ka lo"])
    assert [row.get("text") for row in rows[:3]] == [right[0], second, right[2]]


def test_each_direction_is_scored_by_itself(run, capsys):
    assert evaluate([str(run), "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert "test.xx-en: " in out and "test.en-xx: " in out
    assert (run / "samples" / "test-test.xx-en.txt").is_file()


def test_several_target_languages_without_tags_are_refused(run):
    from mtplug.config import load_config

    folder = run.parent
    given = ["task.language_tags=false", f"data.root={folder}", f"run_dir={folder / 'no'}"]
    made, _ = load_config(folder / "both.yaml", given)
    with pytest.raises(UserError, match=r"2 target languages \(en, xx\); set task.language_tags"):
        made.task.build().pairs(made, "valid")


@pytest.mark.parametrize("given", ["target_lang: fr", ""])
def test_held_out_text_in_a_language_that_is_not_learnt_is_refused(run, capsys, given):
    folder = run.parent
    valid = f"data.valid=[{{source: valid.xx, target: valid.en, source_lang: xx, {given}}}]"
    line = [str(folder / "both.yaml"), f"run_dir={folder / 'other'}", f"data.root={folder}", valid]
    assert train([*line, "task.target_lang=''"] if not given else line) == 2
    assert "is none of those that the run writes (" in capsys.readouterr().err


def test_validation_scores_each_corpus_in_its_language(tmp_path, monkeypatch):
    """It was one score of all of them, cut into words as the task's own language is."""
    import sacrebleu

    from mtplug.training.trackers import read_events
    from mtplug.translator import Translator

    tiny.write_corpus(tmp_path)
    references = {
        "en": ["a b c d e", "b b c d e f"],
        "zh": ["\u6211\u5728\u5bb6\u91cc\u5403\u996d", "\u4f60\u5728\u5bb6\u91cc\u770b\u4e66"],
    }
    written = {
        "en": ["a b c d f", "b b c d e g"],
        "zh": ["\u6211\u5728\u5bb6\u91cc\u559d\u6c34", "\u4f60\u5728\u5bb6\u91cc\u770b\u62a5"],
    }
    sources = {"en": ["ka", "lo"], "zh": ["mi", "ti"]}
    corpora = []
    for one in references:
        (tmp_path / f"v-{one}.xx").write_text("\n".join(sources[one]) + "\n")
        (tmp_path / f"v-{one}.{one}").write_text("\n".join(references[one]) + "\n")
        corpora.append(
            f"{{source: v-{one}.xx, target: v-{one}.{one}, source_lang: xx, target_lang: {one}}}"
        )
    train_corpora = ["{source: train.xx, target: train.en, source_lang: xx, target_lang: en}",
                     "{source: train.en, target: train.xx, source_lang: en, target_lang: zh}"]  # fmt: skip
    known = {s: w for one in sources for s, w in zip(sources[one], written[one], strict=True)}
    monkeypatch.setattr(
        Translator, "translate", lambda self, texts: [known[t.split()[-1]] for t in texts]
    )
    run = tiny.train(tmp_path, "run", "training.max_updates=2", "data.test=null", "task={language_tags: true}", "logging.trackers=[jsonl, console, report]",
                     f"data.train=[{','.join(train_corpora)}]", f"data.valid=[{','.join(corpora)}]")  # fmt: skip
    (event,) = (e for e in read_events(run / "metrics.jsonl") if e["event"] == "validation")
    truth = {
        f"v-{one}.xx-{one}": sacrebleu.corpus_bleu(
            written[one], [references[one]], tokenize=cut
        ).score
        for one, cut in (("en", "13a"), ("zh", "zh"))
    }
    assert {label: own["bleu"] for label, own in event["corpora"].items()} == pytest.approx(truth)
    assert (
        event["scores"]["bleu"] == pytest.approx(sum(truth.values()) / 2)
        and min(truth.values()) > 10
    )
    assert "Its corpora at update 2" in (run / "report.html").read_text()


def tuned(run, name, *settings):
    folder = run.parent
    path = folder / "tune.yaml"
    text = (folder / "run.yaml").read_text().split("\n")
    groups = ("task", "tokenizer", "architecture", "data")
    path.write_text("\n".join(line for line in text if not line.startswith((*groups, " "))))
    corpora = "{source: %s.xx, target: %s.en, source_lang: xx, target_lang: en}"
    data = f"data={{root: {folder}, train: {corpora % ('train', 'train')}, valid: {corpora % ('valid', 'valid')}}}"
    line = [str(path), data, f"run_dir={folder / name}", "training.max_updates=2", *settings]
    return train(line), folder / name


def test_a_base_keeps_its_tags_when_one_direction_is_tuned(run, capsys, tmp_path):
    """The model of the new run was as large as its own corpora have tags."""
    (tmp_path / "in").write_text("ka lo\nmi\n")
    before = translated(capsys, run, "--input", tmp_path / "in", "--target-lang", "xx")
    for name, more in (
        ("full", ["optimizer.lr=1e-9"]),
        ("lora", ["peft=lora", "optimizer.lr=1e-9"]),
    ):
        status, made = tuned(run, name, f"training.finetune_from={run}", *more)
        assert status == 0
        assert translated(capsys, made, "--input", tmp_path / "in", "--target-lang", "xx") == before


def test_a_dry_run_has_the_tags_of_the_base(run, capsys):
    """It made a model with the tags of its own corpora, which the base's weights did not fit."""
    assert tuned(run, "dry", f"training.finetune_from={run}", "--dry-run")[0] == 0
    assert "configuration is ready" in capsys.readouterr().err


def test_a_tokenizer_that_is_taken_over_keeps_its_tags(run, capsys, tmp_path):
    """Starting from weights with one direction's data forgot how to ask for the others."""
    (tmp_path / "in").write_text("ka lo\nmi\n")
    before = translated(capsys, run, "--input", tmp_path / "in", "--target-lang", "xx")
    corpus = "{source: train.xx, target: train.en, source_lang: xx, target_lang: en}"
    made = run.parent / "init"
    line = [
        str(run.parent / "run.yaml"),
        f"data.root={run.parent}",
        f"run_dir={made}",
        "data.valid=null",
        "data.test=null",
    ]
    line += [
        "task.language_tags=true",
        f"data.train={corpus}",
        f"training.init_from={run}",
        f"tokenizer.model={run}",
    ]
    assert train([*line, "training.max_updates=2", "optimizer.lr=1e-9"]) == 0
    assert translated(capsys, made, "--input", tmp_path / "in", "--target-lang", "xx") == before


def test_a_language_that_the_base_does_not_write_is_refused(run, capsys):
    """It took the row of another language's tag."""
    corpus = "{source: train.xx, target: train.en, source_lang: xx, target_lang: fr}"
    status, made = tuned(
        run, "french", f"training.finetune_from={run}", f"data.train={corpus}", "data.valid=null"
    )
    assert status == 2 and not made.exists()
    said = capsys.readouterr().err
    assert (
        f"target_lang fr: the base {run} writes en, xx;" in said and "training.init_from=" in said
    )


def test_only_a_tag_in_front_is_taken_off():
    assert without_tag(" <2de> A <2b> c") == "A <2b> c"
    assert without_tag("A <2b> c") == "A <2b> c"


def test_pieces_of_a_long_text_are_joined_as_the_language_of_its_line_has_it(tmp_path):
    """It was as that of `target_lang` has it: `<2zh>` gave text with blanks in it, `<2en>` words without any between."""
    tiny.write_corpus(tmp_path)
    (tmp_path / "both.yaml").write_text(
        "extends: run.yaml\n" + WAYS.replace("_lang: xx", "_lang: zh")
    )
    given = [str(tmp_path / "both.yaml"), f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path}"]
    fast = ["training.max_updates=2", "validation.every_updates=2", "data.test=null"]
    assert train([*given, *fast]) == 0
    cut = ["data.on_long=split", "data.max_length=5", "search.min_length=2", "search.beam=1"]
    translator = mtplug.load(tmp_path / "run", overrides=cut)
    long = "ka lo mi nu " * 4
    expected = []
    for translator.target_lang in ("zh", "en"):
        (best,) = translator.nbest([long])[0]
        assert len(best.parts) > 2
        pieces = translator.task.target_tokenizer.decode(best.parts)
        expected.append(("" if translator.target_lang == "zh" else " ").join(pieces))
        assert best.text == expected[-1]
    tagged = [f"<2{language}> {long}" for language in ("zh", "en")]
    for translator.target_lang in ("", "zh", "en"):
        assert translator.translate(tagged) == expected
