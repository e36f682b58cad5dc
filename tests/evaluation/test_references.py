"""Validation and test sets with several references, scored as sacreBLEU scores them."""

import json

import pytest
import sacrebleu

import mtplug
from mtplug import testing
from mtplug.cli.evaluate import main as evaluate
from mtplug.errors import UserError
from mtplug.training.validation import Validation
from mtplug.translator import Translator, load_run

SETS = {
    "text": "{{source: {0}.xx, target: {0}.en, references: [second.{0}, third.{0}]}}",
    "jsonl": "{{name: jsonl, path: {0}.jsonl, source: xx, target: en, references: [second, third]}}",
}


@pytest.fixture
def folder(tmp_path):
    """Of two of three sentences another reference has its words in another order."""
    for name in ("train", "valid", "test"):
        pairs = testing.pairs(20 if name != "train" else 400, seed=len(name))
        sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
        others = [
            [" ".join(t.split()[:: -1 if n % 3 == k else 1]) for n, t in enumerate(targets)]
            for k in (0, 1)
        ]
        files = dict(
            zip(
                ("{}.xx", "{}.en", "second.{}", "third.{}"),
                (sources, targets, *others),
                strict=True,
            )
        )
        for pattern, lines in files.items():
            (tmp_path / pattern.format(name)).write_text("\n".join(lines) + "\n")
        rows = [
            dict(zip(("xx", "en", "second", "third"), row, strict=True))
            for row in zip(*files.values(), strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def trained(folder, *more, reader="text"):
    (folder / "run.yaml").touch()
    data = ", ".join(f"{split}: {SETS[reader].format(split)}" for split in ("valid", "test"))
    return testing.train(
        folder, f"data={{train: {{source: train.xx, target: train.en}}, workers: 1, {data}}}", f"data.root={folder}",
        "task={name: translation, source_lang: xx, target_lang: en}", "tokenizer={vocab_size: 23, model_type: word}",
        "architecture={dim: 16, ffn_dim: 16, heads: 2, encoder_layers: 1, decoder_layers: 1}", "search.max_extra=5",
        "validation.max_sentences=7", "training.max_tokens=256", *more, updates=2,
    )  # fmt: skip


@pytest.mark.parametrize("reader", SETS)
def test_all_references_count(folder, capsys, reader, monkeypatch):
    run = trained(folder, reader=reader)
    second = (folder / "second.test").read_text().replace("one", "ten").splitlines()
    monkeypatch.setattr(Translator, "translate", lambda self, texts: second)
    assert evaluate([str(run), "--json", "--output", str(folder / "out")]) == 0
    (scores,) = json.loads(capsys.readouterr().out).values()
    written = next((folder / "out").glob("*.txt")).read_text().splitlines()
    sets = [
        (folder / name).read_text().splitlines()
        for name in ("test.en", "second.test", "third.test")
    ]
    for label, metric in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        due = metric(written, sets, **({"word_order": 2} if label == "chrf" else {})).score
        assert scores[label]["score"] == pytest.approx(due)
    assert scores["chrf"]["score"] != sacrebleu.corpus_chrf(written, sets[:1], word_order=2).score
    assert "nrefs:3" in scores["bleu"]["signature"]


def test_validation_scores_the_references_of_the_sentences_that_it_translates(folder):
    """The best of all would be as good as any: each translation is the sentence's second reference."""
    run_dir = trained(folder)
    run, loaded = load_run(run_dir), mtplug.load(run_dir, device="cpu")
    validation = Validation(run, loaded.task)
    chosen = [i * 20 // 7 for i in range(7)]
    second = (folder / "second.valid").read_text().splitlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Translator, "translate", lambda self, texts: [second[i] for i in chosen])
        patch.setattr("mtplug.training.validation.reference_loss", lambda *args: {"loss": 1.0})
        scores, _ = validation(loaded.model, None)
    assert scores["bleu"] == pytest.approx(100)


def test_many_empty_translations_are_told(folder, capsys, monkeypatch):
    run = trained(folder)
    monkeypatch.setattr(Translator, "translate", lambda self, texts: ["", "", "", *["a"] * 17])
    assert evaluate([str(run), "--json"]) == 0
    assert "test: 3 of 20 translations are empty; search.min_length=1" in capsys.readouterr().err
    monkeypatch.setattr(Translator, "translate", lambda self, texts: ["", *["a"] * 19])
    assert evaluate([str(run), "--json"]) == 0
    assert "are empty" not in capsys.readouterr().err


def test_references_that_cannot_be_counted_are_told_before_any_training(folder):
    lines = (folder / "third.test").read_text()
    (folder / "third.test").write_text(lines.split("\n", 1)[1])
    with pytest.raises(UserError, match=r"test\.xx has 20 lines, .*third\.test has 19: both"):
        trained(folder)
    (folder / "third.test").write_bytes(b"\xff" + lines.encode())
    with pytest.raises(
        UserError,
        match=r"data\.test: third\.test: 1 lines cannot be read, and with several references",
    ):
        trained(folder, "data.on_error=skip")
    (folder / "third.test").unlink()
    with pytest.raises(UserError, match=r"data\.test\.0\.references: .*third\.test is no file"):
        trained(folder)
    with pytest.raises(UserError, match=r"data\.train\.0\.references are for scores"):
        trained(folder, "data.train.0.references=[second.train]")
    assert not (folder / "run").exists()
