"""The loss of references, against forced scores of the same texts."""

import json

import pytest

import mtplug
from mtplug import testing
from mtplug.cli.evaluate import main as evaluate
from mtplug.training.validation import encoded_references, reference_loss
from tests import tiny

LM = (
    "task={name: language_modeling, target_lang: en}",
    "data={train: {target: train.en}, valid: {target: valid.en}, test: {target: test.en}, workers: 1}",
    "tokenizer.vocab_size=13",
    "criterion.smoothing=0",
    "validation.best_metric=loss",
    "architecture={name: transformer_lm, dim: 16, ffn_dim: 16, heads: 2, layers: 1, dropout: 0, "
    "position: {name: learned, max_positions: 12}}",
    "data.max_length=8",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return testing.train(folder, *LM, f"data.root={folder}", updates=4, name="lm")


def nll(rows):
    scores = [score for row in rows for score in row.token_scores]
    return -sum(scores) / len(scores)


def test_long_texts_are_split_where_training_splits_them_and_blank_lines_have_no_loss(run, capsys):
    """Beyond data.max_length nothing was measured, and blank lines counted."""
    text = "one two three four five six seven eight nine ten one two"
    file = run.parent / "test.en"
    file.write_text(f"{text}\n\none two\n")
    parts = [" ".join(text.split()[:6]), " ".join(text.split()[6:])]
    translator = mtplug.load(run, device="cpu")
    for policy, scored, said in (
        ("split", parts, "split"),
        ("skip", [" ".join(text.split()[:8])], "beginning"),
    ):
        assert evaluate([str(run), "--json", f"data.on_long={policy}"]) == 0
        captured = capsys.readouterr()
        loss = json.loads(captured.out)["test"]["loss"]["score"]
        due = nll(translator.score([""] * 3, [*scored, "one two"]))
        assert loss == pytest.approx(due, abs=1e-4)
        assert "1 of 3 pairs have more than 8 tokens" in captured.err and said in captured.err
        assert "1 of 3 pairs have an empty side" in captured.err


def test_a_set_without_a_token_has_no_loss(run):
    from mtplug.translator import load_run

    config, translator = load_run(run), mtplug.load(run, device="cpu")
    pairs, _ = encoded_references(translator.task, [("", "")], config)
    criterion = config.criterion.build(translator.task)
    found = reference_loss(translator.model, criterion, translator.task, pairs, config)
    assert found["loss"] != found["loss"]


def test_sentences_that_are_translated_are_spread_over_the_set(tmp_path):
    testing.write_corpus(tmp_path)
    settings = ("validation.max_sentences=5", "logging.trackers=null")
    trainer = tiny.trainer(tmp_path, *tiny.arguments(tmp_path, "run", *settings)[1:])
    _, samples = trainer.validation(trainer.model, trainer.criterion)
    lines = (tmp_path / "valid.xx").read_text().splitlines()
    assert [source for source, *_ in samples] == lines[:: len(lines) // 5]


def test_time_that_is_left_ends_with_the_last_epoch(tmp_path):
    """It counted to training.max_updates, which no run that ends by its epochs comes to."""
    settings = ("training.max_epochs=2", "training.log_every=1", "logging.trackers=[{name: jsonl}]")
    run = testing.train(tmp_path, *settings, updates=100_000, name="run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    events = [e for e in map(json.loads, lines) if e["event"] == "train"]
    assert events[-1]["seconds_left"] == 0 and len(events) < 1000
    half = next(e for e in events if e["update"] == events[-1]["update"] // 2)
    assert half["seconds_left"] > 0


def test_a_task_that_does_not_say_that_it_has_no_sources_has_a_loss(run):
    """Of the older contract: the pairs were left out, and a loss that is no number stayed the best."""
    from mtplug.translator import load_run

    config, translator = load_run(run), mtplug.load(run, device="cpu")
    translator.task.sourceless = False
    pairs, notes = encoded_references(translator.task, [("", "one"), ("", "two")], config)
    assert len(pairs) == 2 and not notes
