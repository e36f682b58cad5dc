"""mtplug-translate where a model has fewer positions than a text has tokens."""

import json
import math

import pytest

import mtplug
from mtplug import testing
from mtplug.cli import translate
from tests.cli.test_translate import answers

SMALL = "dim: 16, ffn_dim: 16, heads: 2, position: {name: learned, max_positions: 9}"
LM = (
    "task={name: language_modeling, target_lang: en}",
    "data={train: {target: train.en}, valid: {target: valid.en}, test: {target: test.en}, workers: 1}",
    "tokenizer.vocab_size=13",
    "validation.best_metric=loss",
    f"architecture={{name: transformer_lm, layers: 1, {SMALL}}}",
    "data.max_length=8",
)


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("positions")
    made = f"architecture={{encoder_layers: 1, decoder_layers: 1, {SMALL}}}"
    return testing.train(folder, made, "data.max_length=8", updates=2, name="run")


@pytest.fixture(scope="module")
def lm(translator):
    folder = translator.parent
    return testing.train(folder, *LM, f"data.root={folder}", updates=2, name="lm")


def test_a_beginning_that_is_too_long_is_told_and_the_others_are_continued(lm, tmp_path, capsys):
    """It ended the command, and nothing of its chunk was answered."""
    text = "one two\n" + "one " * 9 + "\n" + "two " * 8 + "\n"
    code, lines, error = answers(lm, tmp_path, capsys, text, "--format", "jsonl")
    rows = [json.loads(line) for line in lines]
    assert code == 2 and rows[0]["text"].startswith("one two")
    assert "its prefix has 9 tokens, and the model has positions for 8" in rows[1]["error"]
    assert rows[2]["text"] == " ".join(["two"] * 8)
    assert "1 line (2): not translated" in error and "Traceback" not in error


def test_a_source_and_its_end_have_positions(translator):
    made = mtplug.load(translator, overrides=["data.max_length=99"])
    assert made.max_length == 8


@pytest.mark.parametrize("side", ["source", "target"])
def test_what_is_scored_is_told_where_it_is_too_long(translator, tmp_path, capsys, side):
    given = {"source": "ka lo", "target": "one two"}
    given[side] = " ".join(["ka" if side == "source" else "one"] * 9)
    rows = [{"source": "mi", "target": "three"}, given, {"source": "lo", "target": "two"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    options = ("--input-format", "jsonl", "--score", "-")
    code, lines, error = answers(translator, tmp_path, capsys, text, *options)
    assert code == 2 and lines[1] == "" and "1 line (2)" in error and f"its {side} has 9" in error
    due = mtplug.load(translator).score(["mi", "lo"], ["three", "two"])
    assert [float(lines[n]) for n in (0, 2)] == pytest.approx([t.score for t in due], abs=1e-5)


def test_a_run_with_fewer_positions_reranks_long_texts(translator, tiny_run, tmp_path, capsys):
    (tmp_path / "in").write_text("ka lo mi nu " * 3 + "\n")
    options = ("search.name=rerank", f"search.forward=[{translator}]", "--format", "jsonl")
    assert translate.main([str(tiny_run), "--input", str(tmp_path / "in"), *options]) == 0
    assert math.isfinite(json.loads(capsys.readouterr().out)["score"])
