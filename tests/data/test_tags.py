"""Tags say which language is written."""

import pytest

import mtplug
from mtplug.cli.evaluate import main as evaluate
from mtplug.cli.train import main as train
from mtplug.cli.translate import main as translate
from mtplug.data.tags import Tagged
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
