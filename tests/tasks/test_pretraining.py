"""Pre-training from a configuration to a translation model that starts from it."""

import json

import numpy as np
import pytest
import torch

import mtplug
from mtplug.config import load_config
from mtplug.data.tokenizers import EOS, PAD
from mtplug.errors import UserError
from mtplug.training.trackers import read_events
from tests import tiny

LOSS = (
    "validation.best_metric=loss",
    "criterion.smoothing=0",
    "training.max_updates=30",
    "data.test=null",
)
TASKS = {
    "masked_lm": (
        "architecture.name=transformer_encoder",
        "tokenizer.model_type=bpe",
        "tokenizer.vocab_size=60",
    ),
    "denoising": ("tokenizer.vocab_size=24", "task.shuffle_distance=2", "task.delete=0.1"),
    "span_corruption": ("tokenizer.vocab_size=27", "task.sentinels=4"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pretraining")
    tiny.write_corpus(made)
    return made


def settings(name, *more):
    return f"task={{name: {name}, source_lang: xx, target_lang: en}}", *TASKS[name], *LOSS, *more


def prepared(folder, name, *more):
    line = [f"run_dir={folder / name}", f"data.root={folder}", *settings(name, *more)]
    run, _ = load_config(folder / "run.yaml", line)
    task = run.task.build()
    (folder / name).mkdir(exist_ok=True)
    task.prepare(run, folder / name, lambda text: None)
    return run, task


@pytest.mark.parametrize("name", TASKS)
def test_a_run_learns_and_is_evaluated(name, folder, capsys):
    from mtplug.cli.evaluate import main

    run = tiny.train(folder, name, *settings(name))
    scores = [e["scores"] for e in read_events(run / "metrics.jsonl") if e["event"] == "validation"]
    size = {"masked_lm": 60, "denoising": 24, "span_corruption": 27}[name]
    assert scores[-1]["loss"] < np.log(size) - 0.2  # better than guessing
    capsys.readouterr()
    assert main([str(run), "--split", "valid", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["valid"]["loss"]["score"] == pytest.approx(scores[-1]["loss"], abs=1e-5)
    of = (
        "per masked token"
        if name == "masked_lm"
        else "per token of the run's tokenizer, </s> counted"
    )
    assert found["valid"]["loss"]["signature"].startswith(of)
    assert main([str(run), "--split", "valid", "--output", str(folder / "out")]) == 2
    assert "has no translations to write" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_resumed_in_the_middle_of_an_epoch(name, folder):
    more = ("training.max_epochs=2", "training.max_updates=99", "validation.every_updates=0")
    whole = tiny.train(folder, f"{name}-whole", *settings(name, *more))
    for updates in (3, 99):
        parts = tiny.train(
            folder, f"{name}-parts", *settings(name, *more), f"training.max_updates={updates}"
        )
    files = [r / "checkpoints/last/model.safetensors" for r in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_noise_is_new_in_each_epoch_and_the_same_in_validation(folder):
    run, task = prepared(folder, "denoising")
    data = task.training_data(run)
    epochs = []
    for epoch in (1, 2):
        data.restore({"epoch": epoch, "sample_offset": 0})
        noised = {}
        for ids in data.remaining():
            data.advance(ids)  # as the trainer does, before the batch is made
            batch = data.batch(ids)
            noised |= dict(
                zip(batch.ids.tolist(), map(tuple, batch.source_tokens.tolist()), strict=True)
            )
        epochs.append(noised)
    assert epochs[0].keys() == epochs[1].keys() and len(epochs[0]) == 800
    same = sum(epochs[0][n][:3] == epochs[1][n][:3] for n in epochs[0])
    assert same < 500


@pytest.mark.parametrize("name", ["denoising", "span_corruption"])
def test_noise_makes_nothing_longer_than_the_model_has_positions(folder, name):
    """Learnt positions were too few for it, in the middle of a run."""
    most = ("data.max_length=6", "architecture.position={name: learned, max_positions: 7}")
    tiny.train(folder, f"{name}-longest", *settings(
        name, *most, "task.share=0.8", "task.mean_span=0.5", "training.max_updates=10"
    ))  # fmt: skip


def test_masked_tokens_are_those_that_are_told(folder):
    run, task = prepared(folder, "masked_lm")
    data = task.training_data(run)
    batch = data.batch(next(iter(data.remaining())))
    told = batch.target_tokens != PAD
    assert told.any() and not told[batch.source_tokens == EOS].any()
    assert torch.equal(batch.source_tokens == PAD, batch.source_tokens.eq(PAD) & ~told)
    halves = batch.halves()
    assert torch.equal(torch.cat([h.target_tokens for h in halves]), batch.target_tokens)
    assert all(h.aligned for h in halves) and sum(map(len, halves)) == len(batch)


def test_corpora_of_one_file_or_both(folder):
    for corpus, texts in (
        ("{source: valid.xx, target: valid.en}", 40),
        ("{source: valid.xx}", 20),
        ("{target: valid.en}", 20),
    ):
        run, task = prepared(folder, "denoising", f"data.valid=[{corpus}]")
        ((_, pairs),) = task.pairs(run, "valid")
        assert len(pairs) == texts and all(source == "" for source, _ in pairs)


BILINGUAL = [("добрый день", "good day"), ("это word by word", "this is это слово в слово"),
             ("12", "12"), ("добрый день", "it is late")]  # fmt: skip


@pytest.mark.parametrize("corpus", [
    "{name: jsonl, path: one.jsonl}", "{name: jsonl, path: one.jsonl, target: 'translation.{lang}'}",
    "{name: csv, path: one.csv}", "{name: csv, path: one.csv, source: ru}",
])  # fmt: skip
def test_a_field_named_by_a_language_that_nobody_says_is_not_read(tmp_path, corpus):
    """Of text in one language, the task asked for the field `translation.`."""
    tiny.write_corpus(tmp_path)
    (tmp_path / "one.jsonl").write_text('{"translation": {"ru": "ka lo"}}\n' * 3)
    (tmp_path / "one.csv").write_text("ru\n" + "ka lo\n" * 3)
    run, task = prepared(
        tmp_path,
        "denoising",
        f"data.valid=[{corpus}]",
        "task.source_lang=ru",
        "task.target_lang=''",
    )
    assert task.pairs(run, "valid")[0][1] == [("", "ka lo")] * 3


@pytest.mark.parametrize(("corpus", "sides", "languages", "expected"), [
    ("{source: ru, target: en}", "both", "ru en", "добрый день|good day|12|it is late"),
    ("{source: ru, target: en}", "source", "ru xx", "добрый день|12"),
    ("{source: ru, target: en}", "target", "xx en", "good day|12|it is late"),
    ("{source: ru}", "both", "ru en", "добрый день|12"),
    ("{target: en}", "both", "ru en", "good day|12|it is late"),
    ("{source: ru}", "both", "ru ''", "добрый день|12"),
    ("{name: jsonl, path: both.jsonl}", "both", "ru en", "добрый день|good day|12|it is late"),
    ("{name: jsonl, path: both.jsonl, source: translation.ru, target: translation.ru}", "both", "'' ru",
     "добрый день|12"),
])  # fmt: skip
def test_filters_take_each_side_for_what_its_language_is(
    tmp_path, corpus, sides, languages, expected
):
    """Sentences of both sides were measured by the target's scripts, and half of the text was lost; of JSON lines
    whose fields only differ in {lang}, one side was never read."""
    tiny.write_corpus(tmp_path)
    for side, language in enumerate(("ru", "en")):
        lines = (pair[side] + "\n" for pair in BILINGUAL * 50)
        (tmp_path / language).write_text("".join(lines))
    lines = (json.dumps({"translation": {"ru": ru, "en": en}}) + "\n" for ru, en in BILINGUAL * 50)
    (tmp_path / "both.jsonl").write_text("".join(lines))
    source, target = languages.split()
    _, task = prepared(
        tmp_path, "denoising", f"data.train=[{corpus}]", f"task.sides={sides}", f"task.source_lang={source}",
        f"task.target_lang={target}", "data.filters={script: 0.7, duplicates: true}",
        "tokenizer={model_type: char, vocab_size: 30, character_coverage: 1}",
    )  # fmt: skip
    (store,) = task.stores
    pairs = store.block(0)
    decoded = task.target_tokenizer.decode([row.tolist() for row in pairs.target.rows()])
    assert decoded == expected.split("|")
    assert not any(len(row) for row in pairs.source.rows())


def test_encoder_of_masked_lm_goes_into_a_translation_model(folder):
    pretrained = tiny.train(folder, "masked_lm", *settings("masked_lm"))
    run = tiny.train(
        folder, "translation", f"training.init_from={pretrained}", f"tokenizer.model={pretrained}",
        "training.freeze={parameters: encoder.*, until: 5}", "training.max_updates=30",
    )  # fmt: skip
    (record,) = json.loads((run / "initialisation.json").read_text())
    taken = {e["name"] for e in record["taken"]}
    fresh = {e["name"] for e in record["fresh"]}
    assert "encoder_embedding.weight" in taken
    assert {n.split(".")[0] for n in taken} == {"encoder_embedding", "encoder", "encoder_norm"}
    assert {n.split(".")[0] for n in fresh} == {"decoder", "decoder_norm"}
    assert {e["name"].split(".")[0] for e in record["left"]} == {"head"}
    assert mtplug.load(run, device="cpu").translate(["ka lo"])


def test_masks_in_given_text_are_filled(folder):
    run = tiny.train(folder, "masked_lm", *settings("masked_lm"))
    translator = mtplug.load(run, device="cpu")
    (answer,) = translator.translate(["ka<mask> lo"])
    tokenizer = translator.task.source_tokenizer
    (ids,) = tokenizer.encode(["ka<mask> lo"])
    place = tokenizer.tokens(ids).index("<mask>")
    pieces = set(range(len(tokenizer))) - {ids[place]}
    written = [[*ids[:place], piece, *ids[place + 1 :]] for piece in pieces]
    assert answer in tokenizer.decode(written) and "<mask>" not in answer


@pytest.mark.parametrize(("name", "setting", "said"), [
    ("masked_lm", "share=2", "share must be above 0 and at most 1, not 2"),
    ("masked_lm", "share=0", "share must be above 0"),
    ("denoising", "mean_span=0", "mean_span must be above 0, not 0"),
    ("denoising", "share=1.5", "share must be from 0 to 1"),
    ("denoising", "delete=-1", "delete must be from 0 to 1"),
    ("denoising", "shuffle_distance=-1", "shuffle_distance must be at least 0"),
    ("span_corruption", "mean_span=0", "mean_span must be above 0"),
    ("span_corruption", "share=0", "share must be above 0"),
    ("span_corruption", "sentinels=1", "sentinels must be at least 2"),
])  # fmt: skip
def test_noise_that_means_nothing_is_refused(folder, name, setting, said):
    with pytest.raises(UserError, match=said):
        load_config(folder / "run.yaml", [*settings(name), f"task.{setting}"])


def test_what_does_not_go_together_is_told(folder):
    with pytest.raises(
        UserError, match="transformer writes text, task masked_lm needs one that labels"
    ):
        tiny.trainer(
            folder, f"run_dir={folder / 'wrong'}", f"data.root={folder}",
            *settings("masked_lm", "architecture.name=transformer"),
        )  # fmt: skip
    with pytest.raises(
        UserError, match="transformer_encoder labels text, task translation needs one"
    ):
        tiny.trainer(
            folder, f"run_dir={folder / 'wrong2'}", f"data.root={folder}",
            "architecture.name=transformer_encoder",
        )  # fmt: skip


def test_a_tokenizer_of_an_older_version_is_not_trained_again(folder):
    """Fields that a tokenizer's settings have got since then have their defaults."""
    prepared(folder, "denoising")
    stamp = folder / "denoising" / "tokenizer" / "tokenizer.json"
    made_from = json.loads(stamp.read_text())
    del made_from["config"]["extend"], made_from["config"]["model"]
    stamp.write_text(json.dumps(made_from))
    before = stamp.read_bytes()
    prepared(folder, "denoising")
    assert stamp.read_bytes() == before
